"""MLP-Mixer (Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision", arXiv 2105.01601).

Perceptrons across patches, which mix tokens, and perceptrons across channels, in turn: no attention
and no convolution but the patch projection. Parameter names and shapes are timm's, with ``block``
for its ``blocks`` and ``last_norm`` for its ``norm``, which are a ``Backbone``'s own words.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from selfsame.backbones.resnet import IMAGENET
from selfsame.backbones.vit import Mlp, PatchEmbed
from selfsame.errors import UsageError
from selfsame.types import Backbone, Features

# name -> (width, depth); table 1 of the paper
MIXERS: dict[str, tuple[int, int]] = {
    "mixer_small": (512, 8),
    "mixer_base": (768, 12),
    "mixer_large": (1024, 24),
}

TOKEN_RATIO, CHANNEL_RATIO = 0.5, 4  # hidden units of both perceptrons over the width: table 1


class MixerBlock(nn.Module):
    """A perceptron across tokens and one across channels, each with a residual."""

    def __init__(self, dim: int, tokens: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp_tokens = Mlp(tokens, int(TOKEN_RATIO * dim))
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp_channels = Mlp(dim, CHANNEL_RATIO * dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]: the paper's equation 1."""
        x = x + self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp_channels(self.norm2(x))  # type: ignore[no-any-return]


class Mixer(Backbone):
    """A Mixer without its classifier: the mean of the tokens is the feature.

    The perceptrons across tokens know their number, so images have one size.

    Args:
        name: one of ``MIXERS``; ``width`` and ``depth`` override its values where not 0.
        image_size: side of the images, pixels.
        channels: channels of the input image.
        patch: side of a patch, pixels.

    Features: pooled [B, D], tokens [B, N, D] after the last norm, grid (h, w).
    """

    can = frozenset({"tokens"})
    norm = IMAGENET

    def __init__(
        self,
        name: str = "mixer_small",
        *,
        image_size: int = 224,
        channels: int = 3,
        patch: int = 16,
        width: int = 0,
        depth: int = 0,
    ) -> None:
        super().__init__()
        dim, blocks = MIXERS[name]
        dim, blocks = width or dim, depth or blocks
        if image_size % patch:
            raise UsageError(
                f"images of {image_size} px do not divide into patches of {patch} px",
                tip=f"make the views' size a multiple of {patch}, or set backbone.options.patch",
            )
        self.dim, self.stride, self.image_size = dim, patch, image_size
        self.patch_embed = PatchEmbed(channels, dim, patch)
        tokens = (image_size // patch) ** 2
        self.block = nn.ModuleList(MixerBlock(dim, tokens) for _ in range(blocks))
        self.last_norm = nn.LayerNorm(dim, eps=1e-6)
        for module in self.block.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.normal_(module.bias, std=1e-6)

    def forward(self, x: Tensor) -> Features:
        """Features of normalised images [B, C, S, S].

        Raises:
            UsageError: images of another size.
        """
        if x.shape[-1] != self.image_size or x.shape[-2] != self.image_size:
            raise UsageError(
                f"a Mixer for {self.image_size} px cannot take {x.shape[-1]}x{x.shape[-2]} px",
                tip="its perceptrons count the patches: give every view the same size",
            )
        x = self.patch_embed(x)
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        for block in self.block:
            x = block(x)
        x = self.last_norm(x)
        return Features(x.mean(1), x, grid)

    def blocks(self) -> Sequence[nn.Module]:
        """The Mixer's blocks, first to last."""
        return list(self.block)
