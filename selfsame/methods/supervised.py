"""Supervised classification: the control that self-supervision is measured against, fine-tuning.

Softmax cross-entropy on a linear classifier over the encoder's features, as in He et al., arXiv
1512.03385. For fine-tuning, mixup (Zhang et al., arXiv 1710.09412), CutMix (Yun et al., arXiv
1905.04899) and rates that decay towards the input, as in MAE, arXiv 2111.06377, appendix A.1, table
9, and facebookresearch/mae. Students aside, the only method here that reads labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from selfsame.backbones import SMALL_IMAGE, layer_numbers
from selfsame.errors import UsageError
from selfsame.nn.classify import Linear
from selfsame.nn.mix import mixed, smoothed
from selfsame.nn.precision import wide
from selfsame.optim import Optim
from selfsame.recipe import BackboneConfig, MethodConfig, Recipe, Scale
from selfsame.types import Backbone, Method, Output, Progress, Rate
from selfsame.views.spec import View


class Settings(MethodConfig):
    """Hyper-parameters of supervised training."""

    name: str = "supervised"
    classes: Annotated[int, Field(ge=0)] = 0  # 0: as the data has
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the labels
    mixup: Annotated[float, Field(ge=0)] = 0.0  # of the Beta distribution; 0 for none
    cutmix: Annotated[float, Field(ge=0)] = 0.0  # the same; with both, a coin decides at each step
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the rate, from layer to layer

    def for_data(self, images: int, classes: Sequence[str] | None) -> Settings:
        """With the number of the classes."""
        count = len(classes or ())
        if count < 2 and not self.classes:
            there = "one class" if count else "none"
            raise UsageError(
                f"supervised learns from labels and the data has {there}",
                tip="put the images in one folder a class",
            )
        if self.classes and self.classes < count:
            raise UsageError(
                f"method.classes is {self.classes} and the data has {count} classes",
                tip="leave it out: they are counted",
            )
        return self.model_copy(update={"classes": self.classes or count})


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
        target = smoothed(label, self.config.classes, self.config.smoothing).to(x.dtype)
        if self.training:
            x, target = mixed(x, target, self.config.mixup, self.config.cutmix)
        logits = wide(self.classifier(self.backbone(x).pooled))
        accuracy = (logits.argmax(1) == label).float().mean()
        return Output(F.cross_entropy(logits, target), {"accuracy": accuracy.detach()}, {})

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
