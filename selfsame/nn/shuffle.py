"""Shuffling BN (MoCo, section 3.3): company in which BatchNorm does not give the answer away.

A query and its key that are normalised among the same images carry the same statistics, and these
tell which key belongs to which query. So keys are computed in another order than queries.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from selfsame import dist


def shuffle(x: Tensor, permutation: Tensor) -> Tensor:
    """This rank's part of the images of all ranks, in the order of ``permutation``.

    Args:
        x: [B, ...], this rank's images.
        permutation: int64 [W * B], the same on every rank.

    Returns:
        [B, ...]: image ``permutation[rank * B + i]`` of all, counted in rank order, at place i.
    """
    own = permutation[dist.rank() * len(x) :][: len(x)]
    return dist.gather(x)[own.to(x.device)]


def unshuffle(y: Tensor, permutation: Tensor) -> Tensor:
    """What was computed from ``shuffle(x, permutation)``, [B, ...], in the order of ``x``."""
    return shuffle(y, permutation.argsort())


def in_groups(network: Callable[[Tensor], Tensor], x: Tensor, groups: int) -> Tensor:
    """``network`` on each of ``groups`` consecutive parts of ``x``, [B, ...], by itself.

    Each part has its own BatchNorm statistics, as if a GPU of its own computed it.
    """
    return torch.cat([network(part) for part in x.tensor_split(groups)])
