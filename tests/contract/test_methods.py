"""What every method must keep, whatever it learns from. A new method runs through unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import textures, tiny_recipe
from torch import nn

from selfsame import methods, plan
from selfsame.api import pretrain
from selfsame.data.arrays import ArraySource
from selfsame.encoder import load
from selfsame.plan import Choices, Plan
from selfsame.recipe import differences, with_settings
from selfsame.types import Method, Output

BATCH = 8


def data() -> ArraySource:
    return ArraySource(textures(32), np.arange(32) % 4, ["a", "b", "c", "d"])


@pytest.fixture(params=sorted(methods.METHODS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tiny(name: str) -> Iterator[Plan]:
    made = plan.make(name, data(), Choices(recipe=tiny_recipe(name)), "cpu")
    with made.images:
        yield made


class Stopped(Exception):  # noqa: N818
    """What stands for a crash."""


def stop_after(steps: int, after_step: Callable[..., None]) -> Callable[..., None]:
    """The method's ``after_step``, which crashes once it was called more than ``steps`` times."""
    calls = []

    def counted(*args: object) -> None:
        calls.append(1)
        if len(calls) > steps:
            raise Stopped
        after_step(*args)

    return counted


def one_step(tiny: Plan, built: Method, step: int = 0) -> Output:
    views = tiny.views(built, tiny.images.batch(torch.arange(BATCH)), epoch=0)
    return built(views, tiny.progress(step))


def test_gradients_reach_what_trains_and_nothing_else(tiny: Plan) -> None:
    built = tiny.build().train()
    # at the start some scales are zero by design and cut gradients off: move away from it
    with torch.no_grad():
        for p in built.parameters():
            p.add_(0.02 * torch.randn_like(p))
    one_step(tiny, built).loss.backward()
    for key, p in built.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, f"no gradient reaches {key}"
            assert p.grad.abs().max() > 0, f"the gradient of {key} is zero"
            assert torch.isfinite(p.grad).all(), key
        else:
            assert p.grad is None, f"{key} is frozen and gets a gradient"


def test_forward_changes_no_state_but_running_statistics(tiny: Plan) -> None:
    built = tiny.build().train()
    running = {
        f"{prefix}.{key}"
        for prefix, module in built.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for key, _ in module.named_buffers(recurse=False)
    }
    before = {k: v.clone() for k, v in built.state_dict().items()}
    one_step(tiny, built)
    for key, value in built.state_dict().items():
        if key not in running:
            assert torch.equal(value, before[key]), f"forward changed {key}"


def test_loss_is_a_finite_float32_scalar_in_bf16(tiny: Plan) -> None:
    built = tiny.build().train()
    with torch.autocast("cpu", torch.bfloat16):
        out = one_step(tiny, built)
    assert out.loss.dtype == torch.float32
    assert out.loss.shape == ()
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert all(torch.isfinite(p.grad).all() for p in built.parameters() if p.grad is not None)


def test_metrics_have_the_same_keys_every_step_and_no_gradient(tiny: Plan) -> None:
    built = tiny.build().train()
    first = one_step(tiny, built)
    built.after_step(tiny.progress(0), [first.carry])
    second = one_step(tiny, built, step=5)
    assert first.metrics.keys() == second.metrics.keys()
    for out in (first, second):
        for key, value in [*out.metrics.items(), *out.carry.items()]:
            assert not value.requires_grad, f"{key} holds on to the graph"
        assert all(value.ndim == 0 for value in out.metrics.values())


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("size", [32, 224])
def test_recipes_say_where_they_come_from_and_go_through_toml(
    name: str, scale: str, size: int, tmp_path: Path
) -> None:
    recipe = methods.recipe(name, scale, size)
    assert recipe.source
    assert recipe.image_size == size
    file = tmp_path / "recipe.toml"
    file.write_text(recipe.to_toml(), "utf-8")
    back = methods.read_recipe(file)
    assert back == recipe
    assert back.hash() == recipe.hash()
    changed = with_settings(recipe, ["seed=7"])
    assert differences(recipe, changed) == ["seed: 0 -> 7"]


def test_a_stopped_and_resumed_run_is_the_run_that_never_stopped(name: str, tmp_path: Path) -> None:
    recipe = tiny_recipe(name, steps=7)
    options = {"recipe": recipe, "log_every": 1, "quiet": True, "device": "cpu"}
    whole = pretrain(name, data(), out=tmp_path / "whole", **options)

    parts = tmp_path / "parts"
    method = methods.find(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "after_step", stop_after(4, method.after_step))
        with pytest.raises(Stopped):
            pretrain(name, data(), out=parts, save_every=3, **options)
    assert [p.name for p in (parts / "checkpoints").iterdir()] == ["step-00000003"]
    resumed = pretrain(name, data(), out=parts, save_every=3, resume=True, **options)

    assert resumed.finished
    theirs = whole.encoder.state_dict()
    for key, value in resumed.encoder.state_dict().items():
        assert torch.equal(value, theirs[key]), f"{key} differs after a resume"

    def metrics(run: Path) -> list[dict[str, float]]:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [
            {k: v for k, v in r.items() if k not in ("images_per_second", "waiting")} for r in rows
        ]

    assert metrics(parts) == metrics(tmp_path / "whole")
    assert [row["step"] for row in metrics(parts)] == list(range(1, 8))


def test_the_encoder_saves_and_loads_equal(name: str, tmp_path: Path) -> None:
    images = textures(5)
    result = pretrain(
        name, data(), out=tmp_path / "run", recipe=tiny_recipe(name, steps=2), quiet=True
    )
    loaded = load(tmp_path / "run")
    assert torch.equal(loaded.embed(images), result.encoder.embed(images))
    (tmp_path / "run" / "card.json").unlink()  # as a run that was killed leaves it
    assert torch.equal(load(tmp_path / "run").embed(images), result.encoder.embed(images))


def test_a_seed_fixes_the_weights_and_another_changes_them(name: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        recipe = tiny_recipe(name, seed=seed)
        made = plan.make(name, data(), Choices(recipe=recipe), "cpu")
        torch.manual_seed(123)  # what the caller did with torch's generator must not matter
        return torch.cat([p.flatten() for p in made.build().parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
