"""Who this process is among the ranks, and the three words for what is global in a loss.

Convention: each rank's loss is the mean over its own images, and parameter gradients are averaged
over ranks (what DistributedDataParallel and FSDP do). The objective is then ``mean_r(loss_r)``, the
mean over all images. `gather`, `mean` and `total` let every rank's loss depend on every rank's
tensors, so their backward sums the incoming gradients over ranks: a rank's tensor receives the
gradient of ``sum_r(loss_r)``, and the average that follows divides by the number of ranks. The
parameter gradients therefore equal those of one process with the whole batch.

All ranks must call the same words in the same order, forward and backward. On one process, and
before ``torch.distributed`` is initialised, each word returns its argument.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor


def rank() -> int:
    """Index of this process, from 0."""
    return torch_dist.get_rank() if _initialised() else 0


def world_size() -> int:
    """Number of processes that train together."""
    return torch_dist.get_world_size() if _initialised() else 1


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def gather(x: Tensor) -> Tensor:
    """Concatenate ``x`` over ranks, in rank order, with gradient.

    Args:
        x: [B, ...], the same shape and dtype on every rank.

    Returns:
        [W * B, ...]; rows ``rank() * B`` to ``(rank() + 1) * B`` are this rank's.
    """
    return x if world_size() == 1 else _apply(_Gather, x)


def total(x: Tensor) -> Tensor:
    """Sum ``x`` over ranks, with gradient. ``x`` has the same shape on every rank."""
    return x if world_size() == 1 else _apply(_Total, x)


def mean(x: Tensor) -> Tensor:
    """Average ``x`` over ranks, with gradient. ``x`` has the same shape on every rank."""
    return x if world_size() == 1 else total(x) / world_size()


def all_true(x: Tensor) -> Tensor:
    """Where ``x``, bool, is true on every rank: the same on all. A device is not waited for."""
    if world_size() == 1:
        return x
    found = x.to(torch.int32)
    torch_dist.all_reduce(found, torch_dist.ReduceOp.MIN)
    return found.bool()


def _initialised() -> bool:
    return torch_dist.is_available() and torch_dist.is_initialized()


def _apply(function: type[torch.autograd.Function], x: Tensor) -> Tensor:
    result: Tensor = function.apply(x)
    return result


def _sum(x: Tensor) -> Tensor:
    """All-reduce a copy: the collective writes in place, and autograd may still need ``x``."""
    x = x.clone(memory_format=torch.contiguous_format)
    torch_dist.all_reduce(x)
    return x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        parts = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(world_size())]
        torch_dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _sum(grads[0]).narrow(0, rank() * ctx.rows, ctx.rows)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _sum(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _sum(grads[0])
