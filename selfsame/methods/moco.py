"""MoCo: momentum contrast, versions 1 and 2.

He, Fan, Wu, Xie, Girshick, CVPR 2020, arXiv 1911.05722 (v1); Chen, Fan, Girshick, He, "Improved
Baselines with Momentum Contrastive Learning", arXiv 2003.04297 (v2).
Authors' code: facebookresearch/moco.

The defaults are version 2's. Version 1 has a linear head and a lower temperature (``layers=1``,
``temperature=0.07``), weaker views and a learning rate that falls in steps: see ``recipe``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from selfsame import dist
from selfsame.backbones import SMALL_IMAGE
from selfsame.errors import UsageError
from selfsame.nn import ema
from selfsame.nn.heads import mlp
from selfsame.nn.pairs import negatives_entropy
from selfsame.nn.precision import unit
from selfsame.nn.queue import Queue
from selfsame.nn.shuffle import in_groups, shuffle, unshuffle
from selfsame.optim import Optim
from selfsame.recipe import SMALL_OPTIM, BackboneConfig, MethodConfig, Recipe, Scale
from selfsame.types import Backbone, Method, Output, Progress
from selfsame.views.presets import mocov2_view, small_scale


def similarities(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Logits of the task "which key is mine": ``[q . k+, q . k_1, ..., q . k_K] / tau``.

    Args:
        q: [B, D] queries of unit length, as all keys are.
        k: [B, D], the positive key of each query.
        queue: [K, D], keys of earlier batches: the negatives.
        temperature: The paper's tau.

    Returns:
        [B, 1 + K], the positive first.
    """
    with torch.autocast(q.device.type, enabled=False):
        positive = (q * k).sum(1, keepdim=True)
        return torch.cat([positive, q @ queue.T], dim=1) / temperature


def info_nce(logits: Tensor) -> Tensor:
    """Equation 1: the mean of ``-log softmax(logits)[0]`` over the rows of ``logits``, [B, 1 + K].

    With equal similarities it is ``ln(1 + K)``.
    """
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))


class Settings(MethodConfig):
    """Hyper-parameters of MoCo; the defaults are those of version 2 on ImageNet."""

    name: str = "moco"
    temperature: Annotated[float, Field(gt=0)] = 0.2  # v1: 0.07
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.999  # of the key encoder: equation 2
    queue: Annotated[int, Field(ge=1)] = 65536  # keys that serve as negatives: the paper's K
    output: Annotated[int, Field(ge=1)] = 128  # width of a key
    layers: Annotated[int, Field(ge=1)] = 2  # of the head; v1: 1
    hidden: Annotated[int, Field(ge=0)] = 0  # width of the head's hidden layers; 0: the encoder's
    bn_groups: Annotated[int, Field(ge=1)] = 8  # parts of the batch, over all ranks, that have
    # BatchNorm statistics of their own, as on 8 GPUs; none is a single image
    shuffle: bool = True  # shuffling BN: keys are normalised in other company than their queries


