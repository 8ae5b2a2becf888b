"""data2vec 2.0: efficient self-supervised learning with contextualized target representations.

Baevski, Babu, Hsu, Auli, ICML 2023, arXiv 2212.07525.
Authors' code: facebookresearch/fairseq, examples/data2vec.

Blocks of the backbone are normalised after each part, as in the authors' vision models. Their code
has a branch for normalisation before, which no vision model uses and which loses the residual of
the attention (a block returns twice what its perceptron gives); a pre-norm backbone is an ordinary
one here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from selfsame.backbones import SMALL_IMAGE
from selfsame.backbones.vit import keep_tokens
from selfsame.nn import ema
from selfsame.nn.decoders import Decoder2d
from selfsame.nn.precision import wide
from selfsame.nn.rows import normal
from selfsame.optim import Optim
from selfsame.recipe import SMALL_OPTIM, BackboneConfig, MethodConfig, Recipe, Scale
from selfsame.rng import uniforms
from selfsame.schedule import linear
from selfsame.types import Backbone, Method, Output, Progress
from selfsame.views.masks import OP_MASK, inverse_block_count, inverse_block_masks, visible_tokens
from selfsame.views.spec import View

Norm = Literal["instance", "batch", "layer"]
STD_EPS = 1e-6


def normalize(x: Tensor, norm: Norm) -> Tensor:
    """Normalise [B, N, D] without learnt scale.

    "instance" takes each channel over the tokens of an image, "batch" over those of all images,
    "layer" each token over its channels.
    """
    if norm == "layer":
        return F.layer_norm(x, x.shape[-1:])
    x = x.transpose(1, 2)
    x = F.instance_norm(x) if norm == "instance" else F.batch_norm(x, None, None, training=True)
    return x.transpose(1, 2)


def make_targets(
    layers: Sequence[Tensor],
    each: Sequence[Norm] = ("instance",),
    mean: Sequence[Norm] = ("layer",),
) -> Tensor:
    """Contextualised targets: the mean of normalised layers, normalised again (section 3).

    Computed in float32 whatever the autocast; float64 stays float64.

    Args:
        layers: K tensors [B, N, D]: what the perceptrons of the teacher's last blocks return.
        each: norms of each layer, in order.
        mean: norms of their mean, in order.

    Returns:
        [B, N, D].
    """
    with torch.autocast(layers[0].device.type, enabled=False):
        y = torch.zeros_like(wide(layers[0]))
        for layer in layers:
            layer = wide(layer)
            for norm in each:
                layer = normalize(layer, norm)
            y = y + layer
        y = y / len(layers)
        for norm in mean:
            y = normalize(y, norm)
        return y


def d2v_loss(x: Tensor, y: Tensor, *, beta: float = 0.0, scale: float | None = None) -> Tensor:
    """Squared error of each element, times ``scale``.

    Summed over channels and averaged over tokens it is ``sqrt(D)`` times the mean squared error.
    Computed in float32 whatever the autocast; float64 stays float64.

    Args:
        x: [..., D] predictions.
        y: [..., D] targets.
        beta: where positive, errors above it count linearly (smooth L1).
        scale: ``1 / sqrt(D)`` where None.

    Returns:
        [..., D].
    """
    distance = partial(F.smooth_l1_loss, beta=beta) if beta else F.mse_loss
    error = distance(wide(x), wide(y), reduction="none")
    return error * (1 / math.sqrt(x.shape[-1]) if scale is None else scale)


def std(x: Tensor) -> Tensor:
    """Standard deviation over all but the last dimension, mean over channels: 0 at collapse."""
    return (wide(x.detach()).flatten(0, -2).var(0) + STD_EPS).sqrt().mean()


def ema_decay(step: float, start: float, end: float, anneal_end_step: float) -> float:
    """The teacher's momentum after ``step`` updates: linear, then constant (section 3)."""
    return linear(step, anneal_end_step, start, end)


