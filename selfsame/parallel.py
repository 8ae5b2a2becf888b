"""Several processes that learn as one: what is done to a method, and to its gradients."""

from __future__ import annotations

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selfsame import dist
from selfsame.errors import UsageError
from selfsame.nn.batchnorm import Group, SyncBatchNorm
from selfsame.nn.drop import of_the_batch
from selfsame.types import Method

BUCKET_BYTES = 32 * 2**20  # of gradients that travel together


def prepare(method: Method, accumulate: int = 1) -> None:
    """Make a method learn from its part of a batch as from the whole, in place.

    BatchNorm takes its statistics from all ranks, or from those that `Method.norm_groups` puts
    together; dropout is drawn for the whole batch. Alone, and without micro-batches, nothing
    changes. Call it on every rank, before the optimiser is built.

    Raises:
        UsageError: the processes cannot be divided into the groups that the method wants.
    """
    world = dist.world_size()
    if world * accumulate == 1:
        return
    _replace(method, of_the_batch)
    if world == 1:
        return
    groups = method.norm_groups()
    check_norm_groups(groups, world)
    if groups >= world and groups > 1:  # a rank has whole groups, which the method keeps apart
        return
    group = _group_of(groups, world)
    _replace(method, lambda module: _synchronised(module, group))


def check_norm_groups(groups: int, world: int) -> None:
    """Refuse a number of processes that parts of the batch would straddle.

    Raises:
        UsageError: with numbers that go together.
    """
    if groups > 1 and groups % world and world % groups:
        fitting = [n for n in range(1, groups + 1) if groups % n == 0]
        raise UsageError(
            f"BatchNorm in {groups} parts of the batch does not go with {world} processes",
            tip=f"use {', '.join(map(str, fitting))} or a multiple of {groups} processes, or "
            f"--set method.bn_groups={world}, which is another run",
        )


def average(method: nn.Module, loss: Tensor) -> Tensor:
    """Average the gradients of a method over all ranks, in place; the average of ``loss``, [].

    What is not finite on one rank is not finite on any afterwards. A parameter that no rank used
    keeps the gradient None; one that some rank used counts as zero on the others.
    """
    world = dist.world_size()
    if world == 1:
        return loss
    trained = [p for p in method.parameters() if p.requires_grad]
    unused = [p for p in trained if p.grad is None]
    used = loss.new_tensor([p.grad is not None for p in trained])
    for p in unused:
        p.grad = torch.zeros_like(p)
    buckets = _buckets([p.grad for p in trained if p.grad is not None])
    flat = [torch.cat([g.reshape(-1) for g in bucket]) for bucket in buckets]
    flat.append(torch.cat([used, loss[None]]))
    with dist.together():
        for work in [torch_dist.all_reduce(x, async_op=True) for x in flat]:
            assert work is not None
            work.wait()
    for bucket, x in zip(buckets, flat, strict=False):
        parts = torch.split(x.div_(world), [g.numel() for g in bucket])
        shaped = [part.view_as(g) for part, g in zip(parts, bucket, strict=True)]
        torch._foreach_copy_(bucket, shaped)
    if unused:
        by_any = dict(zip(map(id, trained), flat[-1].tolist(), strict=False))
        for p in unused:
            if by_any[id(p)] == 0.0:
                p.grad = None
    return flat[-1][-1] / world


def _buckets(gradients: list[Tensor]) -> list[list[Tensor]]:
    """Gradients of one type in a row, `BUCKET_BYTES` together."""
    found: list[list[Tensor]] = []
    size = 0
    for g in gradients:
        if not found or found[-1][0].dtype != g.dtype or size > BUCKET_BYTES:
            found.append([])
            size = 0
        found[-1].append(g)
        size += g.numel() * g.element_size()
    return found


def _replace(module: nn.Module, make: object) -> None:
    """Put ``make(child)`` in the place of every child, at any depth, for which it is not None."""
    assert callable(make)
    for name, child in module.named_children():
        other = make(child)
        if other is None:
            _replace(child, make)
        else:
            setattr(module, name, other.train(child.training))


def _synchronised(module: nn.Module, group: Group) -> nn.Module | None:
    """A BatchNorm of torch's or timm's over the ranks of a group; None for everything else."""
    plain = type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if plain or type(module).__name__.startswith("BatchNormAct"):
        assert isinstance(module, _BatchNorm)
        return SyncBatchNorm(module, group)
    return None


def _group_of(groups: int, world: int) -> Group:
    """This rank's part of ``groups`` equal ones; None for a single one."""
    if groups == 1:
        return None
    each = world // groups
    parts = [torch_dist.new_group(list(range(i, i + each))) for i in range(0, world, each)]
    return parts[dist.rank() // each]
