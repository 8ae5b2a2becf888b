"""SimCLR: a simple framework for contrastive learning of visual representations.

Chen, Kornblith, Norouzi, Hinton, ICML 2020, arXiv 2002.05709.
Authors' code: google-research/simclr.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from selfsame import dist
from selfsame.backbones import SMALL_IMAGE
from selfsame.errors import UsageError
from selfsame.nn.heads import mlp
from selfsame.nn.pairs import negatives_entropy
from selfsame.nn.precision import unit, wide
from selfsame.optim import Optim
from selfsame.recipe import SMALL_OPTIM, BackboneConfig, MethodConfig, Recipe, Scale
from selfsame.types import Backbone, Method, Output, Progress
from selfsame.views.presets import small_scale
from selfsame.views.spec import View

NORM_EPS = 1e-6  # the authors keep the squared norm above 1e-12


def similarities(a: Tensor, b: Tensor, temperature: float, *, normalize: bool = True) -> Tensor:
    """Cosine similarities divided by the temperature: the logits of NT-Xent.

    Computed in float32 whatever the autocast; float64 stays float64.

    Args:
        a: [N, D].
        b: [M, D].
        temperature: The paper's tau.
        normalize: False takes plain inner products (table 5 of the paper, the rows without l2).

    Returns:
        [N, M].
    """
    a, b = (unit(x, NORM_EPS) if normalize else wide(x) for x in (a, b))
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.T / temperature


def nt_xent(z: Tensor, temperature: float, *, normalize: bool = True) -> Tensor:
    """Normalised temperature-scaled cross-entropy, equation 1 and algorithm 1.

    Each of the 2N projections of this rank must find the other view of its image among all
    projections of all ranks, itself left out. The result is the mean over the 2N anchors, as in
    the paper; the authors' code adds the means of the two directions, which is twice that. With
    uniform similarities it is ``ln(2N - 1)``, N counted over all ranks.

    Args:
        z: [2, B, D] projections of the two views, B the same on every rank.
        temperature: The paper's tau.
        normalize: Whether projections are brought to unit length first.

    Returns:
        [] in float32, or float64 where ``z`` is.

    Raises:
        UsageError: ``z`` does not hold exactly two views.
    """
    return F.cross_entropy(*candidates(z, temperature, normalize=normalize))


def candidates(z: Tensor, temperature: float, *, normalize: bool = True) -> tuple[Tensor, Tensor]:
    """What the cross-entropy of ``nt_xent`` is of: logits [2B, 2N] and positives, int64 [2B].

    Arguments and errors are those of ``nt_xent``.
    """
    if z.ndim != 3 or z.shape[0] != 2:
        raise UsageError(
            f"nt_xent needs projections [2, B, D], not {list(z.shape)}",
            tip="stack the projections of the two views along the first dimension",
        )
    everyone = dist.gather(z.transpose(0, 1)).transpose(0, 1)  # [2, W * B, D]
    batch, images = z.shape[1], everyone.shape[1]
    logits = similarities(z.flatten(0, 1), everyone.flatten(0, 1), temperature, normalize=normalize)

    own = torch.arange(batch, device=z.device) + dist.rank() * batch  # columns of the first view
    itself = torch.cat([own, own + images])
    positive = torch.cat([own + images, own])
    return logits.scatter(1, itself[:, None], float("-inf")), positive


class Settings(MethodConfig):
    """Hyper-parameters of SimCLR; the defaults are those of the paper's ImageNet runs."""

    name: str = "simclr"
    temperature: Annotated[float, Field(gt=0)] = 0.1
    hidden: Annotated[int, Field(ge=0)] = 0  # width of the head's hidden layers; 0: the encoder's
    output: Annotated[int, Field(ge=1)] = 128  # width of a projection
    layers: Annotated[int, Field(ge=1)] = 2  # of the head; the authors' later code has 3
    normalize: bool = True  # False: inner products instead of cosines (table 5)


class SimCLR(Method):
    """An encoder, a projection head, and the contrastive loss between two views of each image.

    Args:
        config: the hyper-parameters.
        backbone: the encoder, which is kept; the head is thrown away after training.
    """

    Config = Settings
    batch_coupled = True

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        hidden = config.hidden or backbone.dim
        self.head = mlp((backbone.dim, *[hidden] * (config.layers - 1), config.output))

    def embed(self, views: Mapping[str, Tensor], t: Progress) -> dict[str, Tensor]:
        """Projections ``z``, [2, B, D], of ``views["global"]``, float32 [2, B, C, S, S]."""
        x = views["global"]
        return {"z": self.head(self.backbone(x.flatten(0, 1)).pooled).unflatten(0, x.shape[:2])}

    def loss(self, embedded: Mapping[str, Tensor], t: Progress) -> Output:
        """NT-Xent."""
        config, z = self.config, embedded["z"]
        logits, positive = candidates(z, config.temperature, normalize=config.normalize)
        accuracy = (logits.detach().argmax(1) == positive).float().mean()
        metrics = {"accuracy": accuracy, "negatives": negatives_entropy(logits, positive)}
        return Output(F.cross_entropy(logits, positive), metrics, {})

    def encoder(self) -> Backbone:
        """The backbone: the head's output is worse as a representation (section 4.2)."""
        return self.backbone


def recipe(scale: Scale, size: int) -> Recipe:
    """The paper's ImageNet recipe, and one for tens of thousands of small images."""
    small = size <= SMALL_IMAGE
    strength = 0.5 if small else 1.0  # of the colour distortion: appendix A, and B.9 for CIFAR-10
    view = View(
        count=2,
        size=size,
        brightness=0.8 * strength,
        contrast=0.8 * strength,
        saturation=0.8 * strength,
        hue=0.2 * strength,
        blur=0.0 if small else 0.5,
    )
    if scale == "paper":
        return Recipe(
            source="arXiv 2002.05709: section 2.1, appendices A and B.9; google-research/simclr",
            deviations=(
                "the loss is the mean over anchors, as in the paper; the code's is twice that",
                "weight decay 1e-6 as in the paper; the code's default is 1e-4",
                "head of 2 layers without a BatchNorm after the last, as the paper writes it",
                "brightness is multiplicative, as in the code's default (v2)",
                "pixels are normalised with the backbone's mean and deviation; the code has none",
                "images are first scaled to fit the canvas; the code crops the full image",
            ),
            batch_size=4096,
            epochs=1000,
            canvas=None if small else 512,
            method=Settings(temperature=0.5 if small else 0.1),
            backbone=BackboneConfig(name="resnet50"),
            optim=Optim(name="lars", lr=0.3, weight_decay=1e-6, warmup=10),
            views=(view,),
        )
    return Recipe(
        source="arXiv 2002.05709, shortened",
        deviations=(
            "ResNet-18, batch 64 and AdamW: with little data and time, steps count",
            "temperature 0.2, head 512 wide",
            "crops of a fifth of the image or more (0.35 of small images)",
        ),
        batch_size=64,
        epochs=100,
        method=Settings(temperature=0.2, hidden=512),
        backbone=BackboneConfig(name="resnet18"),
        optim=SMALL_OPTIM,
        views=(view.model_copy(update={"scale": small_scale(size)}),),
    )
