"""DINOv2: learning robust visual features without supervision.

Oquab, Darcet, Moutakanni et al., TMLR 2024, arXiv 2304.07193.
Authors' code: facebookresearch/dinov2. DINO's loss on class tokens, iBOT's on masked patches, both
functions of ``selfsame.nn.selfdistill``, and KoLeo, which spreads the features of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from selfsame import dist, schedule
from selfsame.backbones import SMALL_IMAGE
from selfsame.backbones.vit import layer_of
from selfsame.methods import ibot
from selfsame.methods.dino import crops
from selfsame.nn import ema
from selfsame.nn.heads import DINOHead
from selfsame.nn.precision import unit
from selfsame.nn.selfdistill import (
    dino_loss,
    entropy,
    few_lengths,
    information,
    masked_places,
    patch_weights,
    resting,
    see_masked,
    teacher_probabilities,
    teacher_temperature,
    update_center,
    weighted_patch_loss,
)
from selfsame.nn.sinkhorn import sinkhorn
from selfsame.optim import Optim
from selfsame.recipe import BackboneConfig, MethodConfig, Recipe, Scale
from selfsame.types import Backbone, Method, Output, Progress, Rate
from selfsame.views.masks import Draws, block_masks, masked_shares
from selfsame.views.presets import local_size

KOLEO_EPS = 1e-8


def koleo(x: Tensor, group: int = 0) -> Tensor:
    """The Kozachenko-Leonenko regulariser: minus the mean log distance to the nearest neighbour.

    Section 4 of the paper, from Sablayrolles et al., arXiv 1806.03198. On unit vectors, in float32
    whatever the autocast; float64 stays float64. Zero where there is no neighbour.

    Args:
        x: [B, D], features of different images.
        group: images in a row among which neighbours are looked for; 0 for all.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = unit(x, KOLEO_EPS)
        parts = torch.split(x, group or len(x))
        others = torch.cat([part[nearest(part)] for part in parts if len(part) > 1] or [x[:0]])
        those = torch.cat([part for part in parts if len(part) > 1] or [x[:0]])
        distances = F.pairwise_distance(those, others, eps=KOLEO_EPS)
        return -(distances + KOLEO_EPS).log().sum() / len(x)


@torch.no_grad()
def nearest(x: Tensor) -> Tensor:
    """The nearest other row of each unit vector, int64 [B], by inner product."""
    return (x @ x.T).fill_diagonal_(float("-inf")).argmax(1)


def layer_rate(name: str, depth: int, decay: float, patch_rate: float) -> float:
    """Share of the learning rate that a parameter gets: less towards the input (appendix B.1).

    Args:
        name: As ``named_parameters`` gives it.
        depth: Number of blocks.
        decay: Factor from a layer to the one below.
        patch_rate: Further factor of the patch projection.
    """
    rate: float = decay ** (depth + 1 - layer_of(name, depth))
    return rate * patch_rate if "patch_embed" in name else rate


