"""Memory for large tensors of a few shapes that come again with every batch.

Fresh memory is expensive: the system hands it over page by page and clears each, which takes as
long as filling it. So what a batch lived in goes to the next one, once nobody holds it any more.
"""

from __future__ import annotations

import math
import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor


class Memory:
    """Gives out tensors on the CPU whose memory comes back by itself.

    A tensor, its views and whatever else shares its storage may be held as long as one likes: only
    after the last of them does the memory serve again. Any thread may ask.

    Args:
        keep: Pieces that are kept while nobody uses them.
    """

    def __init__(self, keep: int = 4) -> None:
        self._free: deque[np.ndarray] = deque(maxlen=keep)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor with anything in it."""
        size = math.prod(shape) * dtype.itemsize
        if size == 0:
            return torch.empty(shape, dtype=dtype)
        piece = self._take(size)
        lent = piece[:]  # lives as long as the storage of what is made of it
        weakref.finalize(lent, self._free.append, piece).atexit = False
        return torch.from_numpy(lent).view(dtype).view(shape)

    def _take(self, size: int) -> np.ndarray:
        for _ in range(len(self._free)):
            try:
                piece = self._free.popleft()
            except IndexError:  # another thread was quicker
                break
            if piece.nbytes == size:
                return piece
            self._free.append(piece)
        return torch.empty(size, dtype=torch.uint8).numpy()  # aligned as all tensors are
