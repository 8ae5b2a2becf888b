"""Barlow Twins: self-supervised learning via redundancy reduction.

Zbontar, Jing, Misra, LeCun, Deny, ICML 2021, arXiv 2103.03230.
Authors' code: facebookresearch/barlowtwins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from selfsame import dist
from selfsame.backbones import SMALL_IMAGE
from selfsame.nn.heads import mlp
from selfsame.nn.pairs import off_diagonal, pair
from selfsame.nn.precision import wide
from selfsame.optim import Optim
from selfsame.recipe import SMALL_OPTIM, BackboneConfig, MethodConfig, Recipe, Scale
from selfsame.types import Backbone, Method, Output, Progress
from selfsame.views.presets import asymmetric_views, small_scale


class Standardize(nn.BatchNorm1d):
    """BatchNorm over the images of all ranks, without scale and shift, in float32.

    The variance is the biased one; the running statistics (the unbiased one, as torch keeps it) are
    used in evaluation mode only.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, affine=False)

    def forward(self, input: Tensor) -> Tensor:
        """[B, D] with mean 0 and variance 1 in each column."""
        z = wide(input)
        if not self.training:
            return super().forward(z)
        mean = dist.mean(z.mean(dim=0))
        variance = dist.mean((z - mean).square().mean(dim=0))
        images = len(z) * dist.world_size()
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.momentum is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * images / max(images - 1, 1), self.momentum)
        return (z - mean) / (variance + self.eps).sqrt()


def cross_correlation(z1: Tensor, z2: Tensor) -> Tensor:
    """The matrix C of equation 2, over the images of all ranks.

    Args:
        z1: [B, D] standardised embeddings of the first view.
        z2: [B, D] of the second.

    Returns:
        [D, D] in [-1, 1], in float32 or float64.
    """
    with torch.autocast(z1.device.type, enabled=False):
        return dist.mean(wide(z1).T @ wide(z2) / len(z1))


def barlow_twins_loss(c: Tensor, lambd: float) -> Tensor:
    """Equation 1: ``sum_i (1 - C_ii)^2 + lambda sum_i sum_{j != i} C_ij^2``, sums and no means.

    Args:
        c: [D, D] cross-correlation.
        lambd: weight of the redundancy term.
    """
    return (1 - c.diagonal()).square().sum() + lambd * off_diagonal(c).square().sum()


class Settings(MethodConfig):
    """Hyper-parameters of Barlow Twins; the defaults are those of the authors' ImageNet runs."""

    name: str = "barlow_twins"
    # widths of the projector's layers; the last is D
    projector: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (
        8192,
        8192,
        8192,
    )
    lambd: Annotated[float, Field(ge=0)] = 0.0051  # the code's; the paper rounds it to 0.005
    scale: Annotated[float, Field(gt=0)] = 1.0  # of the loss, which grows with D: for plain SGD


class BarlowTwins(Method):
    """One network for both views, whose outputs shall be equal and their columns unrelated.

    Every view goes through the network on its own, so BatchNorm sees one view at a time.

    The gradient is that of the loss of the whole batch, on any number of ranks. The authors' sum
    over ranks is invisible to autograd, so that theirs is smaller by the number of ranks, which
    only LARS forgives.

    Args:
        config: the hyper-parameters.
        backbone: the encoder, which is kept; the projector is thrown away.
    """

    Config = Settings
    batch_coupled = True

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.projector = mlp((backbone.dim, *config.projector), last_bias=False)
        self.standardize = Standardize(config.projector[-1])

    def embed(self, views: Mapping[str, Tensor], t: Progress) -> dict[str, Tensor]:
        """Projections ``z``, [2, B, D], of ``views["global"]``, float32 [2, B, C, S, S]."""
        z = [self.projector(self.backbone(x).pooled) for x in pair(views["global"])]
        return {"z": torch.stack(z)}

    def loss(self, embedded: Mapping[str, Tensor], t: Progress) -> Output:
        """Equation 1.

        Metrics: the mean of C's diagonal, and the root mean square of the rest.
        """
        c = cross_correlation(*(self.standardize(view) for view in embedded["z"]))
        loss = self.config.scale * barlow_twins_loss(c, self.config.lambd)
        with torch.no_grad():
            redundant = off_diagonal(c).square().sum() / max(c.numel() - len(c), 1)
            metrics = {"on_diagonal": c.diagonal().mean(), "off_diagonal": redundant.sqrt()}
        return Output(loss, metrics, {})

    def encoder(self) -> Backbone:
        """The backbone."""
        return self.backbone


def recipe(scale: Scale, size: int) -> Recipe:
    """The paper's ImageNet recipe, and one for tens of thousands of small images."""
    views = asymmetric_views(size)
    if scale == "paper":
        return Recipe(
            source="arXiv 2103.03230: section 2.2; facebookresearch/barlowtwins, main.py",
            deviations=(
                "lambda 0.0051 and weight decay 1e-6 as in the code; the paper: 0.005 and 1.5e-6",
                "gradients do not shrink with the number of ranks, as the code's do",
                "the blur's kernel is a tenth of the side, as in BYOL; the code has Pillow's",
                "images are first scaled to fit the canvas; the code crops the full image",
            ),
            batch_size=2048,
            epochs=1000,
            canvas=None if size <= SMALL_IMAGE else 512,
            method=Settings(),
            backbone=BackboneConfig(name="resnet50"),
            optim=Optim(
                name="lars",
                lr=0.2,
                lr_1d=0.0048 / 0.2,  # the code's --learning-rate-biases
                weight_decay=1e-6,
                warmup=10,
                final_lr=0.001,
            ),
            views=views,
        )
    return Recipe(
        source="arXiv 2103.03230, shortened",
        deviations=(
            "ResNet-18, batch 64 and AdamW: with little data and time, steps count",
            "projector 512 wide and lambda 0.02 to go with it, one learning rate for all tensors",
            "crops of a fifth of the image or more (0.35 of small images), saturation 0.4",
        ),
        batch_size=64,
        epochs=100,
        method=Settings(projector=(512, 512, 512), lambd=0.02),
        backbone=BackboneConfig(name="resnet18"),
        optim=SMALL_OPTIM,
        views=tuple(
            view.model_copy(update={"scale": small_scale(size), "saturation": 0.4})
            for view in views
        ),
    )
