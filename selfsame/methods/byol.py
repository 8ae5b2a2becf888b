"""BYOL: bootstrap your own latent, a new approach to self-supervised learning.

Grill, Strub, Altché, Tallec, Richemond et al., NeurIPS 2020, arXiv 2006.07733.
Authors' code: google-deepmind/deepmind-research, byol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from selfsame import schedule
from selfsame.backbones import SMALL_IMAGE
from selfsame.nn import ema
from selfsame.nn.heads import mlp
from selfsame.nn.pairs import pair, spread
from selfsame.nn.precision import unit
from selfsame.optim import Optim
from selfsame.recipe import SMALL_OPTIM, BackboneConfig, MethodConfig, Recipe, Scale
from selfsame.types import Backbone, Method, Output, Progress
from selfsame.views.presets import asymmetric_views, small_scale

NORM_EPS = 1e-6  # the authors keep the squared norm above 1e-12


def regression_loss(q: Tensor, z: Tensor) -> Tensor:
    """Squared distance between unit vectors, ``2 - 2 cos(q, z)``: equation 2.

    Args:
        q: [B, D] predictions, of any length.
        z: [B, D] target projections, of any length; no gradient reaches them.

    Returns:
        [B] in [0, 4], float32 or float64.
    """
    return (unit(q, NORM_EPS) - unit(z.detach(), NORM_EPS)).square().sum(dim=-1)


def byol_loss(q1: Tensor, q2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """Both directions, each view's prediction against the other's target: summed, not averaged.

    Args:
        q1: [B, D] online predictions of the first view.
        q2: [B, D] of the second.
        z1: [B, D] target projections of the first view.
        z2: [B, D] of the second.

    Returns:
        [] in [0, 8]; about 4 for unrelated vectors.
    """
    return (regression_loss(q1, z2) + regression_loss(q2, z1)).mean()


def target_decay(t: Progress, tau_base: float) -> float:
    """``1 - (1 - tau_base) (cos(pi k / K) + 1) / 2`` at step k of K: section 3.2."""
    return schedule.cosine(t.step, t.total, tau_base, 1.0)


class Settings(MethodConfig):
    """Hyper-parameters of BYOL; the defaults are those of the paper's 1000 epochs on ImageNet."""

    name: str = "byol"
    hidden: Annotated[int, Field(ge=1)] = 4096  # width inside the projector and the predictor
    output: Annotated[int, Field(ge=1)] = 256  # width of a projection and of a prediction
    # the target's decay at the start: .97, .99, .99, .996 for 40, 100, 300, 1000 epochs
    tau_base: Annotated[float, Field(ge=0, le=1)] = 0.996
    memory: Annotated[float, Field(ge=0, le=1)] = 0.0  # bounds it in short runs: `ema.bounded`


class Branch(nn.Module):
    """An encoder f and a projector g."""

    def __init__(self, backbone: Backbone, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    def forward(self, x: Tensor) -> Tensor:
        """Projections, [B, output], of images [B, C, S, S]."""
        projection: Tensor = self.projector(self.backbone(x).pooled)
        return projection


class BYOL(Method):
    """An online branch with a predictor, and a target branch that follows it slowly.

    Every view goes through the networks on its own, so BatchNorm sees one view at a time. The
    target normalises with the statistics of its own batches and keeps its own running ones.

    Args:
        config: the hyper-parameters.
        backbone: the encoder of the online branch, which is kept.
    """

    Config = Settings

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        widths = (config.hidden, config.output)
        self.online = Branch(backbone, mlp((backbone.dim, *widths), last_bias=False))
        self.predictor = mlp((config.output, *widths), last_bias=False)
        self.target = ema.teacher_of(self.online)

    def forward(self, views: Mapping[str, Tensor], t: Progress) -> Output:
        """Loss of ``views["global"]``, float32 [2, B, C, S, S]."""
        x1, x2 = pair(views["global"])
        y1, y2 = self.online(x1), self.online(x2)
        with torch.no_grad():
            z1, z2 = self.target(x1), self.target(x2)
        loss = byol_loss(self.predictor(y1), self.predictor(y2), z1, z2)
        return Output(loss, {"spread": spread(y1)}, {})

    def after_step(self, t: Progress, carry: Sequence[Mapping[str, Tensor]]) -> None:
        """Move the target towards the online branch that the step has just updated."""
        start = ema.bounded(self.config.tau_base, t.total, self.config.memory)
        ema.update(self.target, self.online, target_decay(t, start))

    def encoder(self) -> Backbone:
        """The online backbone."""
        return self.online.backbone


def recipe(scale: Scale, size: int) -> Recipe:
    """The paper's ImageNet recipe, and one for tens of thousands of small images."""
    views = asymmetric_views(size)
    if scale == "paper":
        return Recipe(
            source="arXiv 2006.07733: section 3.2, appendix B; deepmind-research/byol",
            deviations=(
                "the target starts as a copy of the online branch; the code draws it anew",
                "linear layers before a BatchNorm have no bias: the norm would cancel it",
                "brightness is multiplicative; the code adds",
                "images are first scaled to fit the canvas; the code crops the full image",
            ),
            batch_size=4096,
            epochs=1000,
            canvas=None if size <= SMALL_IMAGE else 512,
            method=Settings(),
            backbone=BackboneConfig(name="resnet50"),
            optim=Optim(name="lars", lr=0.2, weight_decay=1.5e-6, warmup=10),
            views=views,
        )
    return Recipe(
        source="arXiv 2006.07733, shortened",
        deviations=(
            "ResNet-18, batch 64 and AdamW: with little data and time, steps count",
            "heads 512 wide; the target remembers a fiftieth of the run at most",
            "crops of a fifth of the image or more (0.35 of small images), saturation 0.4",
        ),
        batch_size=64,
        epochs=100,
        method=Settings(hidden=512, memory=0.02),
        backbone=BackboneConfig(name="resnet18"),
        optim=SMALL_OPTIM,
        views=tuple(
            view.model_copy(update={"scale": small_scale(size), "saturation": 0.4})
            for view in views
        ),
    )
