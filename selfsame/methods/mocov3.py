"""MoCo v3: an empirical study of training self-supervised vision transformers.

Chen, Xie, He, ICCV 2021, arXiv 2104.02057. Authors' code: facebookresearch/moco-v3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from selfsame import dist, schedule
from selfsame.backbones import SMALL_IMAGE
from selfsame.errors import UsageError
from selfsame.methods.simclr import similarities
from selfsame.nn import ema
from selfsame.nn.heads import mlp
from selfsame.nn.pairs import negatives_entropy
from selfsame.optim import Optim
from selfsame.recipe import SMALL_OPTIM, BackboneConfig, MethodConfig, Recipe, Scale
from selfsame.types import Backbone, Method, Output, Progress
from selfsame.views.presets import asymmetric_views, small_scale


def ctr(q: Tensor, k: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The contrastive loss of algorithm 1: ``2 tau`` times the cross-entropy of cosines over tau.

    Each query of this rank must find the key of its image among the keys of all ranks.

    Args:
        q: [B, D], what the predictor gives.
        k: [B, D], what the momentum encoder gives for the same images; it gets no gradient.
        temperature: The paper's tau.

    Returns:
        The loss, [], in float32, or float64 where ``q`` is; and, without gradient, the share of
        queries that find their key, [], and `negatives_entropy`, [].
    """
    logits = similarities(q, dist.gather(k.detach()), temperature)  # [B, W * B]
    own = torch.arange(len(q), device=q.device) + dist.rank() * len(q)
    found = (logits.detach().argmax(1) == own).float().mean()
    shared = negatives_entropy(logits, own)
    return 2 * temperature * F.cross_entropy(logits, own), found, shared


class Settings(MethodConfig):
    """Hyper-parameters of MoCo v3; the defaults are those of the ViTs on ImageNet."""

    name: str = "mocov3"
    temperature: Annotated[float, Field(gt=0)] = 0.2  # ResNet-50: 1.0
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.99  # at the start; a cosine takes it to 1
    memory: Annotated[float, Field(ge=0, le=1)] = 0.0  # bounds it in short runs: `ema.bounded`
    hidden: Annotated[int, Field(ge=1)] = 4096  # width of the heads' hidden layers
    output: Annotated[int, Field(ge=1)] = 256  # width of queries and keys
    projector_layers: Annotated[int, Field(ge=1)] = 3  # ResNet-50: 2
    predictor_layers: Annotated[int, Field(ge=1)] = 2
    predictor_norm: bool = True  # the predictor ends with a BatchNorm; ResNet-50: it does not


