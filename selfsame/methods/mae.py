"""MAE: masked autoencoders are scalable vision learners.

He, Chen, Xie, Li, Dollar, Girshick, CVPR 2022, arXiv 2111.06377.
Authors' code: facebookresearch/mae.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from selfsame.backbones import SMALL_IMAGE
from selfsame.backbones.vit import Block
from selfsame.nn.positions import sincos_2d
from selfsame.nn.precision import wide
from selfsame.optim import Optim
from selfsame.recipe import SMALL_OPTIM, BackboneConfig, MethodConfig, Recipe, Scale
from selfsame.rng import uniforms
from selfsame.types import Backbone, Method, Output, Progress
from selfsame.views.masks import OP_MASK, visible_tokens
from selfsame.views.spec import View

TARGET_EPS = 1e-6


def patchify(images: Tensor, patch: int) -> Tensor:
    """Cut images [B, C, S, S] into vectors of pixels, [B, N, patch * patch * C].

    Patches come row by row; within one the order is row, column, channel.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch, width // patch
    x = images.reshape(batch, channels, rows, patch, columns, patch).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(batch, rows * columns, patch * patch * channels)


def normalize_patches(patches: Tensor) -> Tensor:
    """Each patch minus its mean, over its (unbiased) standard deviation: section 3, last part."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + TARGET_EPS).sqrt()


def random_masking(noise: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor]:
    """Choose the visible patches of each image: a random permutation, cut off (section 3).

    Args:
        noise: [..., N] without ties.
        mask_ratio: share of the patches that is hidden.

    Returns:
        ``keep``, int64 [..., n], the visible patches in the order of the noise; ``restore``, int64
        [..., N], the place of each patch in the permutation: patch i is hidden where
        ``restore[i] >= n``.

    Raises:
        UsageError: no patch would stay visible.
    """
    shuffle = noise.argsort(dim=-1)
    return shuffle[..., : visible_tokens(noise.shape[-1], mask_ratio)], shuffle.argsort(dim=-1)


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of the hidden patches; the visible ones count nothing.

    Computed in float32 whatever the autocast; float64 stays float64.

    Args:
        prediction: [B, N, P].
        target: [B, N, P].
        mask: [B, N], 1 or True where a patch is hidden.

    Returns:
        [].
    """
    error = (wide(prediction) - wide(target)).square().mean(-1)
    mask = mask.to(error.dtype)
    return (error * mask).sum() / mask.sum()


@lru_cache
def decoder_positions(width: int, grid: tuple[int, int]) -> Tensor:
    """Fixed positions of the decoder's tokens, float32 [1 + N, width], zero for the first."""
    table = sincos_2d(width, *grid)
    return torch.cat([table.new_zeros(1, width), table]).float()


