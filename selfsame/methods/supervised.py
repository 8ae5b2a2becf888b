"""Supervised classification: the control that self-supervision is measured against.

Softmax cross-entropy on a linear classifier over the encoder's features, as in He et al., arXiv
1512.03385. The only method here that reads labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from selfsame.backbones import SMALL_IMAGE
from selfsame.nn.precision import wide
from selfsame.optim import Optim
from selfsame.recipe import BackboneConfig, MethodConfig, Recipe, Scale
from selfsame.types import Backbone, Method, Output, Progress
from selfsame.views.spec import View


class Settings(MethodConfig):
    """Hyper-parameters of supervised training."""

    name: str = "supervised"
    classes: Annotated[int, Field(ge=2)] = 1000
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the labels


class Supervised(Method):
    """An encoder and a linear classifier."""

    Config = Settings
    labelled = True

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.dim, config.classes)

    def forward(self, views: Mapping[str, Tensor], t: Progress) -> Output:
        """Cross-entropy of ``views["global"]``, [V, B, C, S, S], with ``views["label"]``, [B]."""
        x, label = views["global"], views["label"].repeat(len(views["global"]))
        logits = wide(self.classifier(self.backbone(x.flatten(0, 1)).pooled))
        loss = F.cross_entropy(logits, label, label_smoothing=self.config.smoothing)
        accuracy = (logits.argmax(1) == label).float().mean()
        return Output(loss, {"accuracy": accuracy.detach()}, {})

    def encoder(self) -> Backbone:
        """The backbone without the classifier."""
        return self.backbone


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
