"""VICReg: variance-invariance-covariance regularization for self-supervised learning.

Bardes, Ponce, LeCun, ICLR 2022, arXiv 2105.04906.
Authors' code: facebookresearch/vicreg.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from selfsame import dist
from selfsame.backbones import SMALL_IMAGE
from selfsame.nn.heads import mlp
from selfsame.nn.pairs import off_diagonal, pair
from selfsame.nn.precision import wide
from selfsame.optim import Optim
from selfsame.recipe import SMALL_OPTIM, BackboneConfig, MethodConfig, Recipe, Scale
from selfsame.types import Backbone, Method, Output, Progress
from selfsame.views.presets import asymmetric_views, small_scale


def invariance(z1: Tensor, z2: Tensor) -> Tensor:
    """The mean squared difference s(Z, Z') over the B * D entries of [B, D].

    As in algorithm 1 and the code; equation 5 sums over D, which 25 as a weight would not suit.
    """
    return F.mse_loss(wide(z1), wide(z2))


def variance(z: Tensor, gamma: float = 1.0, eps: float = 1e-4) -> Tensor:
    """The hinge v(Z) on each column's standard deviation, equations 1 and 2.

    ``mean_j max(0, gamma - sqrt(Var(z_j) + eps))``, with the unbiased variance. The root keeps the
    gradient alive where a column collapses.

    Args:
        z: [N, D] embeddings of all ranks, N at least 2.
        gamma: the deviation that is enough.
        eps: keeps the root's gradient finite.
    """
    return F.relu(gamma - (wide(z).var(dim=0) + eps).sqrt()).mean()


def covariance(z: Tensor) -> Tensor:
    """The sum c(Z) of squared covariances of different columns, over D: equations 3 and 4.

    Args:
        z: [N, D] embeddings of all ranks, N at least 2; the covariance divides by N - 1.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = wide(z)
        z = z - z.mean(dim=0)
        return off_diagonal(z.T @ z / (len(z) - 1)).square().sum() / z.shape[1]


class Settings(MethodConfig):
    """Hyper-parameters of VICReg; the defaults are those of the authors' ImageNet runs."""

    name: str = "vicreg"
    # widths of the expander's layers; the last is D
    expander: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (
        8192,
        8192,
        8192,
    )
    lambd: Annotated[float, Field(ge=0)] = 25.0  # weight of the invariance
    mu: Annotated[float, Field(ge=0)] = 25.0  # of the variance
    nu: Annotated[float, Field(ge=0)] = 1.0  # of the covariance
    gamma: Annotated[float, Field(gt=0)] = 1.0  # the standard deviation that is enough
    eps: Annotated[float, Field(gt=0)] = 1e-4  # under the root of the standard deviation
    sum_variance: bool = False  # True: v(Z) + v(Z'), equation 6; False: half of it, as in the code


class Terms(NamedTuple):
    """The three terms of the loss, [] each and without their weights."""

    invariance: Tensor  # of this rank's images
    variance: Tensor  # of all ranks' images, like the covariance
    covariance: Tensor


def terms(z1: Tensor, z2: Tensor, config: Settings) -> Terms:
    """The three terms of equation 6.

    Args:
        z1: [B, D] embeddings of the first view, B the same on every rank.
        z2: [B, D] of the second.
        config: says gamma, eps, and how the two views' variance terms are put together.
    """
    everyone = [dist.gather(z1), dist.gather(z2)]
    v1, v2 = (variance(z, config.gamma, config.eps) for z in everyone)
    c1, c2 = (covariance(z) for z in everyone)
    return Terms(invariance(z1, z2), (v1 + v2) / (1 if config.sum_variance else 2), c1 + c2)


def vicreg_loss(parts: Terms, config: Settings) -> Tensor:
    """``lambda s(Z, Z') + mu [v(Z) + v(Z')] + nu [c(Z) + c(Z')]``, equation 6."""
    return (
        config.lambd * parts.invariance + config.mu * parts.variance + config.nu * parts.covariance
    )


class VICReg(Method):
    """One network for both views; three terms keep its outputs equal, alive and unrelated.

    Every view goes through the network on its own, so BatchNorm sees one view at a time. The
    embeddings are not normalised in any way.

    Args:
        config: the hyper-parameters.
        backbone: the encoder, which is kept; the expander is thrown away.
    """

    Config = Settings
    batch_coupled = True

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.expander = mlp((backbone.dim, *config.expander), last_bias=False)

    def embed(self, views: Mapping[str, Tensor], t: Progress) -> dict[str, Tensor]:
        """Embeddings ``z``, [2, B, D], of ``views["global"]``, float32 [2, B, C, S, S]."""
        z = [self.expander(self.backbone(x).pooled) for x in pair(views["global"])]
        return {"z": torch.stack(z)}

    def loss(self, embedded: Mapping[str, Tensor], t: Progress) -> Output:
        """Equation 6. The terms are the metrics."""
        z1, z2 = embedded["z"]
        parts = terms(z1, z2, self.config)
        metrics = {name: term.detach() for name, term in parts._asdict().items()}
        return Output(vicreg_loss(parts, self.config), metrics, {})

    def encoder(self) -> Backbone:
        """The backbone."""
        return self.backbone


def recipe(scale: Scale, size: int) -> Recipe:
    """The paper's ImageNet recipe, and one for tens of thousands of small images."""
    views = asymmetric_views(size)
    if scale == "paper":
        return Recipe(
            source="arXiv 2105.04906: section 4.2, appendix C; facebookresearch/vicreg",
            deviations=(
                "the variance terms of the two views are averaged, as in the code; the paper adds",
                "asymmetric views as in the code; appendix C.1: blur 0.5 and solarise 0.1 in both",
                "linear layers before a BatchNorm have no bias: the norm would cancel it",
                "the blur's kernel is a tenth of the side, as in BYOL; the code has Pillow's",
                "images are first scaled to fit the canvas; the code crops the full image",
            ),
            batch_size=2048,
            epochs=1000,
            canvas=None if size <= SMALL_IMAGE else 512,
            method=Settings(),
            backbone=BackboneConfig(name="resnet50"),
            optim=Optim(name="lars", lr=0.2, weight_decay=1e-6, warmup=10, final_lr=0.001),
            views=views,
        )
    return Recipe(
        source="arXiv 2105.04906, shortened",
        deviations=(
            "ResNet-18, batch 64 and AdamW: with little data and time, steps count",
            "expander 512 wide",
            "crops of a fifth of the image or more (0.35 of small images), saturation 0.4",
        ),
        batch_size=64,
        epochs=100,
        method=Settings(expander=(512, 512, 512)),
        backbone=BackboneConfig(name="resnet18"),
        optim=SMALL_OPTIM,
        views=tuple(
            view.model_copy(update={"scale": small_scale(size), "saturation": 0.4})
            for view in views
        ),
    )