class MoCoV3(Method):
    """A base encoder with a predictor, and a momentum encoder that gives keys for the other view.

    Each view goes through both encoders by itself, so BatchNorm never mixes the views. The authors
    move the momentum encoder before it computes keys, this class after the optimiser step, with
    the momentum of the next step. Both encoders start equal, which the first of the authors'
    updates leaves so: every step's keys come from the same weights either way.

    Args:
        config: the hyper-parameters.
        backbone: the encoder, which is kept; the heads are thrown away after training.
    """

    Config = Settings
    batch_coupled = True

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        hidden, output = config.hidden, config.output
        self.projector = mlp(
            (backbone.dim, *[hidden] * (config.projector_layers - 1), output),
            last_norm=True,
            last_affine=False,
        )
        self.predictor = mlp(
            (output, *[hidden] * (config.predictor_layers - 1), output),
            last_norm=config.predictor_norm,
            last_affine=False,
            last_bias=False,
        )
        self.key_backbone = ema.teacher_of(backbone)
        self.key_projector = ema.teacher_of(self.projector)

    def embed(self, views: Mapping[str, Tensor], t: Progress) -> dict[str, Tensor]:
        """Queries ``q`` and keys ``k``, [2, B, D], of ``views["global"]``, [2, B, C, S, S].

        Raises:
            UsageError: there are not exactly two views.
        """
        if len(views["global"]) != 2:
            raise UsageError(
                f"mocov3 needs two views of each image, not {len(views['global'])}",
                tip="the loss is symmetric between two: give the recipe two global views",
            )
        x1, x2 = views["global"]
        q = [self.predictor(self.projector(self.backbone(x).pooled)) for x in (x1, x2)]
        with torch.no_grad():
            k = [self.key_projector(self.key_backbone(x).pooled) for x in (x1, x2)]
        return {"q": torch.stack(q), "k": torch.stack(k)}

    def loss(self, embedded: Mapping[str, Tensor], t: Progress) -> Output:
        """``ctr(q1, k2) + ctr(q2, k1)``."""
        tau, q, k = self.config.temperature, embedded["q"], embedded["k"]
        loss1, found1, shared1 = ctr(q[0], k[1], tau)
        loss2, found2, shared2 = ctr(q[1], k[0], tau)
        metrics = {"accuracy": (found1 + found2) / 2, "negatives": (shared1 + shared2) / 2}
        return Output(loss1 + loss2, metrics, {})

    def update_momentum_encoder(self, momentum: float) -> None:
        """``f_k <- m f_k + (1 - m) f_q``, for parameters; the predictor has no such copy."""
        ema.update(self.key_backbone, self.backbone, momentum)
        ema.update(self.key_projector, self.projector, momentum)

    def after_step(self, t: Progress, carry: Sequence[Mapping[str, Tensor]]) -> None:
        """Move the momentum encoder to where the next step's keys come from."""
        start = ema.bounded(self.config.momentum, t.total, self.config.memory)
        self.update_momentum_encoder(schedule.cosine(t.step + 1, t.total, start, 1.0))

    def encoder(self) -> Backbone:
        """The backbone of the base encoder."""
        return self.backbone


def recipe(scale: Scale, size: int) -> Recipe:
    """The paper's ImageNet recipe of ViT-S/16, and one for tens of thousands of small images.

    ViT-B/16 is the former with ``--set backbone.name=vit_base``. ResNet-50, 300 epochs, is the
    former with ``--backbone resnet50`` and ``--set`` ``method.temperature=1.0``,
    ``method.projector_layers=2``, ``method.predictor_norm=false``, ``views.scale=[0.2,1.0]``,
    ``optim.name=lars``, ``optim.lr=0.3``, ``optim.weight_decay=1e-6``, ``optim.exclude_1d=true``
    and ``optim.warmup=10``; 100 epochs take ``optim.lr=0.6``, 1000 ``optim.weight_decay=1.5e-6``
    and ``method.momentum=0.996``.
    """
    views = asymmetric_views(size, interpolation="bilinear")
    if scale == "paper":
        return Recipe(
            source="arXiv 2104.02057, section 4; facebookresearch/moco-v3, CONFIG.md: ViT-Small",
            deviations=(
                "the class token starts with a deviation of 0.02, not 1e-6",
                "the blur's kernel is a tenth of the view; the code's is as wide as sigma asks",
                "images are first scaled to fit the canvas; the code crops the full image",
            ),
            batch_size=4096,
            epochs=300,
            canvas=None if size <= SMALL_IMAGE else 512,
            method=Settings(),
            backbone=BackboneConfig(
                name="vit_small",
                options={
                    "heads": 12,
                    "positions": "mocov3",
                    "init": "xavier_qkv",
                    "frozen_patch": True,
                },
            ),
            optim=Optim(name="adamw", lr=1.5e-4, weight_decay=0.1, exclude_1d=False, warmup=40),
            views=views,
        )
    return Recipe(
        source="arXiv 2104.02057, shortened",
        deviations=(
            "ResNet-18, batch 64 and AdamW: with little data and time, steps count",
            "heads 512 wide; temperature 0.2, the paper's for ViTs",
        ),
        batch_size=64,
        epochs=100,
        method=Settings(hidden=512, memory=0.02, projector_layers=2, predictor_norm=False),
        backbone=BackboneConfig(name="resnet18"),
        optim=SMALL_OPTIM,
        views=tuple(view.model_copy(update={"scale": small_scale(size)}) for view in views),
    )
