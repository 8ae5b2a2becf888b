"""DINO: emerging properties in self-supervised vision transformers.

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin, ICCV 2021, arXiv 2104.14294.
Authors' code: facebookresearch/dino. The equations, which iBOT and DINOv2 share, are functions of
``selfsame.nn.selfdistill``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from selfsame import schedule
from selfsame.backbones import SMALL_IMAGE
from selfsame.nn import ema
from selfsame.nn.heads import DINOHead
from selfsame.nn.selfdistill import (
    dino_loss,
    entropy,
    information,
    multi_crop,
    resting,
    teacher_probabilities,
    teacher_temperature,
    update_center,
)
from selfsame.optim import Optim
from selfsame.recipe import SMALL_OPTIM, BackboneConfig, MethodConfig, Recipe, Scale
from selfsame.types import Backbone, Method, Output, Progress
from selfsame.views.presets import asymmetric_views, local_size, small_scale
from selfsame.views.spec import View


class Settings(MethodConfig):
    """Hyper-parameters of DINO; the defaults are those of the paper's ViTs on ImageNet."""

    name: str = "dino"
    outputs: Annotated[int, Field(ge=2)] = 65536  # K, prototypes of the head
    hidden: Annotated[int, Field(ge=1)] = 2048  # width of the head's hidden layers
    bottleneck: Annotated[int, Field(ge=1)] = 256
    layers: Annotated[int, Field(ge=1)] = 3  # of the head, before the prototypes
    head_norm: bool = False  # BatchNorm in the head; for convolutional networks
    fixed_scale: bool = True  # prototypes of unit length; the code's norm_last_layer
    student_temperature: Annotated[float, Field(gt=0)] = 0.1
    teacher_temperature: Annotated[float, Field(gt=0)] = 0.07
    teacher_temperature_start: Annotated[float, Field(gt=0)] = (
        0.04  # constant in the code's default
    )
    teacher_warmup: Annotated[float, Field(ge=0)] = 30.0  # of the temperature, epochs
    center_momentum: Annotated[float, Field(ge=0, le=1)] = 0.9
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.996  # of the teacher; a cosine takes it to 1
    freeze_last: Annotated[float, Field(ge=0)] = 1.0  # epochs that the last layer rests


class DINO(Method):
    """A student sees all crops, its teacher the global ones; both describe them by K prototypes.

    Args:
        config: the hyper-parameters.
        backbone: the student's; any network that takes crops of two sizes.
    """

    Config = Settings
    shardable = True
    center: Tensor

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.head = DINOHead(
            backbone.dim,
            config.outputs,
            hidden=config.hidden,
            bottleneck=config.bottleneck,
            layers=config.layers,
            norm=config.head_norm,
            fixed_scale=config.fixed_scale,
        )
        self.teacher = ema.teacher_of(backbone)
        self.teacher_head = ema.teacher_of(self.head)
        self.register_buffer("center", torch.zeros(config.outputs))

    def forward(self, views: Mapping[str, Tensor], t: Progress) -> Output:
        """Loss of ``views["global"]``, [G, B, C, S, S], and ``views["local"]``, if there are any.

        Metrics: the teacher's entropy, between 0 and ln K, and the divergence of the student from
        it, which vanish together when the outputs collapse onto one prototype (section 5.3); and
        the targets' `information` about their images, which vanishes in every collapse.
        """
        config, x = self.config, views["global"]
        crops = [views[name].flatten(0, 1) for name in ("global", "local") if name in views]
        features = multi_crop(lambda x: self.backbone(x).pooled, crops)
        student = self.head(features).unflatten(0, (-1, x.shape[1]))  # [V, B, K]
        with torch.no_grad():
            logits = self.teacher_head(self.teacher(x.flatten(0, 1)).pooled)
            temperature = teacher_temperature(
                t,
                config.teacher_warmup,
                config.teacher_temperature_start,
                config.teacher_temperature,
            )
            p = teacher_probabilities(logits, self.center, temperature).view(*x.shape[:2], -1)
        loss = dino_loss(p, student, config.student_temperature)
        h = entropy(p)
        metrics = {
            "teacher_entropy": h,
            "divergence": loss.detach() - h,
            "information": information(p),
        }
        return Output(loss, metrics, {"center": logits.mean(0)})

    def frozen(self, t: Progress) -> Iterable[nn.Parameter]:
        """The last layer, during the first epoch (appendix C)."""
        return self.head.last_layer.parameters() if resting(t, self.config.freeze_last) else ()

    def after_step(self, t: Progress, carry: Sequence[Mapping[str, Tensor]]) -> None:
        """Move the teacher towards the student, and the centre towards the teacher's outputs."""
        momentum = schedule.cosine(t.step, t.total, self.config.momentum, 1.0)
        ema.update(self.teacher, self.backbone, momentum)
        ema.update(self.teacher_head, self.head, momentum)
        update_center(self.center, [c["center"] for c in carry], self.config.center_momentum)

    def encoder(self) -> Backbone:
        """The teacher's backbone: it is better than the student during training (figure 6)."""
        return self.teacher


