"""Vision transformer (Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv 2010.11929).

One network for the papers that train it: token dropping (MAE, data2vec 2.0), token replacement
(iBOT, DINOv2), images of several sizes (DINO), fixed positions and a fixed patch projection
(MoCo v3), normalisation before or after each part (data2vec 2.0), layer scale and SwiGLU (DINOv2).
Parameter names and shapes are timm's, with ``block`` for its ``blocks`` and ``last_norm`` for its
``norm``, which are a ``Backbone``'s own words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.backbones.resnet import IMAGENET
from selfsame.errors import UsageError
from selfsame.nn.positions import resize_positions, sincos_2d
from selfsame.nn.rows import rows
from selfsame.types import Backbone, Features

# name -> (width, depth, heads); table 1 of the paper, and of DeiT (arXiv 2012.12877) below base
SIZES: dict[str, tuple[int, int, int]] = {
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_huge": (1280, 32, 16),
}

WRITTEN_OUT = 1024  # tokens: beyond, the N x N weights would take much memory

Replace = tuple[Tensor, Tensor]  # (bool [B, N], [D])


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = attend(q, k, v)  # [B, heads, N, D / heads]
        return self.proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention of [B, heads, N, d], through PyTorch's kernels.

    On a CPU in bfloat16 the fused kernel's backward pass takes 2 to 8 times as long as matrix
    products and a softmax, written out (LOG.md): so they are, for short sequences. The softmax
    reads and writes bfloat16, which the products want, and computes in float32.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[-2] <= WRITTEN_OUT:
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)  # [.., N, N]
        y: Tensor = weights @ v
        return y
    return F.scaled_dot_product_attention(q, k, v)


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class SwiGLU(nn.Module):
    """A gated perceptron of as many weights (Shazeer, arXiv 2002.05202); DINOv2's large models."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)  # type: ignore[no-any-return]


class LayerScale(nn.Module):
    """A learnt factor for each channel (Touvron et al., arXiv 2103.17239)."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return x * self.gamma


class SampleDrop(nn.Module):
    """Stochastic depth over the images of a batch: some skip the branch and cost nothing.

    DINOv2's form: of B images ``max(1, int(B * (1 - drop_prob)))``, chosen at random, go through
    the branch, whose result is scaled by B over their number.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor, branch: Callable[[Tensor], Tensor], copies: int = 1) -> Tensor:
        """What the branch adds to ``x``, [B, N, D]; ``copies`` of an image lie beside each other.

        The choice is among the images of all ranks and micro-batches: `nn.rows`.
        """
        if not self.training or self.drop_prob == 0.0:
            return branch(x)
        where = rows(len(x), copies)
        count = max(1, int(where.total * (1.0 - self.drop_prob)))
        kept, scale = where.among(torch.randperm(where.total)[:count]), where.total / count
        if not len(kept):  # all weights must get a gradient on every rank
            kept, scale = torch.zeros(1, dtype=torch.int64), 0.0
        return drop_samples(x, branch, kept.to(x.device), scale)


def drop_samples(
    x: Tensor, branch: Callable[[Tensor], Tensor], kept: Tensor, scale: float | None = None
) -> Tensor:
    """``branch(x)`` for the images ``kept``, int64 [n], scaled by B / n; zero for the others."""
    y = branch(x[kept])
    scale = len(x) / len(kept) if scale is None else scale
    zeros = torch.zeros(x.shape, dtype=y.dtype, device=y.device)
    return zeros.index_add(0, kept, y, alpha=scale)


class Block(nn.Module):
    """Attention and a perceptron, each with a residual, normalised before (or after) each."""

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        pre_norm: bool = True,
        layer_scale: float = 0.0,
        drop_path: float = 0.0,
        swiglu: bool = False,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads)
        self.ls1 = LayerScale(dim, layer_scale) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = SwiGLU(dim, hidden) if swiglu else Mlp(dim, hidden)
        self.ls2 = LayerScale(dim, layer_scale) if layer_scale else nn.Identity()
        self.drop_path = SampleDrop(drop_path)

    def forward(self, x: Tensor, copies: int = 1) -> Tensor:
        """[B, N, D] -> [B, N, D]; ``copies`` of an image lie beside each other."""
        return self.with_feed_forward(x, copies)[0]

    def with_feed_forward(self, x: Tensor, copies: int = 1) -> tuple[Tensor, Tensor]:
        """The block's output, and what its perceptron returned before it was added."""
        if self.pre_norm:
            x = x + self.drop_path(x, lambda x: self.ls1(self.attn(self.norm1(x))), copies)
            y = self.drop_path(x, lambda x: self.ls2(self.mlp(self.norm2(x))), copies)
            return x + y, y
        x = self.norm1(x + self.drop_path(x, lambda x: self.ls1(self.attn(x)), copies))
        y = self.drop_path(x, lambda x: self.ls2(self.mlp(x)), copies)
        return self.norm2(x + y), y


