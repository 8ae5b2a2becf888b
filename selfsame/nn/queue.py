"""A queue of keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Queue(nn.Module):
    """The newest keys of a stream, in a ring: first in, first out (MoCo, section 3.1).

    It starts full of random unit vectors. ``keys`` is [K, D]; ``pointer``, int64 [], the row that
    is written next. Both are buffers, so checkpoints hold them.

    Args:
        size: K, the number of keys; batches need not divide it.
        dim: D.
    """

    keys: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Write ``keys``, [N, D], over the oldest, as if they came one by one; N may exceed K."""
        size, count = len(self.keys), len(keys)
        skipped = max(0, count - size)  # a row may be written once: which of two lasts is undefined
        rows = torch.arange(skipped, count, device=self.keys.device)
        self.keys[(self.pointer + rows) % size] = keys[skipped:].to(self.keys.dtype)
        self.pointer.add_(count).remainder_(size)
