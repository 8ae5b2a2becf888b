"""Decoders of tokens on a grid."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.errors import UsageError


class Decoder2d(nn.Module):
    """Grouped convolutions over the grid, each with a plain LayerNorm and GELU (section 3)."""

    def __init__(
        self, dim: int, width: int, groups: int, kernel: int, layers: int, *, residual: bool = True
    ) -> None:
        super().__init__()
        if dim % groups or width % groups:
            raise UsageError(
                f"{groups} groups do not divide the decoder's widths {dim} and {width}",
                tip="set method.decoder_groups to a divisor of both",
            )
        self.residual = residual
        self.convolution = nn.ModuleList(
            nn.Conv2d(width if i else dim, width, kernel, padding=kernel // 2, groups=groups)
            for i in range(layers)
        )
        self.proj = nn.Linear(width, dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, N, D] -> [B, N, D], tokens of the grid row by row."""
        rows, columns = grid
        for convolution in self.convolution:
            y = convolution(x.transpose(1, 2).reshape(len(x), -1, rows, columns))
            y = y[..., :rows, :columns].flatten(2).transpose(1, 2)  # an even kernel adds a row
            y = F.gelu(F.layer_norm(y, y.shape[-1:]))
            x = x + y if self.residual and x.shape == y.shape else y
        return self.proj(x)  # type: ignore[no-any-return]