class Decoder(nn.Module):
    """A small transformer that sees all positions and predicts the pixels of each (section 3)."""

    def __init__(self, dim: int, width: int, depth: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.block = nn.ModuleList(Block(width, heads, 4 * width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, outputs)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self, first: Tensor, visible: Tensor, restore: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """Pixels of all patches, [B, N, outputs].

        Args:
            first: [B, D], the encoder's class token, or the mean of its tokens where it has none.
            visible: [B, n, D], the encoder's tokens.
            restore: int64 [B, N], as ``random_masking`` gives it.
            grid: rows and columns.
        """
        x = self.embed(torch.cat([first[:, None], visible], dim=1))
        first, visible = x[:, :1], x[:, 1:]
        hidden = self.mask_token.expand(len(x), restore.shape[1] - visible.shape[1], -1)
        shuffled = torch.cat([visible, hidden], dim=1)
        tokens = shuffled.gather(1, restore[..., None].expand(-1, -1, x.shape[-1]))
        positions = decoder_positions(x.shape[-1], grid).to(x.device)
        x = torch.cat([first, tokens], dim=1) + positions
        for block in self.block:
            x = block(x)
        return self.predict(self.norm(x[:, 1:]))  # type: ignore[no-any-return]


class Settings(MethodConfig):
    """Hyper-parameters of MAE; the defaults are those of the paper's section 4.1."""

    name: str = "mae"
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    norm_pix: bool = True  # predict patches of mean 0 and variance 1 (table 1d)
    width: Annotated[int, Field(ge=4, multiple_of=4)] = 512  # of the decoder
    depth: Annotated[int, Field(ge=1)] = 8  # of the decoder, in blocks
    heads: Annotated[int, Field(ge=1)] = 16  # of the decoder

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Settings:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


class MAE(Method):
    """An encoder that sees a quarter of the patches, and a decoder that paints the rest.

    Args:
        config: the hyper-parameters.
        backbone: the encoder, which is kept; the decoder is thrown away after training.
    """

    Config = Settings
    needs = frozenset({"keep", "tokens"})
    shardable = True

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__()
        assert backbone.stride is not None
        self.config = config
        self.backbone = backbone
        self.patch = backbone.stride
        # the first convolution cuts the patches, so it says how many channels an image has
        channels = next(p.shape[1] for p in backbone.parameters() if p.ndim == 4)
        self.decoder = Decoder(
            backbone.dim, config.width, config.depth, config.heads, self.patch**2 * channels
        )

    def draw(
        self, views: Mapping[str, Tensor], index: Tensor, *, seed: int, epoch: int
    ) -> Mapping[str, Tensor]:
        """``keep``, int64 [V, B, n], and ``restore``, int64 [V, B, N], as ``random_masking``."""
        count, _, _, height, width = views["global"].shape
        n = (height // self.patch) * (width // self.patch)
        noise = [uniforms(seed, epoch, index.cpu(), view, OP_MASK, n) for view in range(count)]
        keep, restore = random_masking(torch.stack(noise), self.config.mask_ratio)
        return {"keep": keep, "restore": restore}

    def forward(self, views: Mapping[str, Tensor], t: Progress) -> Output:
        """Error of the hidden patches' pixels. ``views["global"]`` is float32 [V, B, C, S, S]."""
        x, keep, restore = (views[key].flatten(0, 1) for key in ("global", "keep", "restore"))
        latent = self.backbone(x, keep=keep)
        prediction = self.decoder(latent.pooled, latent.tokens, restore, latent.grid)
        target = patchify(x, self.patch)
        if self.config.norm_pix:
            target = normalize_patches(target)
        mask = restore >= keep.shape[1]
        loss = masked_mse(prediction, target, mask)
        nothing = masked_mse(torch.zeros_like(target), target, mask).detach()
        return Output(loss, {"explained": 1 - loss.detach() / nothing.clamp(min=TARGET_EPS)}, {})

    def encoder(self) -> Backbone:
        """The backbone, which is given all patches when it is evaluated."""
        return self.backbone


def recipe(scale: Scale, size: int) -> Recipe:
    """The paper's ImageNet recipe, and one for tens of thousands of small images."""
    view = View(size=size, scale=(0.2, 1.0), jitter=0.0, grayscale=0.0, blur=0.0)  # table 1e
    if scale == "paper":
        return Recipe(
            source="arXiv 2111.06377: section 4.1 and appendix A.1; facebookresearch/mae",
            deviations=(
                "bfloat16 where the code has float16",
                "images are first scaled to fit the canvas; the code crops the full image",
            ),
            batch_size=4096,
            epochs=800,
            canvas=None if size <= SMALL_IMAGE else 512,
            method=Settings(),
            backbone=BackboneConfig(
                name="vit_large", options={"positions": "mae", "init": "xavier"}
            ),
            optim=Optim(name="adamw", lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05, warmup=40),
            views=(view,),
        )
    return Recipe(
        source="arXiv 2111.06377, shortened",
        deviations=(
            "ViT-tiny of 6 blocks, a decoder of one block 96 wide, batch 64",
            "the mean of the tokens in place of the class token: nothing trains the latter to be a "
            "feature, which a long fine-tuning may mend and a nearest neighbour does not",
            "a larger learning rate per image: a small network and few steps",
        ),
        batch_size=64,
        epochs=100,
        method=Settings(width=96, depth=1, heads=3),
        backbone=BackboneConfig(
            name="vit_tiny",
            options={"depth": 6, "pool": "mean", "positions": "mae", "init": "xavier"},
        ),
        optim=SMALL_OPTIM.model_copy(update={"betas": (0.9, 0.95)}),
        views=(view,),
    )