class Settings(MethodConfig):
    """Hyper-parameters of data2vec 2.0; the defaults are those of the authors' ViT-B."""

    name: str = "data2vec2"
    masks: Annotated[int, Field(ge=1, le=255)] = 16  # masked versions of each image, M
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.8  # share of tokens that is hidden, R
    mask_block: Annotated[int, Field(ge=1)] = 3  # side of a visible block in tokens, B
    mask_adjust: Annotated[float, Field(ge=0)] = 0.07  # more blocks, for those that overlap, A
    mask_noise: Annotated[float, Field(ge=0)] = 0.01  # deviation of what fills hidden positions
    layers: Annotated[int, Field(ge=1)] = 10  # of the teacher that make targets, K; at most all
    loss_beta: Annotated[float, Field(ge=0)] = 0.0  # of the smooth L1 loss; 0: squared error
    cls_loss: Annotated[float, Field(ge=0)] = 0.01  # weight of the class token's loss
    cls_images: Annotated[int, Field(ge=1)] = 16  # images over which that loss is summed
    decoder_width: Annotated[int, Field(ge=0)] = 0  # 0: the encoder's
    decoder_groups: Annotated[int, Field(ge=1)] = 16
    decoder_kernel: Annotated[int, Field(ge=1)] = 3
    decoder_layers: Annotated[int, Field(ge=1)] = 6
    ema_decay: Annotated[float, Field(ge=0, le=1)] = 0.9998  # the teacher's momentum at the start
    ema_end_decay: Annotated[float, Field(ge=0, le=1)] = 0.99999
    ema_anneal: Annotated[float, Field(gt=0, le=1)] = 100_000 / 375_300  # share of the run


