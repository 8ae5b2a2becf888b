"""Who this process is among the ranks, and the three words for what is global in a loss.

Convention: each rank's loss is the mean over its own images, and parameter gradients are averaged
over ranks (`parallel.average`; FSDP does the same). The objective is then ``mean_r(loss_r)``, the
mean over all images. `gather`, `mean` and `total` let every rank's loss depend on every rank's
tensors, so their backward sums the incoming gradients over ranks: a rank's tensor receives the
gradient of ``sum_r(loss_r)``, and the average that follows divides by the number of ranks. The
parameter gradients therefore equal those of one process with the whole batch.

All ranks must call the same words in the same order, forward and backward. On one process, and
before ``torch.distributed`` is initialised, each word returns its argument.

`launched` joins the processes that torchrun started. `anywhere`, `all_true`, `on_main` and `agreed`
are for the loop: what all ranks must decide alike, what one does for all, and how an error on one
becomes an error on all. They wait for the others `PATIENCE` at the most; a process that ends is
noticed at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as torch_dist
from torch import Tensor

from selfsame.errors import RunError, SelfsameError, UsageError

PATIENCE = timedelta(hours=4)  # for a rank that evaluates or saves while the others wait

T = TypeVar("T")
Failure = TypeVar("Failure", bound=SelfsameError)


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


@contextmanager
def launched() -> Iterator[None]:
    """Join the processes that torchrun started, and leave them at the end; alone, do nothing.

    Reads torchrun's variables: ``WORLD_SIZE``, ``RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``. Host
    tensors go through gloo, those of CUDA devices through nccl. A group that the caller has
    initialised is used as it is.

    Raises:
        UsageError: one of the variables is missing.
        RunError: the processes cannot reach each other.
    """
    if _initialised() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}; {', '.join(missing)} are not set",
            tip="start it with torchrun --nproc-per-node N -m selfsame ..., or unset WORLD_SIZE",
        )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with together():
        torch_dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        torch_dist.destroy_process_group()


class Part(NamedTuple):
    """Which part of the step's batch a forward pass sees: each rank's micro-batches in turn."""

    number: int  # from 0
    parts: int
    images: int | None  # in the part; None where nobody said


_micro: tuple[int, int, int | None] = (0, 1, None)


def part() -> Part:
    """The part of the step's batch that this process computes now."""
    number, count, images = _micro
    return Part(rank() * count + number, world_size() * count, images)


@contextmanager
def micro_batch(number: int, count: int, images: int) -> Iterator[None]:
    """Say that forward passes in the block see ``images``, micro-batch ``number`` of ``count``."""
    global _micro
    before, _micro = _micro, (number, count, images)
    try:
        yield
    finally:
        _micro = before


def anywhere(*flags: bool) -> tuple[bool, ...]:
    """Which of the flags are set on any rank: the same answer on all. Exchanged by the hosts."""
    if world_size() == 1:
        return flags
    found = torch.tensor(flags, dtype=torch.uint8)
    with together():
        torch_dist.all_reduce(found, torch_dist.ReduceOp.MAX)
    return tuple(map(bool, found.tolist()))


def all_true(x: Tensor) -> Tensor:
    """Where ``x``, bool, is true on every rank: the same on all. A device is not waited for."""
    if world_size() == 1:
        return x
    found = x.to(torch.int32)
    with together():
        torch_dist.all_reduce(found, torch_dist.ReduceOp.MIN)
    return found.bool()


def everyone(value: T) -> list[T]:
    """What each rank has, in rank order; anything that can be pickled."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    with together():
        torch_dist.all_gather_object(found, value)
    return found


@contextmanager
def agreed() -> Iterator[None]:
    """A block that every rank runs: where it fails on one it fails on all, and one tells why.

    The words above may be used inside only where all ranks fail, or none, before them.

    Raises:
        RunError: another rank failed; its ``told`` is set.
    """
    failed: Exception | None = None
    try:
        yield
    except Exception as error:
        failed = error
    if world_size() > 1 and not (isinstance(failed, RunError) and failed.told):
        reasons = everyone(None if failed is None else str(failed) or type(failed).__name__)
        first = next((r for r, reason in enumerate(reasons) if reason is not None), None)
        if first is not None and failed is None:
            failed = RunError(f"process {first} stopped: {reasons[first]}")
        if first != rank() and isinstance(failed, SelfsameError):
            failed.told = True
    if failed is not None:
        raise failed


def once(error: Failure) -> Failure:
    """An error that every rank raises alike: rank 0 tells it."""
    error.told = not is_main()
    return error


def on_main(function: Callable[[], T]) -> T:
    """What ``function()`` gives on rank 0, on every rank; the others wait.

    Raises:
        RunError: it failed on rank 0, on the others.
    """
    found: list[T | None] = [None]
    with agreed():
        if is_main():
            found[0] = function()
    return everyone(found[0])[0]  # type: ignore[return-value]


def _initialised() -> bool:
    return torch_dist.is_available() and torch_dist.is_initialized()


@contextmanager
def together() -> Iterator[None]:
    """A collective: where it fails, another process has ended or cannot be reached."""
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"lost the other processes: {reason}",
            tip="look at what the first of them said; continue with --resume, on any number of "
            "processes",
        ) from error


def _apply(function: type[torch.autograd.Function], x: Tensor) -> Tensor:
    result: Tensor = function.apply(x)
    return result


def _sum(x: Tensor) -> Tensor:
    """All-reduce a copy: the collective writes in place, and autograd may still need ``x``."""
    x = x.clone(memory_format=torch.contiguous_format)
    with together():
        torch_dist.all_reduce(x)
    return x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        parts = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(world_size())]
        with together():
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
