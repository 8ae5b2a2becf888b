"""iBOT: image BERT pre-training with online tokenizer.

Zhou, Wei, Wang, Shen, Xie, Yuille, Kong, ICLR 2022, arXiv 2111.07832.
Authors' code: bytedance/ibot. The equations, shared with DINO and DINOv2, are functions of
``selfsame.nn.selfdistill``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from selfsame import schedule
from selfsame.methods import dino
from selfsame.nn import ema
from selfsame.nn.heads import DINOHead, Prototypes
from selfsame.nn.selfdistill import (
    dino_loss,
    entropy,
    few_lengths,
    information,
    masked_places,
    patch_loss,
    resting,
    see_masked,
    teacher_probabilities,
    teacher_temperature,
    update_center,
)
from selfsame.recipe import SMALL_OPTIM, BackboneConfig, MethodConfig, Recipe, Scale
from selfsame.types import Backbone, Method, Output, Progress
from selfsame.views.masks import Draws, block_masks, masked_shares, scattered_masks
from selfsame.views.presets import local_size, small_scale


class Settings(MethodConfig):
    """Hyper-parameters of iBOT; the defaults are those of the paper's ViT-S on ImageNet."""

    name: str = "ibot"
    outputs: Annotated[int, Field(ge=2)] = 8192  # K, prototypes
    patch_outputs: Annotated[int, Field(ge=2)] | None = None  # patches' own; None shares (table 9)
    hidden: Annotated[int, Field(ge=1)] = 2048  # width of the head's hidden layers
    bottleneck: Annotated[int, Field(ge=1)] = 256
    layers: Annotated[int, Field(ge=1)] = 3  # of the head, before the prototypes
    fixed_scale: bool = False  # prototypes of unit length; the code's norm_last_layer
    student_temperature: Annotated[float, Field(gt=0)] = 0.1
    teacher_temperature: Annotated[float, Field(gt=0)] = 0.07  # of the class token
    teacher_patch_temperature: Annotated[float, Field(gt=0)] = 0.07
    teacher_temperature_start: Annotated[float, Field(gt=0)] = 0.04  # of both
    teacher_warmup: Annotated[float, Field(ge=0)] = 30.0  # of both, epochs
    center_momentum: Annotated[float, Field(ge=0, le=1)] = 0.9
    patch_center_momentum: Annotated[float, Field(ge=0, le=1)] = 0.9
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.996  # of the teacher; a cosine takes it to 1
    freeze_last: Annotated[float, Field(ge=0)] = 1.0  # epochs that the last layer rests
    class_weight: Annotated[float, Field(ge=0)] = 1.0  # lambda 1
    patch_weight: Annotated[float, Field(ge=0)] = 1.0  # lambda 2
    mask_probability: Annotated[float, Field(ge=0, le=1)] = 0.5  # that a global view is masked
    mask_ratio: tuple[float, float] = (0.1, 0.5)  # range of the share of masked patches
    mask_shape: Literal["block", "random"] = "block"
    mask_start: Annotated[int, Field(ge=0)] = 0  # epoch of the first mask; 50 for the paper's Swin

    @model_validator(mode="after")
    def _ratios_are_ordered(self) -> Settings:
        if not 0 <= self.mask_ratio[0] <= self.mask_ratio[1] <= 1:
            raise ValueError(f"mask_ratio must be (low, high) in [0, 1], not {self.mask_ratio}")
        return self


class IBOTHead(DINOHead):
    """DINO's head, with a last layer of its own for patches unless ``patch_outputs`` is None."""

    def __init__(
        self, inputs: int, outputs: int, patch_outputs: int | None, bottleneck: int, **options: Any
    ) -> None:
        super().__init__(inputs, outputs, bottleneck=bottleneck, **options)
        self.last_layer2 = (
            Prototypes(bottleneck, patch_outputs, fixed_scale=options["fixed_scale"])
            if patch_outputs is not None
            else None
        )

    def patches(self, embedded: Tensor) -> Tensor:
        """Patch logits of what ``embed`` gives; linear in it."""
        last = self.last_layer if self.last_layer2 is None else self.last_layer2
        return last(embedded)  # type: ignore[no-any-return]