class Data2Vec2(Method):
    """A student that sees a fifth of the tokens predicts what its teacher makes of all of them.

    The teacher sees each image once, and its targets serve ``masks`` masked versions.

    The authors' class loss is a sum over a GPU's batch, 16 images, and so depends on how a batch is
    split. Here it is the mean over images times ``cls_images``: the same number at their batch, and
    one objective for any batch size, any number of micro-batches and of ranks.

    Args:
        config: the hyper-parameters.
        backbone: the student, which is kept.
    """

    Config = Settings
    needs = frozenset({"keep", "tokens", "ffn"})

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__()
        assert backbone.stride is not None
        self.config = config
        self.backbone = backbone
        self.teacher = ema.teacher_of(backbone)
        self.patch = backbone.stride
        self.decoder = Decoder2d(
            backbone.dim,
            config.decoder_width or backbone.dim,
            config.decoder_groups,
            config.decoder_kernel,
            config.decoder_layers,
        )

    def draw(
        self, views: Mapping[str, Tensor], index: Tensor, *, seed: int, epoch: int
    ) -> Mapping[str, Tensor]:
        """``keep``, int64 [V, B, M, n], and ``hidden``, [V, B, M, N - n]: tokens of each mask."""
        config = self.config
        count, _, _, height, width = views["global"].shape
        grid = (height // self.patch, width // self.patch)
        shape = (config.mask_ratio, config.mask_block, config.mask_adjust)
        _, numbers = inverse_block_count(grid, *shape)
        u = [
            uniforms(seed, epoch, index.cpu(), view, OP_MASK + m, numbers)  # mask m of the image
            for view in range(count)
            for m in range(config.masks)
        ]
        mask = inverse_block_masks(
            torch.stack(u).view(count, config.masks, len(index), -1).transpose(1, 2),
            grid,
            mask_ratio=config.mask_ratio,
            block=config.mask_block,
            adjust=config.mask_adjust,
        ).flatten(-2)
        order = mask.to(torch.uint8).argsort(dim=-1, stable=True)  # the visible ones first
        visible = visible_tokens(mask.shape[-1], config.mask_ratio)
        return {"keep": order[..., :visible], "hidden": order[..., visible:]}

    def forward(self, views: Mapping[str, Tensor], t: Progress) -> Output:
        """Regression of the hidden tokens' targets. ``views["global"]`` is [V, B, C, S, S]."""
        config = self.config
        x = views["global"].flatten(0, 1)
        keep, hidden = views["keep"].flatten(0, 2), views["hidden"].flatten(0, 2)  # [B * M, ...]
        teacher: Any = self.teacher
        with torch.no_grad():
            targets = make_targets(teacher.feed_forwards(x, config.layers))  # [B, N, D]
        student = self.backbone(x, keep=keep)
        tokens: Tensor = student.tokens  # [B * M, n, D]
        noise = normal(len(x), (config.masks, *targets.shape[1:]), like=tokens).flatten(0, 1)
        filled = (config.mask_noise * noise).scatter(1, keep[..., None].expand_as(tokens), tokens)
        prediction = keep_tokens(self.decoder(filled, student.grid), hidden)
        y = keep_tokens(targets, hidden)  # [B * M, N - n, D]
        loss = d2v_loss(prediction, y, beta=config.loss_beta).sum(-1).mean()
        if config.cls_loss > 0:
            mean = targets.mean(1).repeat_interleave(config.masks, dim=0)
            each = d2v_loss(student.pooled, mean, beta=config.loss_beta).sum(-1)  # [B * M]
            loss = loss + config.cls_loss * config.cls_images * config.masks * each.mean()
        return Output(loss, {"target_std": std(y), "prediction_std": std(prediction)}, {})

    def after_step(self, t: Progress, carry: Sequence[Mapping[str, Tensor]]) -> None:
        """Move the teacher, patch projection and all; the decoder has none."""
        config = self.config
        anneal = config.ema_anneal * t.total
        decay = ema_decay(t.step + 1, config.ema_decay, config.ema_end_decay, anneal)
        ema.update(self.teacher, self.backbone, decay)

    def encoder(self) -> Backbone:
        """The student, which the authors fine-tune."""
        return self.backbone


def recipe(scale: Scale, size: int) -> Recipe:
    """The authors' ImageNet recipe, and one for tens of thousands of small images."""
    view = View(size=size, scale=(0.2, 1.0), jitter=0.0, grayscale=0.0, blur=0.0)
    if scale == "paper":
        return Recipe(
            source="arXiv 2212.07525, ViT-B; fairseq: data2vec/config/v2/base_images_only_task",
            deviations=(
                "the class loss is weighted as at 16 images a GPU, whatever the batch",
                "bfloat16 where the code has float16",
                "all linear layers and the patch projection start from a normal of deviation 0.02",
                "images are first scaled to fit the canvas; the code crops the full image",
            ),
            batch_size=256,  # 16 GPUs of 16 images
            steps=375_300,
            canvas=None if size <= SMALL_IMAGE else 512,
            method=Settings(),
            backbone=BackboneConfig(
                name="vit_base", options={"pre_norm": False, "positions": "mae"}
            ),
            optim=Optim(
                name="adamw",
                lr=1e-3,
                betas=(0.9, 0.95),
                weight_decay=0.05,
                warmup=10,  # epochs: 50,040 updates
                clip_norm=4.0,
            ),
            views=(view,),
        )
    return Recipe(
        source="arXiv 2212.07525, shortened",
        deviations=(
            "ViT-tiny of 6 blocks and a decoder of 3 layers, batch 64",
            "4 masks an image, a quarter of the tokens visible: a grid of 8x8 has few blocks",
            "the teacher follows faster, from 0.99 to 0.999: few steps",
            "the mean of the tokens in place of the class token: a class token that only its own "
            "small loss trains collapsed",
            "weights start as MAE's: 0.02 is too small for so narrow a network",
        ),
        batch_size=64,
        epochs=100,
        method=Settings(
            masks=4,
            mask_ratio=0.75,
            mask_adjust=0.1,
            layers=5,
            cls_images=64,
            decoder_layers=3,
            ema_decay=0.99,
            ema_end_decay=0.999,
        ),
        backbone=BackboneConfig(
            name="vit_tiny",
            options={
                "depth": 6,
                "pool": "mean",
                "pre_norm": False,
                "positions": "mae",
                "init": "xavier",
            },
        ),
        optim=SMALL_OPTIM.model_copy(update={"betas": (0.9, 0.95), "clip_norm": 4.0}),
        views=(view,),
    )