class Settings(MethodConfig):
    """Hyper-parameters of DINOv2; the defaults are the paper's.

    Its ImageNet-1k runs, the code's default, centre the targets and share one head.
    """

    name: str = "dinov2"
    outputs: Annotated[int, Field(ge=2)] = 131072  # prototypes of each head
    separate_heads: bool = True  # one for class tokens and one for patches, or one for both
    hidden: Annotated[int, Field(ge=1)] = 2048  # width of the heads' hidden layers
    bottleneck: Annotated[int, Field(ge=1)] = 384
    layers: Annotated[int, Field(ge=1)] = 3  # of a head, before the prototypes
    targets: Literal["sinkhorn", "centering"] = "sinkhorn"
    sinkhorn_iterations: Annotated[int, Field(ge=1)] = 3
    center_momentum: Annotated[float, Field(ge=0, le=1)] = 0.9  # of "centering"
    student_temperature: Annotated[float, Field(gt=0)] = 0.1
    teacher_temperature: Annotated[float, Field(gt=0)] = 0.07
    teacher_temperature_start: Annotated[float, Field(gt=0)] = 0.04
    teacher_warmup: Annotated[float, Field(ge=0)] = 30.0  # of the temperature, epochs
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.994  # of the teacher; a cosine takes it to 1
    freeze_last: Annotated[float, Field(ge=0)] = 1.0  # epochs that the last layers rest
    class_weight: Annotated[float, Field(ge=0)] = 1.0  # of DINO's loss
    patch_weight: Annotated[float, Field(ge=0)] = 1.0  # of iBOT's
    koleo_weight: Annotated[float, Field(ge=0)] = 0.1
    koleo_views: Annotated[int, Field(ge=1)] = 2  # global views with KoLeo: code 2, paper 1
    koleo_group: Annotated[int, Field(ge=0)] = 0  # images among which a neighbour is sought; 0: all
    mask_probability: Annotated[float, Field(ge=0, le=1)] = 0.5  # that a global view is masked
    mask_ratio: tuple[float, float] = (0.1, 0.5)  # range of the share of masked patches
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.9  # of the learning rate
    patch_rate: Annotated[float, Field(gt=0)] = 0.2  # of the patch projection's learning rate

    @model_validator(mode="after")
    def _ratios_are_ordered(self) -> Settings:
        if not 0 <= self.mask_ratio[0] <= self.mask_ratio[1] <= 1:
            raise ValueError(f"mask_ratio must be (low, high) in [0, 1], not {self.mask_ratio}")
        return self


