"""Supervised classification: the control that self-supervision is measured against, fine-tuning.

Softmax cross-entropy on a linear classifier over the encoder's features, as in He et al., arXiv
1512.03385. For fine-tuning, mixup (Zhang et al., arXiv 1710.09412), CutMix (Yun et al., arXiv
1905.04899) and rates that decay towards the input, as in MAE, arXiv 2111.06377, appendix A.1, table
9, and facebookresearch/mae. The only method here that reads labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from selfsame.backbones import SMALL_IMAGE, layer_numbers
from selfsame.nn.classify import Linear
from selfsame.nn.precision import wide
from selfsame.optim import Optim
from selfsame.recipe import BackboneConfig, MethodConfig, Recipe, Scale
from selfsame.types import Backbone, Method, Output, Progress, Rate
from selfsame.views.spec import View


class Settings(MethodConfig):
    """Hyper-parameters of supervised training."""

    name: str = "supervised"
    classes: Annotated[int, Field(ge=2)] = 1000
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the labels
    mixup: Annotated[float, Field(ge=0)] = 0.0  # of the Beta distribution; 0 for none
    cutmix: Annotated[float, Field(ge=0)] = 0.0  # the same; with both, a coin decides at each step
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the rate, from layer to layer


class Supervised(Method):
    """An encoder and a linear classifier."""

    Config = Settings
    labelled = True

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.classifier = Linear(backbone.dim, config.classes)
        self.layers = layer_numbers(backbone)

    def forward(self, views: Mapping[str, Tensor], t: Progress) -> Output:
        """Cross-entropy of ``views["global"]``, [V, B, C, S, S], with ``views["label"]``, [B]."""
        x, label = views["global"].flatten(0, 1), views["label"].repeat(len(views["global"]))
        target = F.one_hot(label, self.config.classes).to(x.dtype)
        target = target * (1 - self.config.smoothing) + self.config.smoothing / target.shape[1]
        if self.training:
            x, target = self.mixed(x, target)
        logits = wide(self.classifier(self.backbone(x).pooled))
        accuracy = (logits.argmax(1) == label).float().mean()
        return Output(F.cross_entropy(logits, target), {"accuracy": accuracy.detach()}, {})

    def mixed(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mixup or CutMix of the batch with itself in reverse, or neither, drawn for the step."""
        alphas = self.config.mixup, self.config.cutmix
        if not any(alphas):
            return x, target
        cut = alphas[1] > 0 and (alphas[0] == 0 or float(torch.rand(())) < 0.5)
        alpha = alphas[cut]
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        if not cut:
            return mixup(x, target, share)
        return cutmix(x, target, share, tuple(torch.rand(2).tolist()))

    def rate(self, name: str) -> Rate:
        """``layer_decay ** (depth + 1 - layer)``: the classifier has the whole rate."""
        depth = len(self.backbone.blocks())
        layer = self.layers.get(name.removeprefix("backbone."), depth + 1)
        return Rate(self.config.layer_decay ** (depth + 1 - layer))

    def encoder(self) -> Backbone:
        """The backbone without the classifier."""
        return self.backbone

    def encoder_head(self) -> Linear:
        """The classifier of the pooled features."""
        return self.classifier


def mixup(x: Tensor, target: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """``share`` of each image and the rest of its partner, the batch in reverse; targets alike.

    Args:
        x: [B, C, S, S].
        target: [B, K], what each image shows.
        share: In [0, 1].
    """
    return x.lerp(x.flip(0), 1 - share), target.lerp(target.flip(0), 1 - share)


def cutmix(
    x: Tensor, target: Tensor, share: float, centre: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """A box of the partner pasted into each image; targets are mixed by the area that remains.

    Args:
        x: [B, C, S, S].
        target: [B, K].
        share: Of the area that remains, before the box is cut off at the border.
        centre: Of the box, each in [0, 1): vertical, horizontal.
    """
    box = []
    for side, at in zip(x.shape[-2:], centre, strict=True):
        cut, middle = int(side * (1 - share) ** 0.5), int(at * side)
        box.append(slice(max(0, middle - cut // 2), min(side, middle + (cut + 1) // 2)))
    rows, columns = box
    x = x.clone()
    x[..., rows, columns] = x.flip(0)[..., rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return x, target.lerp(target.flip(0), area / (x.shape[-2] * x.shape[-1]))


def recipe(scale: Scale, size: int) -> Recipe:
    """The ImageNet recipe of the ResNets, and one for few small images."""
    view = View(size=size, jitter=0.0, grayscale=0.0, blur=0.0)
    if scale == "paper":
        return Recipe(
            source="arXiv 1512.03385, section 3.4; cosine decay and warm-up: arXiv 1706.02677",
            deviations=("cosine learning rate in place of three divisions by 10",),
            epochs=90,
            canvas=None if size <= SMALL_IMAGE else 512,
            method=Settings(),
            backbone=BackboneConfig(name="resnet50"),
            optim=Optim(name="sgd", lr=0.1, weight_decay=1e-4, warmup=5),
            views=(view,),
        )
    return Recipe(
        source="arXiv 1512.03385, shortened",
        deviations=("ResNet-18, AdamW: small data on one machine",),
        batch_size=128,
        epochs=50,
        method=Settings(),
        backbone=BackboneConfig(name="resnet18"),
        optim=Optim(name="adamw", lr=1e-3, scaling="none", weight_decay=0.05, warmup=5),
        views=(view.model_copy(update={"scale": (0.4, 1.0)}),),
    )
