"""Several processes that learn as one: what is done to a method, and to its gradients."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from selfsame import dist
from selfsame.backbones.vit import Block
from selfsame.errors import UsageError, unknown
from selfsame.nn.batchnorm import Group, SyncBatchNorm, resting_statistics
from selfsame.nn.drop import of_the_batch
from selfsame.nn.heads import DINOHead
from selfsame.types import Backbone, Method

BUCKET_BYTES = 32 * 2**20  # of gradients that travel together
KERNELS = 64  # compiled forms of a block: shapes of crops, with and without gradient, stages


class Layout(NamedTuple):
    """How a run is laid out. Options of the run: none changes what is learnt."""

    accumulate: int = 1  # micro-batches of a rank's part of the batch
    parallel: Literal["ddp", "fsdp"] = "ddp"  # whole weights on every rank, or a part on each
    checkpoint_activations: bool = False  # compute them again instead of keeping them
    compile: bool = False  # the blocks of networks by ``torch.compile``


def check_layout(layout: Layout, batch: int, world: int, method: type[Method]) -> None:
    """Refuse a layout that does not go with a batch, a number of processes or a method.

    Raises:
        UsageError: with what does.
    """
    accumulate = layout.accumulate
    if accumulate < 1:
        raise UsageError(f"accumulate is {accumulate}", tip="it is a number of parts, 1 or more")
    parts = world * accumulate
    if batch % parts:
        words = [f"{world} processes"] * (world > 1)
        words += [f"{accumulate} micro-batches"] * (accumulate > 1)
        fitting = [n for n in (batch // parts * parts, batch // parts * parts + parts) if n]
        raise UsageError(
            f"a batch of {batch} cannot be divided among {' of '.join(words)}",
            tip="the batch is the recipe's, whatever the number of processes: take a divisor of "
            f"{batch}, or --batch-size {' or '.join(map(str, fitting))}",
        )
    if layout.parallel not in ("ddp", "fsdp"):
        raise unknown("way to be parallel", layout.parallel, ["ddp", "fsdp"])
    if layout.parallel == "fsdp" and not method.shardable:
        raise UsageError(
            f"{method.__name__} cannot be sharded",
            tip="leave --parallel out; mae, dino, ibot and dinov2 can",
        )
    if layout.parallel == "fsdp" and world == 1:
        raise UsageError("one process has nothing to shard", tip="leave --parallel out")
    if layout.compile and layout.checkpoint_activations:
        raise UsageError(
            "--compile does not go with --checkpoint-activations",
            tip="leave one of them out; --accumulate saves memory, too",
        )


def check_compiler(device: torch.device) -> None:
    """Refuse to compile where nothing does: ``torch.compile`` needs Triton, or a C++ compiler.

    Raises:
        UsageError: with what is missing.
    """
    if device.type == "cpu":
        name = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(
            sys.platform, "g++"
        )
        if shutil.which(name) is None:
            raise UsageError(
                f"there is no C++ compiler {name!r} for --compile",
                tip="install g++ or clang++ (CXX names another), or leave --compile out",
            )
    elif importlib.util.find_spec("triton") is None:
        raise UsageError(
            f"--compile needs Triton for {device.type}",
            tip="pip install triton, or leave --compile out",
        )


def prepare(
    method: Method, layout: Layout, precision: Literal["auto", "bf16", "fp32"] = "fp32"
) -> None:
    """Make a method learn from its part of a batch as from the whole, in place.

    BatchNorm takes its statistics from all ranks, or from those that `Method.norm_groups` puts
    together; dropout is drawn for the whole batch. Alone, and without options, nothing changes.
    Call it on every rank, before the optimiser is built. ``precision`` is that of the autocast in
    which every forward pass of the method is taken; "bf16" then lets FSDP gather in bfloat16 what
    is multiplied in it.
    """
    world = dist.world_size()
    if world * layout.accumulate > 1:
        _replace(method, of_the_batch)
    if world > 1:
        _synchronise(method, world)
    if layout.checkpoint_activations:
        _checkpoint_activations(method)
    if layout.compile:
        _compile(method)
    if layout.parallel == "fsdp":
        shard(method, layout.accumulate, half=precision == "bf16" and not layout.compile)


def _synchronise(method: Method, world: int) -> None:
    groups = method.norm_groups()
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


def _compile(method: Method) -> None:
    """Have the blocks of all backbones, teachers too, compiled at their first call, in place.

    Blocks alone: they are most of the work, alike, and quick to compile. Names in the state dict
    stay as they are, and draws at random are those of PyTorch's own operations.
    """
    import torch._dynamo.config
    import torch._inductor.config

    torch._dynamo.config.recompile_limit = max(KERNELS, torch._dynamo.config.recompile_limit)
    torch._inductor.config.fallback_random = True
    for block in _blocks(method):
        block.compile()


def _blocks(method: Method) -> Iterator[nn.Module]:
    for network in method.modules():
        if isinstance(network, Backbone):
            yield from network.blocks()


def release(method: Method) -> None:
    """Leave the networks as they are written: what a run ends with is compiled no more."""
    for block in _blocks(method):
        block._compiled_call_impl = None  # what `nn.Module.compile` sets; torch has no undo


def as_written(layout: Layout) -> AbstractContextManager[object]:
    """A region where nothing is compiled: an evaluation has other shapes, and few of them."""
    if not layout.compile:
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


def _checkpoint_activations(method: Method) -> None:
    """Keep only the inputs of the trained backbones' blocks; the rest is computed again."""
    for network in method.modules():
        if isinstance(network, Backbone) and any(p.requires_grad for p in network.parameters()):
            for block in network.blocks():
                # an attribute of the instance: names in the state dict stay as they are
                block.forward = partial(
                    checkpoint,
                    block.forward,
                    use_reentrant=False,
                    context_fn=partial(_once_more, block),
                )


