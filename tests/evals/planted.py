"""Training runs with one planted fault each, and healthy ones: what a verdict is calibrated on.

Every run has the small recipe of its method at 32 px on the network of ``RESULTS.md``, and learns
from the CIFAR-10 sample. ``python tests/evals/planted.py --help`` says how the recorded rows in
``tests/evals/data`` are made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfsame import demo, methods
from selfsame.methods.byol import BYOL, NORM_EPS
from selfsame.methods.simsiam import SimSiam
from selfsame.nn.pairs import pair, spread
from selfsame.nn.precision import unit
from selfsame.recipe import Recipe, with_settings
from selfsame.types import Output, Progress

RESNET = ["backbone.name=resnet14", "backbone.options.stem=patch", "backbone.options.width=32"]
VIT = [
    *("backbone.name=vit_tiny", "backbone.options.width=96", "backbone.options.depth=4"),
    *("backbone.options.heads=3", "backbone.options.patch=4"),
]


class OpenSimSiam(SimSiam):
    """SimSiam without its stop-gradient."""

    def forward(self, views: Mapping[str, Tensor], t: Progress) -> Output:
        x1, x2 = pair(views["global"])
        z1, p1 = self.branch(x1)
        z2, p2 = self.branch(x2)
        cosines = [(unit(p) * unit(z)).sum(-1).mean() for p, z in ((p1, z2), (p2, z1))]
        return Output(-(cosines[0] + cosines[1]) / 2, {"spread": spread(z1)}, {})


class OpenBYOL(BYOL):
    """BYOL whose target is the online branch itself, gradient and all."""

    def forward(self, views: Mapping[str, Tensor], t: Progress) -> Output:
        x1, x2 = pair(views["global"])
        z1, z2 = self.online(x1), self.online(x2)
        q1, q2 = self.predictor(z1), self.predictor(z2)
        pairs = ((q1, z2), (q2, z1))
        loss = sum((unit(q, NORM_EPS) - unit(z, NORM_EPS)).square().sum(-1).mean() for q, z in pairs)
        assert isinstance(loss, Tensor)
        return Output(loss, {"spread": spread(z1)}, {})


def photos() -> np.ndarray:
    """The 8,000 images, uint8 [N, 32, 32, 3]."""
    images: np.ndarray = demo.sample().train.images  # type: ignore[attr-defined]
    return images


def tinted() -> np.ndarray:
    """The images in gray with a fourth channel that holds one random value an image."""
    level = np.random.default_rng(0).integers(0, 256, (8000, 1, 1, 1), dtype=np.uint8)
    return np.concatenate([photos(), np.broadcast_to(level, (8000, 32, 32, 1))], axis=-1)


@dataclass(frozen=True)
class Case:
    """A run: of a method, with settings, on images; and what its verdict must name."""

    method: str
    settings: tuple[str, ...] = ()
    images: Callable[[], np.ndarray] = photos
    cause: str | None = None
    steps: int = 250


def peak(method: str, factor: float) -> str:
    return f"optim.lr={methods.recipe(method, 'small', 32).optim.lr * factor}"


NO_COLOR = ("views.jitter=0.0", "views.grayscale=0.0", "views.solarize=0.0")
STILL = (*NO_COLOR, "views.scale=[0.9, 1.0]", "views.ratio=[1.0, 1.0]", "views.flip=0.0")
WEAK = (*STILL,)
HEALTHY = {
    **{
        name: Case(name)
        for name in ("simclr", "vicreg", "moco", "mocov3", "byol", "simsiam", "barlow_twins")
    },
    **{name: Case(name) for name in ("swav", "dino", "deepclusterv2")},
    "deepcluster": Case("deepcluster", steps=400),
    "mae": Case("mae", steps=400),
    **{name: Case(name, steps=150) for name in ("ibot", "dinov2", "data2vec2")},
}
FAULTS = {
    "simsiam-open": Case("planted:OpenSimSiam", cause="stop-gradient"),
    "byol-open": Case("planted:OpenBYOL", cause="stop-gradient"),
    "dino-uncentred": Case("dino", ("method.center_momentum=1.0",), cause="centring"),
    **{
        f"{name}-rate": Case(name, (peak(name, 100),), cause="learning rate")
        for name in ("simclr", "simsiam", "vicreg", "mae", "dino")
    },
    **{
        f"{name}-weak": Case(name, WEAK, cause="weak views")
        for name in ("simclr", "vicreg", "moco", "byol")
    },
    **{
        f"{name}-colour": Case(name, NO_COLOR, cause="shortcut")
        for name in ("simclr", "moco", "vicreg")
    },
    "simclr-mark": Case("simclr", (), tinted, cause="shortcut"),
    "simclr-hot": Case("simclr", ("method.temperature=2.0",), cause="temperature too high"),
    "simclr-cold": Case("simclr", ("method.temperature=0.02",), cause="temperature too low"),
    "moco-hot": Case("moco", ("method.temperature=2.0",), cause="temperature too high"),
    "moco-cold": Case("moco", ("method.temperature=0.02",), cause="temperature too low"),
    "mocov3-hot": Case("mocov3", ("method.temperature=2.0",), cause="temperature too high"),
    "mocov3-cold": Case("mocov3", ("method.temperature=0.02",), cause="temperature too low"),
    "dino-hot": Case(
        "dino",
        ("method.teacher_temperature=0.4", "method.teacher_temperature_start=0.4"),
        cause="temperature too high",
    ),
    "dino-cold": Case(
        "dino",
        ("method.teacher_temperature=0.004", "method.teacher_temperature_start=0.004"),
        cause="temperature too low",
    ),
}
CASES = HEALTHY | FAULTS


def recipe_of(case: Case, seed: int) -> Recipe:
    """The recipe of a case, its channels those of the images."""
    recipe = methods.recipe(case.method, "small", 32) if ":" not in case.method else _open(case)
    network = VIT if recipe.backbone.name.startswith("vit") else RESNET
    lengths = [f"steps={case.steps}", f"seed={seed}"]
    return with_settings(recipe, [*network, *lengths, *case.settings])


def _open(case: Case) -> Recipe:
    parent = {"planted:OpenSimSiam": "simsiam", "planted:OpenBYOL": "byol"}[case.method]
    recipe = methods.recipe(parent, "small", 32)
    return recipe.model_copy(
        update={"method": recipe.method.model_copy(update={"name": case.method})}
    )
