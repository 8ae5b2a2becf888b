"""Shuffling BN (MoCo, section 3.3): company in which BatchNorm does not give the answer away.

A query and its key that are normalised among the same images carry the same statistics, and these
tell which key belongs to which query. So keys are computed in another order than queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from selfsame import dist
from selfsame.nn.batchnorm import norms_of


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


def in_groups(
    network: Callable[[Tensor], Tensor], x: Tensor, groups: int, modules: Sequence[nn.Module] = ()
) -> Tensor:
    """``network`` on each of ``groups`` consecutive parts of ``x``, [B, ...], by itself.

    Each part has its own BatchNorm statistics, as if a GPU of its own computed it. The running ones
    of ``modules`` move once, by the mean over the groups of all ranks.
    """
    norms = [n for m in modules for n in norms_of(m) if n.training and n.track_running_stats]
    # .data: a backward pass may still hold these buffers, and does not look at their values
    running = [b.data for n in norms for b in (n.running_mean, n.running_var) if b is not None]
    before, moved = [b.clone() for b in running], [torch.zeros_like(b) for b in running]
    found = []
    for part in x.tensor_split(groups):
        for buffer, old in zip(running, before, strict=True):
            buffer.copy_(old)
        found.append(network(part))
        for total, buffer in zip(moved, running, strict=True):
            total += buffer
    for buffer, total in zip(running, moved, strict=True):
        buffer.copy_(dist.mean(total / groups))
    for norm in norms:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked -= groups - 1
    return torch.cat(found)
