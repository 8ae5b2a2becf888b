"""Positions of tokens on a grid, as vectors."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsame.nn.precision import wide


def sincos_2d(
    dim: int,
    rows: int,
    columns: int,
    *,
    first: Literal["column", "row"] = "column",
    temperature: float = 10_000.0,
) -> Tensor:
    """Fixed sine-cosine positions, ``[sin, cos]`` of one coordinate, then of the other.

    Frequencies are ``temperature ** (-j / (dim / 4))``. MAE puts the column into the first half of
    the channels (``first="column"``); MoCo v3's table has there what its code calls w, which for
    tokens row by row is the row (``first="row"``).

    Args:
        dim: D, a multiple of 4.
        rows: of the grid.
        columns: of the grid.
        first: Which coordinate the first half of the channels holds.
        temperature: Base of the frequencies.

    Returns:
        float64 [rows * columns, D], the grid row by row.

    Raises:
        ValueError: ``dim`` is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"positions need a width that is a multiple of 4, not {dim}")
    omega = temperature ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64),
        torch.arange(columns, dtype=torch.float64),
        indexing="ij",
    )
    order = (column, row) if first == "column" else (row, column)
    angles = [place.flatten()[:, None] * omega for place in order]
    return torch.cat([part for a in angles for part in (a.sin(), a.cos())], dim=1)


def resize_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Interpolate positions, [1, rows * columns, D], to another grid, bicubically."""
    if old == new:
        return positions
    grid = wide(positions.transpose(1, 2).reshape(1, -1, *old))
    moved = F.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    return moved.flatten(2).transpose(1, 2).to(positions.dtype)