class DINOv2(Method):
    """DINO and iBOT together, with KoLeo and Sinkhorn's balanced targets.

    Args:
        config: the hyper-parameters.
        backbone: the student's; a transformer whose patches can be replaced.
    """

    Config = Settings
    needs = frozenset({"tokens", "replace"})
    shardable = True
    batch_coupled = True
    center: Tensor
    patch_center: Tensor

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.head = self._head()
        self.patch_head = self._head() if config.separate_heads else None
        self.teacher = ema.teacher_of(backbone)
        self.teacher_head = ema.teacher_of(self.head)
        self.teacher_patch_head = ema.teacher_of(self.patch_head) if self.patch_head else None
        self.mask_token = nn.Parameter(torch.zeros(1, backbone.dim))  # 2-d: the code decays it
        self.register_buffer("center", torch.zeros(config.outputs))
        self.register_buffer("patch_center", torch.zeros(config.outputs))

    def _head(self) -> DINOHead:
        return DINOHead(
            self.backbone.dim,
            self.config.outputs,
            hidden=self.config.hidden,
            bottleneck=self.config.bottleneck,
            layers=self.config.layers,
            fixed_scale=False,
        )

    def draw(
        self, views: Mapping[str, Tensor], index: Tensor, *, seed: int, epoch: int
    ) -> Mapping[str, Tensor]:
        """``"mask"``, bool [G, B, N]: the patches that the student's global views lack."""
        count, batch, _, height, width = views["global"].shape
        assert self.backbone.stride is not None
        grid = height // self.backbone.stride, width // self.backbone.stride
        draws = Draws(seed, epoch, index, count)
        share = masked_shares(draws, self.config.mask_probability, self.config.mask_ratio)
        target = np.floor(share * grid[0] * grid[1])
        masks = block_masks(draws, target, grid, smallest=4, largest=0.5 * grid[0] * grid[1])
        return {"mask": masks.view(count, batch, -1)}

    def embed(self, views: Mapping[str, Tensor], t: Progress) -> dict[str, Tensor]:
        """What the heads' last layers get, and the students' features that KoLeo spreads.

        Of ``views["global"]``, [G, B, C, S, S], its ``"mask"``, and ``"local"`` if given. The n
        masked patches are rows of [1, n, ...], each with ``weight``, its share of its image.
        """
        x, mask = views["global"].flatten(0, 1), views["mask"].flatten(0, 1)
        shape, places = views["global"].shape[:2], masked_places(mask)
        rows, n = few_lengths(places, mask.numel()), len(places)
        features, pooled = see_masked(
            self.backbone, x, mask, self.mask_token[0], views.get("local")
        )
        assert features.tokens is not None
        student, patches = self.head.embed(pooled), features.tokens.flatten(0, 1)[rows]
        with torch.no_grad():
            taught = self.teacher(x)
            taught_patches = taught.tokens.flatten(0, 1)[rows]
            head, patch_head = self.teacher_head, self.teacher_patch_head or self.teacher_head
            teacher = head.embed(taught.pooled).view(*shape, -1)
            teacher_patch = patch_head.embed(taught_patches)[None, :n]
        return {
            "pooled": features.pooled.view(*shape, -1),  # [G, B, D]
            "student": student.view(-1, shape[1], student.shape[-1]),  # [V, B, bottleneck]
            "student_patch": (self.patch_head or self.head).embed(patches)[None, :n],
            "teacher": teacher,
            "teacher_patch": teacher_patch,
            "weight": patch_weights(mask, places, teacher.dtype)[None],
        }

    def loss(self, embedded: Mapping[str, Tensor], t: Progress) -> Output:
        """The weighted sum of DINO's loss, iBOT's and KoLeo.

        Metrics: the teacher's entropy, the student's divergence from it and the targets'
        information, on class tokens; the loss of the masked patches and KoLeo, unweighted.
        """
        config = self.config
        shape = embedded["pooled"].shape[:2]
        student = self.head.last_layer(embedded["student"])  # [V, B, K]
        student_patch = (self.patch_head or self.head).last_layer(embedded["student_patch"][0])
        views = [dist.gather(z) for z in embedded["pooled"][: config.koleo_views]]
        spread = torch.stack([koleo(z, config.koleo_group) for z in views]).sum()

        with torch.no_grad():
            start, end = config.teacher_temperature_start, config.teacher_temperature
            tau = teacher_temperature(t, config.teacher_warmup, start, end)
            logits = self.teacher_head.last_layer(embedded["teacher"].flatten(0, 1))
            patch_head = self.teacher_patch_head or self.teacher_head
            patch_logits = patch_head.last_layer(embedded["teacher_patch"][0])
            p = self._targets(logits, self.center, tau).view(*shape, -1)
            p_patch = self._targets(patch_logits, self.patch_center, tau)
            carry = {
                "center": logits.mean(0),
                "patch_sum": patch_logits.sum(0),
                "patch_count": patch_logits.new_full((), len(patch_logits)),
            }

        # The code adds the terms of 2 global and n local views and divides them by 2 + 2 n: the
        # mean over DINO's pairs.
        class_loss = dino_loss(p, student, config.student_temperature)
        weight, count = embedded["weight"][0], shape.numel()
        tau = config.student_temperature
        masked_loss = weighted_patch_loss(p_patch, student_patch, weight, count, tau)
        loss = config.class_weight * class_loss + config.patch_weight * masked_loss
        h = entropy(p)
        metrics = {
            "teacher_entropy": h,
            "divergence": class_loss.detach() - h,
            "information": information(p),
            "patch_loss": masked_loss.detach(),
            "koleo": spread.detach(),
        }
        return Output(loss + config.koleo_weight * spread, metrics, carry)

    def _targets(self, logits: Tensor, center: Tensor, temperature: float) -> Tensor:
        if self.config.targets == "sinkhorn":
            return sinkhorn(logits, temperature, self.config.sinkhorn_iterations)
        return teacher_probabilities(logits, center, temperature)

    def frozen(self, t: Progress) -> Iterable[nn.Parameter]:
        """The last layers, during the first epoch."""
        if not resting(t, self.config.freeze_last):
            return ()
        heads = [head for head in (self.head, self.patch_head) if head is not None]
        return [p for head in heads for p in head.last_layer.parameters()]

    def rate(self, name: str) -> Rate:
        """Layers learn less towards the input, the patch projection less still."""
        config, depth = self.config, len(self.backbone.blocks())
        return Rate(layer_rate(name, depth, config.layer_decay, config.patch_rate))

    def after_step(self, t: Progress, carry: Sequence[Mapping[str, Tensor]]) -> None:
        """Move the teacher towards the student, and the centres towards the teacher's outputs."""
        momentum = schedule.cosine(t.step, t.total, self.config.momentum, 1.0)
        ema.update(self.teacher, self.backbone, momentum)
        ema.update(self.teacher_head, self.head, momentum)
        if self.teacher_patch_head is not None and self.patch_head is not None:
            ema.update(self.teacher_patch_head, self.patch_head, momentum)
        m = self.config.center_momentum
        update_center(self.center, [c["center"] for c in carry], m)
        # the mean over all masked patches; without one the centre stays where it is
        patches = torch.stack([torch.cat([c["patch_sum"], c["patch_count"][None]]) for c in carry])
        total = dist.total(patches.sum(0))
        mean = torch.where(total[-1] > 0, total[:-1] / total[-1], self.patch_center)
        self.patch_center.lerp_(mean.to(self.patch_center.dtype), 1.0 - m)

    def encoder(self) -> Backbone:
        """The teacher's backbone, which the paper evaluates."""
        return self.teacher


