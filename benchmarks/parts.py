"""Images per second of a training step and of its parts, on this machine.

A step of SimCLR on images in memory: batch, views, forward, backward, update. Parts are timed in
one interleaved run; compare their shares, and ratios within a run, never numbers of two machines.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from selfsame import demo, machine, optim, plan
from selfsame.plan import Choices, Plan
from selfsame.recipe import with_settings

STEPS, WARM_UP = 20, 4


def parts_of(made: Plan) -> dict[str, float]:
    """Median seconds of each part of a step."""
    recipe = made.recipe
    method = made.build().train()
    optimizer = optim.build(method, recipe.optim, recipe.batch_size)
    seconds: dict[str, list[float]] = defaultdict(list)

    def timed(name: str, work: Callable[..., Any], *args: Any) -> Any:
        if made.device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        result = work(*args)
        if made.device.type == "cuda":
            torch.cuda.synchronize()
        seconds[name].append(time.perf_counter() - begin)
        return result

    def forward(views: dict[str, torch.Tensor], step: int) -> Any:
        with machine.autocast(made.device, recipe.precision):
            return method(views, made.progress(step))

    for step in range(WARM_UP + STEPS):
        index = torch.randperm(len(made.images))[: recipe.batch_size]
        batch = timed("batch", made.images.batch, index)
        views = timed("views", made.views, method, batch, step)
        out = timed("forward", forward, views, step)
        optimizer.zero_grad(set_to_none=True)
        timed("backward", out.loss.backward)
        timed("update", optimizer.step)
    return {name: sorted(values[WARM_UP:])[STEPS // 2] for name, values in seconds.items()}


def main() -> None:
    device = machine.device()
    print(machine.describe(device))
    data = demo.sample().train
    base = demo.recipe()
    precisions = ["fp32", "bf16"] if machine.native_bf16(device) else ["fp32"]
    for label, settings in (
        ("the demo's network, batch 64", []),
        ("the demo's network, batch 256", ["batch_size=256"]),
        (
            "ResNet-18, CIFAR stem, batch 64",
            ["backbone.name=resnet18", "backbone.options.width=64", "backbone.options.stem=cifar"],
        ),
    ):
        baseline = None
        for precision in precisions:
            recipe = with_settings(base, [*settings, f"precision={precision}"])
            made = plan.make("simclr", data, Choices(recipe=recipe), str(device))
            with made.images:
                parts = parts_of(made)
            total = sum(parts.values())
            baseline = baseline or total
            shares = ", ".join(f"{name} {value / total:.0%}" for name, value in parts.items())
            print(
                f"{label}, {precision}: {recipe.batch_size / total:,.0f} images/s "
                f"({baseline / total:.2f}x fp32): {shares}"
            )


if __name__ == "__main__":
    main()