class IBOT(Method):
    """DINO on masked views, and the teacher's patch tokens as targets of the masked patches.

    Args:
        config: the hyper-parameters.
        backbone: the student's; a transformer whose patches can be replaced.
    """

    Config = Settings
    needs = frozenset({"tokens", "replace"})
    shardable = True
    center: Tensor
    patch_center: Tensor

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.head = IBOTHead(
            backbone.dim,
            config.outputs,
            config.patch_outputs,
            config.bottleneck,
            hidden=config.hidden,
            layers=config.layers,
            fixed_scale=config.fixed_scale,
        )
        self.teacher = ema.teacher_of(backbone)
        self.teacher_head = ema.teacher_of(self.head)
        self.mask_token = nn.Parameter(torch.zeros(1, backbone.dim))  # 2-d: the code decays it
        self.register_buffer("center", torch.zeros(config.outputs))
        self.register_buffer("patch_center", torch.zeros(config.patch_outputs or config.outputs))

    def draw(
        self, views: Mapping[str, Tensor], index: Tensor, *, seed: int, epoch: int
    ) -> Mapping[str, Tensor]:
        """``"mask"``, bool [G, B, N]: the patches that the student's global views lack."""
        count, batch, _, height, width = views["global"].shape
        assert self.backbone.stride is not None
        grid = height // self.backbone.stride, width // self.backbone.stride
        draws = Draws(seed, epoch, index, count)
        share = masked_shares(draws, self.config.mask_probability, self.config.mask_ratio)
        share *= epoch >= self.config.mask_start
        masks = ibot_masks(draws, share * grid[0] * grid[1], grid, self.config.mask_shape)
        return {"mask": masks.view(count, batch, -1)}

    def forward(self, views: Mapping[str, Tensor], t: Progress) -> Output:
        """Loss of ``views["global"]``, [G, B, C, S, S], its ``"mask"``, and ``"local"`` if given.

        The student sees the global views masked and the local ones whole; the teacher sees the
        global ones whole. Metrics: as DINO's, and the loss of the masked patches.
        """
        config = self.config
        x, mask = views["global"].flatten(0, 1), views["mask"].flatten(0, 1)
        shape, places = views["global"].shape[:2], masked_places(mask)
        features, pooled = see_masked(
            self.backbone, x, mask, self.mask_token[0], views.get("local")
        )
        assert features.tokens is not None
        student = self.head(pooled).unflatten(0, (-1, shape[1]))  # [V, B, K]
        patches = features.tokens.flatten(0, 1)[few_lengths(places, mask.numel())]
        student_patch = self.head.patches(self.head.embed(patches)[: len(places)])

        with torch.no_grad():
            start, warmup = config.teacher_temperature_start, config.teacher_warmup
            tau = teacher_temperature(t, warmup, start, config.teacher_temperature)
            tau_patch = teacher_temperature(
                t, warmup, start, config.teacher_patch_temperature, delay=config.mask_start
            )
            features = self.teacher(x)
            assert features.tokens is not None
            logits = self.teacher_head(features.pooled)
            p = teacher_probabilities(logits, self.center, tau).view(*shape, -1)
            embedded = self.teacher_head.embed(features.tokens.flatten(0, 1))
            patch_logits = self.teacher_head.patches(embedded[places])
            p_patch = teacher_probabilities(patch_logits, self.patch_center, tau_patch)
            # The last layer is linear: the mean of all patches' logits is that of their mean.
            patch_mean = self.teacher_head.patches(embedded.mean(0))

        class_loss = dino_loss(p, student, config.student_temperature)
        masked_loss = patch_loss(p_patch, student_patch, mask, places, config.student_temperature)
        h = entropy(p)
        return Output(
            config.class_weight * class_loss + config.patch_weight * masked_loss,
            {
                "teacher_entropy": h,
                "divergence": class_loss.detach() - h,
                "information": information(p),
                "patch_loss": masked_loss.detach(),
            },
            {"center": logits.mean(0), "patch_center": patch_mean},
        )

    def frozen(self, t: Progress) -> Iterable[nn.Parameter]:
        """The last layers, during the first epoch."""
        if not resting(t, self.config.freeze_last):
            return ()
        return [p for name, p in self.head.named_parameters() if name.startswith("last_layer")]

    def after_step(self, t: Progress, carry: Sequence[Mapping[str, Tensor]]) -> None:
        """Move the teacher towards the student, and the centres towards the teacher's outputs."""
        config = self.config
        momentum = schedule.cosine(t.step, t.total, config.momentum, 1.0)
        ema.update(self.teacher, self.backbone, momentum)
        ema.update(self.teacher_head, self.head, momentum)
        update_center(self.center, [c["center"] for c in carry], config.center_momentum)
        means = [c["patch_center"] for c in carry]
        update_center(self.patch_center, means, config.patch_center_momentum)

    def encoder(self) -> Backbone:
        """The teacher's backbone, which the paper evaluates."""
        return self.teacher


def ibot_masks(
    draws: Draws,
    target: np.ndarray,
    grid: tuple[int, int],
    shape: Literal["block", "random"] = "block",
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Tensor:
    """Masks, bool [n, rows, columns], of ``target`` patches each, [n] (the code's loader).

    Args:
        draws: Numbers for n masks.
        target: Fractions are cut off.
        grid: rows, columns.
        shape: Blocks, none drawn smaller than the ninth of a square grid, or single patches.
        aspect: Range of a block's height over width.
    """
    if shape == "random":
        return scattered_masks(draws, target, grid)
    return block_masks(draws, target, grid, smallest=(min(grid) // 3) ** 2, aspect=aspect)


def recipe(scale: Scale, size: int) -> Recipe:
    """The code's ImageNet recipe of ViT-S/16, and one for tens of thousands of small images."""
    if scale == "paper":
        dinos = dino.recipe("paper", size)  # the code trains with DINO's settings
        return dinos.model_copy(
            update={
                "source": "arXiv 2111.07832: section 4, appendices B and C; bytedance/ibot",
                "deviations": (
                    "crops of (0.25, 1) and (0.05, 0.25), as in the code; appendix B prefers 0.32",
                    *dinos.deviations[1:],
                ),
                "method": Settings(),
            }
        )
    return Recipe(
        source="arXiv 2111.07832, shortened",
        deviations=(
            "ViT-Ti, batch 64: with little data and time, steps count",
            "the mean of the tokens in place of the class token, weights that start as MAE's (0.02 "
            "is too small for so narrow a network): both for a quicker start",
            "256 prototypes, head 512 wide, temperature 0.04 and momentum from 0.99 of the teacher",
            "constant weight decay; 2 local crops of half the side",
        ),
        batch_size=64,
        epochs=100,
        method=Settings(
            outputs=256,
            hidden=512,
            teacher_temperature=0.04,
            teacher_patch_temperature=0.04,
            momentum=0.99,
        ),
        backbone=BackboneConfig(name="vit_tiny", options={"pool": "mean", "init": "xavier"}),
        optim=SMALL_OPTIM.model_copy(update={"lr": 1e-3, "clip": "tensor", "clip_norm": 3.0}),
        views=dino.crops(size, local_size(size, 0.5), 2, small_scale(size), (0.1, 0.35)),
    )