class MoCo(Method):
    """A query encoder, a key encoder that follows it slowly, and a queue of keys.

    The paper moves the key encoder before it computes keys, this class after the optimiser step.
    Both encoders start equal, which the first of the paper's updates leaves so: every step's keys
    come from the same weights either way.

    Args:
        config: the hyper-parameters.
        backbone: the encoder of queries, which is kept; all else is thrown away after training.
    """

    Config = Settings

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        hidden = config.hidden or backbone.dim
        widths = (backbone.dim, *[hidden] * (config.layers - 1), config.output)
        self.head = mlp(widths, norm=False)
        self.key_backbone = ema.teacher_of(backbone)
        self.key_head = ema.teacher_of(self.head)
        self.queue = Queue(config.queue, config.output)

    def encode(self, x: Tensor, permutation: Tensor | None) -> tuple[Tensor, Tensor]:
        """Queries of the first view and keys of the second, each [B, D], of unit length.

        Args:
            x: [2, B, C, S, S].
            permutation: int64 [W * B], the order in which keys are computed, the same on all
                ranks; None for that of the queries.
        """
        groups = max(1, min(self.config.bn_groups // dist.part().parts, x.shape[1] // 2))
        q = in_groups(lambda x: self.head(self.backbone(x).pooled), x[0], groups, [self.backbone])
        with torch.no_grad():
            images = x[1] if permutation is None else shuffle(x[1], permutation)
            key = self.key_backbone
            k = in_groups(lambda x: self.key_head(key(x).pooled), images, groups, [key])
            k = unit(k) if permutation is None else unshuffle(unit(k), permutation)
        return unit(q), k

    def forward(self, views: Mapping[str, Tensor], t: Progress) -> Output:
        """InfoNCE of ``views["global"]``, float32 [2, B, C, S, S]: queries, then keys.

        Raises:
            UsageError: there are not exactly two views.
        """
        x = views["global"]
        if len(x) != 2:
            raise UsageError(
                f"moco needs two views of each image, not {len(x)}",
                tip="one is the query, the other its key: --set views.count=2",
            )
        images = dist.world_size() * x.shape[1]
        q, k = self.encode(x, torch.randperm(images) if self.config.shuffle else None)
        logits = similarities(q, k, self.queue.keys, self.config.temperature)
        accuracy = (logits.detach().argmax(1) == 0).float().mean()
        zero = torch.zeros(len(q), dtype=torch.int64, device=q.device)
        metrics = {"accuracy": accuracy, "negatives": negatives_entropy(logits, zero)}
        return Output(info_nce(logits), metrics, {"keys": k})

    def update_key_encoder(self) -> None:
        """Equation 2, for parameters: the key encoder keeps running statistics of its own."""
        ema.update(self.key_backbone, self.backbone, self.config.momentum)
        ema.update(self.key_head, self.head, self.config.momentum)

    def after_step(self, t: Progress, carry: Sequence[Mapping[str, Tensor]]) -> None:
        """Move the key encoder, and let this step's keys of all ranks take the oldest's place."""
        self.update_key_encoder()
        self.queue.enqueue(dist.gather(torch.cat([part["keys"] for part in carry])))

    def norm_groups(self) -> int:
        """The paper's batch norm is that of a GPU's images."""
        return self.config.bn_groups

    def encoder(self) -> Backbone:
        """The backbone of the query encoder."""
        return self.backbone


def recipe(scale: Scale, size: int) -> Recipe:
    """Version 2's ImageNet recipe, and one for tens of thousands of small images.

    Version 1 on ImageNet is the paper's recipe with ``--set`` ``method.layers=1``,
    ``method.temperature=0.07``, ``views.jitter=1.0``, ``views.hue=0.4``, ``views.blur=0.0``,
    ``optim.schedule=step`` and ``optim.milestones=[0.6,0.8]`` (its grayscale comes before the
    jitter, ours after it).
    """
    view = mocov2_view(size)
    if scale == "paper":
        return Recipe(
            source="arXiv 2003.04297, 200 epochs; arXiv 1911.05722, section 3.3; "
            "facebookresearch/moco, main_moco.py",
            deviations=(
                "the learning rate falls by step; the code's falls by epoch",
                "8 parts of the batch stand for 8 GPUs, and running statistics see all of them",
                "the blur's kernel is a tenth of the view; the code's is as wide as sigma asks",
                "images are first scaled to fit the canvas; the code crops the full image",
            ),
            batch_size=256,
            epochs=200,
            canvas=None if size <= SMALL_IMAGE else 512,
            method=Settings(),
            backbone=BackboneConfig(name="resnet50", options={"zero_init": False}),
            optim=Optim(name="sgd", lr=0.03, weight_decay=1e-4, exclude_1d=False, warmup=0),
            views=(view,),
        )
    return Recipe(
        source="arXiv 2003.04297, shortened; the CIFAR-10 demonstration of facebookresearch/moco",
        deviations=(
            "ResNet-18, batch 64 and AdamW: with little data and time, steps count",
            "momentum 0.99 and 4096 keys, as in the demonstration: the run and the data are short",
            "BatchNorm takes the whole batch, so there is nothing to shuffle",
        ),
        batch_size=64,
        epochs=100,
        method=Settings(momentum=0.99, queue=4096, bn_groups=1, shuffle=False),
        backbone=BackboneConfig(name="resnet18"),
        optim=SMALL_OPTIM,
        views=(view.model_copy(update={"scale": small_scale(size)}),),
    )