def recipe(scale: Scale, size: int) -> Recipe:
    """The code's ImageNet-1k recipe of ViT-L/16, and one for tens of thousands of small images."""
    if scale == "paper":
        local = local_size(size, 96 / 224)
        return Recipe(
            source="arXiv 2304.07193: section 4, appendix B; facebookresearch/dinov2: "
            "ssl_default_config.yaml, vitl16_short.yaml",
            deviations=(
                "each view is masked with probability 0.5, at a ratio from U(0.1, 0.5); the code "
                "masks half of a rank's views, at ratios spread evenly over that range",
                "an epoch is a pass over the data, 625 steps; the code's has 1250",
                "stochastic depth grows linearly with depth; the code's is the same everywhere",
                "while the last layer rests its moments rest too; the code sets its rate to 0",
                "the mask token's gradient is clipped on its own; the code's with the backbone's",
                "blur has a kernel of a tenth of the side; the code's is torchvision's of 9 px",
                "positions are interpolated to the grid's size; the code adds 0.1 to it",
                "bfloat16 in place of float16, the last layers in float32",
                "images are first scaled to fit the canvas; the code crops the full image",
            ),
            batch_size=2048,
            epochs=200,
            canvas=None if size <= SMALL_IMAGE else 512,
            method=Settings(
                outputs=65536,
                separate_heads=False,
                bottleneck=256,
                targets="centering",
                momentum=0.992,
                teacher_warmup=60,
                freeze_last=2,
                koleo_group=64,  # the code's: the images of a GPU
            ),
            backbone=BackboneConfig(
                name="vit_large", options={"drop_path": 0.3, "layer_scale": 1e-5}
            ),
            optim=Optim(
                name="adamw",
                lr=4e-3,
                scaling="sqrt",
                reference_batch=1024,
                final_lr=1e-6 / (4e-3 * 2**0.5),
                warmup=20,
                closed_warmup=True,
                weight_decay=0.04,
                final_weight_decay=0.4,
                clip="module",
                clip_norm=3.0,
            ),
            views=crops(size, local, 8, (0.32, 1.0), (0.05, 0.32)),
        )
    small = ibot.recipe("small", size)
    return small.model_copy(
        update={
            "source": "arXiv 2304.07193, shortened",
            "deviations": (
                *small.deviations[:2],
                "256 prototypes, one head 512 wide",
                "temperature 0.04 and momentum from 0.99 of the teacher",
                "no layer decay, constant weight decay; 2 local crops of half the side",
            ),
            "method": Settings(
                outputs=256,
                separate_heads=False,
                hidden=512,
                bottleneck=256,
                teacher_temperature=0.04,
                momentum=0.99,
                layer_decay=1.0,
                patch_rate=1.0,
            ),
            "optim": small.optim.model_copy(update={"clip": "module"}),
        }
    )
