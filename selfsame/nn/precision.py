"""The precision of losses and statistics: float32 whatever the autocast; float64 stays float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """``x`` in float32, or float64 where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit(x: Tensor, eps: float = 1e-12) -> Tensor:
    """``x`` at unit length along its last dimension, `wide`; no length is taken below ``eps``."""
    return F.normalize(wide(x), dim=-1, eps=eps)
