"""What a run would do here, without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from selfsame import __version__, machine
from selfsame import plan as planning
from selfsame.plan import Choices

SAMPLE = 256  # images decoded to estimate how many can be read


def examine(
    data: Any = None,
    *,
    method: str = "simclr",
    backbone: str | None = None,
    recipe: str | None = None,
    size: int | None = None,
    batch_size: int | None = None,
    settings: Sequence[str] = (),
    device: str | None = None,
) -> list[str]:
    """The plan of a run and the state of the machine, in lines.

    Raises:
        UsageError: as ``pretrain``.
        DataError: no images.
    """
    lines = [f"selfsame   {__version__}, torch {torch.__version__}"]
    if data is None:
        chosen = machine.device(device)
        precision, why = machine.precision("auto", chosen)
        return [
            *lines,
            f"machine    {machine.describe(chosen)}, {machine.memory(chosen) / 2**30:.1f} GiB free",
            f"precision  {precision} ({why})",
            "data       none given; selfsame doctor DATA looks at it",
        ]
    choices = Choices(recipe, backbone, size, batch_size=batch_size, settings=tuple(settings))
    plan = planning.make(method, data, choices, device)
    with plan.images as images:
        checked = images.check(SAMPLE)
        lines += plan.describe(plan.build())
        lines.append(
            f"readable   {checked.sampled - checked.bad} of {checked.sampled} sampled images"
            if checked.sampled
            else "readable   an array in memory, all of it"
        )
        lines += [f"refused    {image.name}: {image.reason}" for image in images.bad]
    return lines
