"""SimSiam: exploring simple siamese representation learning.

Chen, He, CVPR 2021, arXiv 2011.10566.
Authors' code: facebookresearch/simsiam.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from selfsame.backbones import SMALL_IMAGE
from selfsame.nn.heads import mlp
from selfsame.nn.pairs import pair, spread
from selfsame.nn.precision import wide
from selfsame.optim import Optim
from selfsame.recipe import SMALL_OPTIM, BackboneConfig, MethodConfig, Recipe, Scale
from selfsame.types import Backbone, Method, Output, Progress, Rate
from selfsame.views.presets import mocov2_view, small_scale


def D(p: Tensor, z: Tensor) -> Tensor:  # noqa: N802
    """Negative cosine similarity, equation 1, with the stop-gradient of equation 3 on ``z``.

    Args:
        p: [B, D] predictions, of any length.
        z: [B, D] projections of the other view, of any length; no gradient reaches them.

    Returns:
        [] in [-1, 1], the mean over images, in float32 or float64.
    """
    return -F.cosine_similarity(wide(p), wide(z.detach()), dim=-1).mean()


def simsiam_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """``D(p1, z2) / 2 + D(p2, z1) / 2``, equation 4: [] in [-1, 1] from [B, D] each."""
    return D(p1, z2) / 2 + D(p2, z1) / 2


class Settings(MethodConfig):
    """Hyper-parameters of SimSiam; the defaults are those of the paper's ImageNet runs."""

    name: str = "simsiam"
    hidden: Annotated[int, Field(ge=0)] = 0  # inside the projector; 0: the encoder's width
    output: Annotated[int, Field(ge=1)] = 2048  # width of a projection and of a prediction
    layers: Annotated[int, Field(ge=1)] = 3  # of the projector; 2 for CIFAR-10 (appendix D)
    bottleneck: Annotated[int, Field(ge=1)] = 512  # inside the predictor
    fix_predictor: bool = True  # the predictor's learning rate stays at the peak; False: it decays


class SimSiam(Method):
    """One network for both views, and a predictor: only a stop-gradient tells the sides apart.

    Every view goes through the network on its own, so BatchNorm sees one view at a time.

    Args:
        config: the hyper-parameters.
        backbone: the encoder, which is kept; projector and predictor are thrown away.
    """

    Config = Settings

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        hidden = [config.hidden or backbone.dim] * (config.layers - 1)
        self.projector = mlp(
            (backbone.dim, *hidden, config.output), last_norm=True, last_affine=False
        )
        self.predictor = mlp((config.output, config.bottleneck, config.output))

    def branch(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Projections z and predictions p, [B, output] each, of one view [B, C, S, S]."""
        z = self.projector(self.backbone(x).pooled)
        return z, self.predictor(z)

    def forward(self, views: Mapping[str, Tensor], t: Progress) -> Output:
        """Loss of ``views["global"]``, float32 [2, B, C, S, S]."""
        x1, x2 = pair(views["global"])
        z1, p1 = self.branch(x1)
        z2, p2 = self.branch(x2)
        return Output(simsiam_loss(p1, p2, z1, z2), {"spread": spread(z1)}, {})

    def rate(self, name: str) -> Rate:
        """The predictor must keep up with its moving input: no decay (section 4.2)."""
        return Rate(fixed=self.config.fix_predictor and name.startswith("predictor."))

    def encoder(self) -> Backbone:
        """The backbone."""
        return self.backbone


def recipe(scale: Scale, size: int) -> Recipe:
    """The paper's ImageNet recipe, and one for tens of thousands of small images."""
    view = mocov2_view(size)
    if scale == "paper":
        return Recipe(
            source="arXiv 2011.10566: section 3, appendix A; facebookresearch/simsiam",
            deviations=(
                "the learning rate changes at every step; the code's at every epoch",
                "the blur's kernel is a tenth of the side, as in SimCLR; the code has Pillow's",
                "images are first scaled to fit the canvas; the code crops the full image",
            ),
            batch_size=512,
            epochs=100,
            canvas=None if size <= SMALL_IMAGE else 512,
            method=Settings(),
            backbone=BackboneConfig(name="resnet50"),
            optim=Optim(name="sgd", lr=0.05, weight_decay=1e-4, warmup=0, exclude_1d=False),
            views=(view,),
        )
    return Recipe(
        source="arXiv 2011.10566: appendix D, shortened",
        deviations=(
            "batch 64 and AdamW: with little data and time, steps count",
            "heads 512 wide with a bottleneck of 128",
            "biases and parameters of norms do not decay",
        ),
        batch_size=64,
        epochs=100,
        method=Settings(hidden=512, output=512, layers=2, bottleneck=128),
        backbone=BackboneConfig(name="resnet18"),
        optim=SMALL_OPTIM,
        views=(view.model_copy(update={"scale": small_scale(size)}),),
    )