def crops(
    size: int,
    local_size: int,
    count: int,
    global_scale: tuple[float, float],
    local_scale: tuple[float, float],
) -> tuple[View, ...]:
    """Two global views and ``count`` local ones, augmented as the three papers do."""
    first, second = (
        view.model_copy(update={"scale": global_scale}) for view in asymmetric_views(size)
    )
    local = {
        "name": "local",
        "count": count,
        "size": local_size,
        "scale": local_scale,
        "blur": first.blur / 2,
    }
    return first, second, first.model_copy(update=local)


def recipe(scale: Scale, size: int) -> Recipe:
    """The paper's ImageNet recipe of ViT-S/16, and one for tens of thousands of small images."""
    if scale == "paper":
        local = local_size(size, 96 / 224)
        return Recipe(
            source="arXiv 2104.14294: sections 3.2 and 4, appendix C; facebookresearch/dino",
            deviations=(
                "crops of (0.25, 1) and (0.05, 0.25), as in the 800-epoch runs; the default is "
                "(0.4, 1) and (0.05, 0.4)",
                "the loss is the mean over pairs of views, as in the code; the paper adds them",
                "the teacher's temperature rises step by step; the code's, once an epoch",
                "blur has a kernel of a tenth of the side; the code's is Pillow's",
                "positions are interpolated to the grid's size; the code adds 0.1 to it",
                "bfloat16 in place of float16, the last layer in float32",
                "images are first scaled to fit the canvas; the code crops the full image",
            ),
            batch_size=1024,
            epochs=800,
            canvas=None if size <= SMALL_IMAGE else 512,
            method=Settings(fixed_scale=False),  # as the code advises for ViT-S
            backbone=BackboneConfig(name="vit_small", options={"drop_path": 0.1}),
            optim=Optim(
                name="adamw",
                lr=5e-4,
                final_lr=5e-4,  # of the peak: 1e-6
                closed_warmup=True,
                weight_decay=0.04,
                final_weight_decay=0.4,
                clip="tensor",
                clip_norm=3.0,
            ),
            views=crops(size, local, 10, (0.25, 1.0), (0.05, 0.25)),
        )
    return Recipe(
        source="arXiv 2104.14294, shortened",
        deviations=(
            "ResNet-18, BatchNorm in the head, batch 64: with little data and time, steps count",
            "256 prototypes, head 512 wide, momentum from 0.99, a constant temperature of 0.04 for "
            "the teacher",
            "constant weight decay; 4 local crops of half the side",
        ),
        batch_size=64,
        epochs=100,
        method=Settings(
            outputs=256, hidden=512, head_norm=True, teacher_temperature=0.04, momentum=0.99
        ),
        backbone=BackboneConfig(name="resnet18"),
        optim=SMALL_OPTIM.model_copy(update={"clip": "tensor", "clip_norm": 3.0}),
        views=crops(size, local_size(size, 0.5), 4, small_scale(size), (0.1, 0.35)),
    )