def _once_more(block: nn.Module) -> tuple[AbstractContextManager[None], ...]:
    """Around the first pass through a block, and around the second."""
    return nullcontext(), resting_statistics(block)


def shard(method: Method, accumulate: int, *, half: bool = False) -> None:
    """Spread weights, gradients and optimiser state over all ranks with FSDP2, in place.

    Units are the entries of every ``ModuleList`` (blocks of encoders, teachers and decoders) and
    the parts of DINO's heads; the rest is one unit. Weights are gathered and gradients summed in
    float32; autocast alone chooses where bfloat16 is used, so that precision is that of one process
    (a LayerNorm on a CPU refuses bfloat16 weights beside the float32 of the residual).

    With ``half`` the linear layers of our ViT's blocks, nearly all of its weights, are units of
    their own, gathered in the bfloat16 that autocast would round them to a moment later: half the
    traffic, and the same bits. Gradients are still summed in float32. Every forward pass must then
    be under autocast.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    device = next(method.parameters()).device
    method.to(memory_format=torch.contiguous_format)  # all that FSDP2 knows
    mesh = init_device_mesh(device.type, (dist.world_size(),))
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    rounded = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for module in list(method.modules()):
        if isinstance(module, nn.ModuleList):
            for unit in module:
                if half and isinstance(unit, Block):
                    linear = [part for part in unit.modules() if type(part) is nn.Linear]
                    fully_shard([*linear], mesh=mesh, mp_policy=rounded)
                fully_shard(unit, mesh=mesh, mp_policy=policy)
        elif isinstance(module, DINOHead):
            for unit in module.children():
                fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(method, mesh=mesh, mp_policy=policy)
    if accumulate > 1 and method.batch_coupled:  # then these are called, and not ``forward``
        register_fsdp_forward_method(method, "embed")
        register_fsdp_forward_method(method, "loss")


def is_sharded(method: nn.Module) -> bool:
    """Whether `shard` has been here."""
    return hasattr(method, "unshard")


def whole(method: Method, build: Callable[[], Method]) -> Method:
    """The method with all its weights on every rank: itself, or, if it is sharded, a copy.

    Args:
        method: as it is trained; every rank calls this.
        build: makes a method of the same kind.
    """
    if not is_sharded(method):
        return method
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    copy = build()
    options = StateDictOptions(full_state_dict=True)
    copy.load_state_dict(get_model_state_dict(method, options=options))
    return copy


def average(method: nn.Module, loss: Tensor) -> Tensor:
    """Average the gradients of a method over all ranks, in place; the average of ``loss``, [].

    What is not finite on one rank is not finite on any afterwards. A parameter that no rank used
    keeps the gradient None; one that some rank used counts as zero on the others.
    """
    world = dist.world_size()
    if world == 1:
        return loss
    if is_sharded(method):  # whose gradients are averaged where they are made
        return dist.mean(loss)
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