class PatchEmbed(nn.Module):
    """Non-overlapping patches, each projected to a token."""

    def __init__(self, channels: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, S, S] -> [B, D, S / patch, S / patch]."""
        return self.proj(x)  # type: ignore[no-any-return]


class ViT(Backbone):
    """A vision transformer without its classifier.

    Args:
        name: one of ``SIZES``; ``width``, ``depth`` and ``heads`` override its values where not 0.
        image_size: side that the position table is made for, pixels; others are interpolated.
        channels: channels of the input image.
        patch: side of a patch, pixels.
        mlp_ratio: width of the hidden layer over the width.
        pool: the feature: the class token, or the mean of the patch tokens (then there is no class
            token).
        positions: learnt, or the fixed sine-cosine table of MAE or of MoCo v3.
        pre_norm: normalise before each part and after the last block; False normalises the
            embeddings and after each part (data2vec 2.0).
        layer_scale: initial value of a factor for each channel of each branch; 0 for none.
        drop_path: chance that an image skips a branch, growing linearly to this at the last block.
        swiglu: a gated perceptron in place of the plain one.
        frozen_patch: keep the patch projection at its random start (MoCo v3, section 4.2).
        distilled: a second token beside the class token (DeiT, arXiv 2012.12877, section 4): the
            feature is both, one after the other, twice as wide.
        init: "normal" (0.02, timm's), "xavier" (MAE's), or "xavier_qkv", which takes q, k and v for
            three matrices (MoCo v3's).

    Features: pooled [B, D], tokens [B, N, D] after the last norm, grid (h, w).
    """

    can = frozenset({"tokens", "keep", "replace", "ffn", "layers", "stages"})
    norm = IMAGENET

    def __init__(
        self,
        name: str = "vit_small",
        *,
        image_size: int = 224,
        channels: int = 3,
        patch: int = 16,
        width: int = 0,
        depth: int = 0,
        heads: int = 0,
        mlp_ratio: float = 4.0,
        pool: Literal["cls", "mean"] = "cls",
        positions: Literal["learnt", "mae", "mocov3"] = "learnt",
        pre_norm: bool = True,
        layer_scale: float = 0.0,
        drop_path: float = 0.0,
        swiglu: bool = False,
        frozen_patch: bool = False,
        distilled: bool = False,
        init: Literal["normal", "xavier", "xavier_qkv"] = "normal",
    ) -> None:
        super().__init__()
        dim, blocks, default_heads = SIZES[name]
        dim, blocks, heads = width or dim, depth or blocks, heads or default_heads
        if dim % heads or (positions != "learnt" and dim % 4):
            raise UsageError(
                f"{name}: a width of {dim} does not go with {heads} heads",
                tip="take a multiple of both the heads and 4",
            )
        if distilled and pool != "cls":
            raise UsageError(
                "a distillation token goes with a class token",
                tip="leave backbone.options.pool at cls",
            )
        self.dim, self.stride, self.pool = dim * (1 + distilled), patch, pool
        if distilled:
            self.can = self.can | {"distilled"}
        self.patch_embed = PatchEmbed(channels, dim, patch)
        self.base = self._grid(image_size, image_size)
        self.prefix = prefix = int(pool == "cls") + distilled  # tokens before those of patches
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if prefix else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)) if distilled else None
        if positions == "learnt":
            self.pos_embed = nn.Parameter(torch.zeros(1, prefix + math.prod(self.base), dim))
        else:
            table = sincos_2d(dim, *self.base, first="column" if positions == "mae" else "row")
            table = torch.cat([table.new_zeros(prefix, dim), table]).float()[None]
            self.register_buffer("pos_embed", table, persistent=False)
        self.norm_pre = nn.Identity() if pre_norm else nn.LayerNorm(dim, eps=1e-6)
        self.block = nn.ModuleList(
            Block(
                dim,
                heads,
                int(dim * mlp_ratio),
                pre_norm=pre_norm,
                layer_scale=layer_scale,
                drop_path=drop_path * i / max(1, blocks - 1),
                swiglu=swiglu,
            )
            for i in range(blocks)
        )
        self.last_norm = nn.LayerNorm(dim, eps=1e-6) if pre_norm else nn.Identity()
        self._initialise(init, frozen_patch)

    def forward(
        self, x: Tensor, *, keep: Tensor | None = None, replace: Replace | None = None
    ) -> Features:
        """Features of normalised images [B, C, S, S], S a multiple of the patch.

        Args:
            x: The images.
            keep: int64 [B, n], the tokens to compute and return, in this order; None for all.
                [B * k, n] gives k sets for each image, image by image, projected once.
            replace: (bool [B, N], [D]): where the mask is true, the vector stands in the place of
                the patch's embedding.

        Raises:
            UsageError: images whose side is no multiple of the patch.
        """
        copies = 1 if keep is None else len(keep) // len(x)
        x, grid = self.embed(x, keep=keep, replace=replace)
        for block in self.block:
            x = block(x, copies)
        return self._features(x, grid)

    def layers(self, x: Tensor, last: int) -> list[Features]:
        """Features after each of the ``last`` blocks, first to last, all through the last norm.

        As ``get_intermediate_layers`` of DINO and DINOv2.
        """
        x, grid = self.embed(x)
        found = []
        for i, block in enumerate(self.block):
            x = block(x)
            if i >= len(self.block) - last:
                found.append(self._features(x, grid))
        return found

    def _features(self, x: Tensor, grid: tuple[int, int]) -> Features:
        """Features of what a block returned."""
        x = self.last_norm(x)
        tokens = x[:, self.prefix :]
        return Features(x[:, : self.prefix].flatten(1) if self.prefix else x.mean(1), tokens, grid)

    def embed(
        self, x: Tensor, *, keep: Tensor | None = None, replace: Replace | None = None
    ) -> tuple[Tensor, tuple[int, int]]:
        """What the first block gets, [B, 1 + n, D], and the grid; arguments as in ``forward``."""
        grid = self._grid(x.shape[-2], x.shape[-1])
        x = self.patch_embed(x).flatten(2).transpose(1, 2)  # [B, N, D]
        if replace is not None:
            mask, token = replace
            x = torch.where(mask[..., None], token.to(x.dtype), x)
        x = x + resize_positions(self.pos_embed[:, self.prefix :], self.base, grid)
        if keep is not None:
            x = keep_tokens(x, keep)
        if self.cls_token is not None:
            first: Tensor = self.cls_token
            if self.dist_token is not None:
                first = torch.cat([first, self.dist_token], dim=1)
            first = first + self.pos_embed[:, : self.prefix]
            # x.shape[0] and not len(x), which a traced graph would take for a constant
            x = torch.cat([first.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)
        return self.norm_pre(x), grid

    def feed_forwards(self, x: Tensor, last: int) -> list[Tensor]:
        """What the perceptrons of the ``last`` blocks return, before residuals: each [B, N, D]."""
        x, _ = self.embed(x)
        found = []
        for i, block in enumerate(self.block):
            assert isinstance(block, Block)
            x, y = block.with_feed_forward(x)
            if i >= len(self.block) - last:
                found.append(y[:, self.prefix :])
        return found

    def blocks(self) -> Sequence[nn.Module]:
        """The transformer's blocks, first to last."""
        return list(self.block)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        patch = self.patch_embed.proj.stride[0]
        if height % patch or width % patch or height < patch or width < patch:
            raise UsageError(
                f"images of {width}x{height} px do not divide into patches of {patch} px",
                tip=f"make every view's size a multiple of {patch}, or set backbone.options.patch",
            )
        return height // patch, width // patch

    def _initialise(self, init: str, frozen_patch: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                if init == "normal":
                    nn.init.trunc_normal_(module.weight, std=0.02)
                elif init == "xavier_qkv" and module.out_features == 3 * module.in_features:
                    bound = math.sqrt(6 / (2 * module.in_features))
                    nn.init.uniform_(module.weight, -bound, bound)
                else:
                    nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        patch = self.patch_embed.proj
        if init == "normal":
            nn.init.trunc_normal_(patch.weight, std=0.02)
        else:  # as a linear layer
            nn.init.xavier_uniform_(patch.weight.flatten(1))
        assert patch.bias is not None
        nn.init.zeros_(patch.bias)
        if frozen_patch:
            self.patch_embed.requires_grad_(False)
        for token in (self.cls_token, self.dist_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)
        if isinstance(self.pos_embed, nn.Parameter):
            nn.init.trunc_normal_(self.pos_embed, std=0.02)


def keep_tokens(x: Tensor, keep: Tensor) -> Tensor:
    """The tokens of ``x``, [B, N, D], that ``keep``, int64 [B * k, n], names: [B * k, n, D]."""
    index = keep.reshape(len(x), -1, 1).expand(-1, -1, x.shape[-1])
    return x.gather(1, index).reshape(*keep.shape, x.shape[-1])


def layer_of(name: str, depth: int) -> int:
    """Layer of a parameter, for rates that decay towards the input.

    0 for the embeddings (patches, positions, class and mask tokens), i + 1 for block i, and
    ``depth + 1`` for what follows: as in MAE's and DINOv2's codes.

    Args:
        name: As ``named_parameters`` gives it, ours or timm's.
        depth: Number of blocks.
    """
    if found := re.search(r"(?:^|\.)blocks?\.(\d+)\.", name):
        return int(found[1]) + 1
    embeddings = (
        "patch_embed",
        "pos_embed",
        "cls_token",
        "dist_token",
        "mask_token",
        "register_tokens",
    )
    return 0 if any(part in name.split(".") for part in embeddings) else depth + 1
