"""DeiT: training data-efficient image transformers & distillation through attention.

Touvron, Cord, Douze, Massa, Sablayrolles, Jegou, ICML 2021, arXiv 2012.12877.
Authors' code: facebookresearch/deit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from selfsame.backbones import SMALL_IMAGE
from selfsame.errors import UsageError
from selfsame.nn.classify import Linear
from selfsame.nn.mix import mixed, smoothed
from selfsame.nn.precision import wide
from selfsame.nn.taught import Taught, TaughtConfig, Weight
from selfsame.nn.teacher import Teacher
from selfsame.optim import Optim
from selfsame.recipe import SMALL_OPTIM, BackboneConfig, Recipe, Scale
from selfsame.types import Backbone, Features, Output, Progress
from selfsame.views.spec import View


def hard_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy with the class that the teacher takes the image for: equation 3's second term.

    Args:
        student: [n, K] logits of the distillation token, float32 or wider.
        teacher: [n, K].
    """
    return F.cross_entropy(student, teacher.argmax(1))


def soft_loss(
    student: Tensor, teacher: Tensor, temperature: float, *, by_class: bool = False
) -> Tensor:
    """``tau^2 KL(softmax(teacher / tau) || softmax(student / tau))``: equation 2's second term.

    Args:
        student: [n, K] logits of the distillation token, float32 or wider.
        teacher: [n, K].
        temperature: tau.
        by_class: Divide by n K, as ``losses.py`` of the code does, in place of n.
    """
    log_q, log_p = (F.log_softmax(z / temperature, dim=1) for z in (student, teacher))
    total = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return total * temperature**2 / (student.numel() if by_class else len(student))


class Settings(TaughtConfig):
    """Hyper-parameters; the defaults are those of the code."""

    name: str = "deit"
    kind: Literal["hard", "soft"] = "hard"
    alpha: Weight = 0.5  # of the distillation token's loss; the labels have the rest
    temperature: Annotated[float, Field(gt=0)] = 1.0  # tau, of soft distillation; the paper: 3
    by_class: bool = False  # soft distillation over K as well: the code's form
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1  # of the labels
    mixup: Weight = 0.8
    cutmix: Weight = 1.0

    def labels_weight(self) -> float:
        """What distillation leaves."""
        return max(0.0, 1.0 - self.alpha)


class DeiT(Taught):
    """A transformer whose class token learns from labels, its distillation token from a teacher.

    Both have a classifier; the encoder's is their mean. Images are mixed, and the teacher sees the
    mixtures, so what it says can be kept only where ``mixup`` and ``cutmix`` are 0.
    """

    Config = Settings
    config: Settings
    asks: ClassVar[frozenset[str]] = frozenset({"logits"})

    def __init__(self, config: Settings, backbone: Backbone, teacher: Teacher) -> None:
        super().__init__(config, backbone, teacher)
        if "distilled" not in backbone.can:
            raise UsageError(
                "the student has no distillation token",
                tip="a ViT of ours has one: --student vit_tiny --set backbone.options.distilled="
                "true; --loss kd takes any network",
            )
        self.mixes = config.mixup > 0 or config.cutmix > 0
        self.classifier = None  # there are two
        width, classes = backbone.dim // 2, teacher.classes
        self.head = Linear(width, classes) if self.labelled else None
        self.head_dist = Linear(width, classes)

    def forward(self, views: Mapping[str, Tensor], t: Progress) -> Output:
        """Equation 3 (or 2) of ``views["global"]``, [V, B, C, S, S]."""
        config, x = self.config, views["global"]
        rows = self.teacher.rows(views["set"], views["index"], len(x))
        count, x = len(x), x.flatten(0, 1)
        target = None
        if self.labelled:
            label = views["label"].repeat(count)
            target = smoothed(label, self.teacher.classes, config.smoothing).to(x.dtype)
        if self.training and self.mixes:
            some = x.new_zeros(len(x), 1) if target is None else target
            x, some = mixed(x, some, config.mixup, config.cutmix)
            target = None if target is None else some
        said = self.teacher(x, self.backbone.norm, self.asked, rows)["logits"]
        features: Features = self.backbone(x)
        first, second = features.pooled.chunk(2, dim=1)
        z = wide(self.head_dist(second))
        if config.kind == "hard":
            loss = config.alpha * hard_loss(z, said)
        else:
            soft = soft_loss(z, said, config.temperature, by_class=config.by_class)
            loss = config.alpha * soft
        metrics = {
            "agreement": (z.argmax(1) == said.argmax(1)).float().mean(),
            "cosine": F.cosine_similarity(wide(first), wide(second)).mean(),
        }
        if self.head is not None and target is not None:
            logits = wide(self.head(first))
            hard = F.cross_entropy(logits, target)
            loss = loss + float(config.labels or 0) * hard
            agreement = (logits.argmax(1) == said.argmax(1)).float().mean()
            metrics |= {"hard": hard, "class_agreement": agreement}
        return Output(loss, {name: value.detach() for name, value in metrics.items()}, {})

    def encoder_head(self) -> Linear:
        """The mean of both classifiers (section 4), of both tokens, one after the other."""
        parts = [self.head_dist] if self.head is None else [self.head, self.head_dist]
        share = 1 / len(parts)
        joint = Linear(2 * self.head_dist.in_features, self.head_dist.out_features)
        joint = joint.to(self.head_dist.weight)
        with torch.no_grad():
            joint.weight.zero_()
            joint.weight[:, -self.head_dist.in_features :] = share * self.head_dist.weight
            if self.head is not None:
                joint.weight[:, : self.head.in_features] = share * self.head.weight
            joint.bias.copy_(torch.stack([part.bias for part in parts]).mean(0))
        return joint


def recipe(scale: Scale, size: int) -> Recipe:
    """DeiT-S on ImageNet, and a small transformer for few small images."""
    view = View(
        size=size,
        jitter=1.0,
        brightness=0.3,
        contrast=0.3,
        saturation=0.3,
        hue=0.0,
        grayscale=0.0,
        blur=0.0,
    )
    lacks = ("no RandAugment, random erasing or repeated augmentation", "colour jitter as well")
    if scale == "paper":
        return Recipe(
            source="arXiv 2012.12877, table 9; facebookresearch/deit, main.py",
            deviations=(*lacks, "images are mixed with the batch in reverse order"),
            batch_size=1024,
            epochs=300,
            canvas=None if size <= SMALL_IMAGE else 512,
            method=Settings(),
            backbone=BackboneConfig(
                name="vit_small", options={"distilled": True, "drop_path": 0.1}
            ),
            optim=Optim(name="adamw", lr=5e-4, reference_batch=512, weight_decay=0.05, warmup=5),
            views=(view,),
        )
    return Recipe(
        source="arXiv 2012.12877, shortened",
        deviations=(*lacks, "ViT-tiny of 6 blocks, batch 64, crops of 40 % and more, no mixing"),
        batch_size=64,
        epochs=100,
        method=Settings(mixup=0.0, cutmix=0.0),
        backbone=BackboneConfig(name="vit_tiny", options={"depth": 6, "distilled": True}),
        optim=SMALL_OPTIM,
        views=(view.model_copy(update={"scale": (0.4, 1.0)}),),
    )
