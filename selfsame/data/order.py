"""Which images make up step ``t``: a pure function of (seed, step), the same on every machine."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from selfsame.errors import UsageError
from selfsame.rng import key

_GOLDEN = 0x9E3779B97F4A7C15


def _mix(z: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64, a bijection on uint64 (Steele et al., OOPSLA 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = z ^ (z >> np.uint64(31))
    return mixed


def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """Order of ``n`` images in one epoch: int64 [n], each of 0..n-1 once.

    Sorting by a bijective hash of (key + position) leaves no ties, so the result depends on
    nothing but the arguments. (Philox would do as well and takes fifty times as long.)
    """
    position = np.arange(n, dtype=np.uint64) * np.uint64(_GOLDEN)
    return torch.from_numpy(
        np.argsort(_mix(np.uint64(key(seed, epoch)) + position)).astype(np.int64)
    )


@lru_cache(maxsize=4)  # consecutive steps share the epoch; sorting a million takes 0.1 s
def _epoch_order(seed: int, epoch: int, n: int) -> Tensor:
    return permutation(seed, epoch, n)


def spaced(n: int, sample: int) -> list[int]:
    """At most ``sample`` indices, evenly spaced over 0..n-1."""
    return sorted(set(np.linspace(0, n - 1, min(n, sample)).astype(int).tolist()))


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Full batches in one pass over ``n`` images; what is left over is dropped.

    Raises:
        UsageError: The batch is not positive, or larger than the data set.
    """
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size} is not positive", tip="use 1 or more")
    if batch_size > n:
        raise UsageError(
            f"a batch of {batch_size} is larger than the data set of {n} images",
            tip=f"use a batch size of {n} or less",
        )
    return n // batch_size


def batch_indices(seed: int, step: int, n: int, batch_size: int) -> tuple[int, Tensor]:
    """Epoch and image indices, int64 [batch_size], of one optimiser step counted from 0.

    Raises:
        UsageError: The batch is not positive, or larger than the data set.
    """
    epoch, position = divmod(step, steps_per_epoch(n, batch_size))
    start = position * batch_size
    return epoch, _epoch_order(seed, epoch, n)[start : start + batch_size].clone()
