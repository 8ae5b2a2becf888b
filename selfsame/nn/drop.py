"""Dropout and stochastic depth drawn for the whole batch, whatever part of it a pass sees.

They stand for torch's, timm's and torchvision's modules where a batch is divided, and then give
what those give on one process with the whole batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.nn.rows import rows


class Dropout(nn.Module):
    """`torch.nn.Dropout`: single numbers. Draws as many numbers as the whole batch has."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, ...]."""
        if not self.training or self.p == 0.0:
            return x
        where = rows(len(x))
        ones = torch.ones(where.total, *x.shape[1:], dtype=x.dtype, device=x.device)
        return x * where.take(F.dropout(ones, self.p))


class RowDrop(nn.Module):
    """timm's ``DropPath`` and torchvision's ``StochasticDepth``: whole rows of a branch."""

    def __init__(self, drop_prob: float, *, scale: bool = True) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, ...]."""
        if not self.training or self.drop_prob == 0.0:
            return x
        where, kept = rows(len(x)), 1.0 - self.drop_prob
        mask = x.new_empty(where.total, *[1] * (x.ndim - 1)).bernoulli_(kept)
        if self.scale and kept > 0.0:
            mask.div_(kept)
        return x * where.take(mask)


def of_the_batch(module: nn.Module) -> nn.Module | None:
    """What stands for ``module`` where a batch is divided; None where it draws nothing by rows."""
    kind = type(module).__name__  # neither timm nor torchvision is imported for a name
    if type(module) is nn.Dropout and module.p > 0:
        return Dropout(module.p)
    if kind == "DropPath" and (p := float(getattr(module, "drop_prob", 0.0) or 0.0)) > 0:
        return RowDrop(p, scale=bool(getattr(module, "scale_by_keep", True)))
    if kind == "StochasticDepth" and getattr(module, "mode", "") == "row":
        return RowDrop(float(getattr(module, "p", 0.0)))
    return None
