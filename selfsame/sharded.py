"""Checkpoints of sharded runs: every rank writes its part, any number of ranks reads them.

In the place of ``state.pt`` a checkpoint then holds what torch.distributed.checkpoint writes. Names
are those of parameters, so that a run may go on with whole weights, and on one process; whole
weights are spread again when they are read.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfsame import checkpoint, dist
from selfsame.files import damage, reason, temporary_of

INDEX = ".metadata"


def save(
    folder: Path, step: int, method: nn.Module, optimizer: torch.optim.Optimizer, *, keep: int = 2
) -> None:
    """Write ``folder/step-NNNNNNNN`` from all ranks, and drop all but the newest ``keep``.

    Raises:
        RunError: a value is not finite, or a disk refused; earlier checkpoints are untouched.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save as write

    broken = dist.everyone(checkpoint.not_finite(method, optimizer))
    with dist.agreed():
        checkpoint.refuse(next(filter(None, broken), None), folder, step)
    with dist.agreed(), ExitStack() as stack:  # complete once rank 0 has renamed it
        temporary = temporary_of(checkpoint.path_of(folder, step))
        with dist.agreed():
            if dist.is_main():
                stack.enter_context(checkpoint.writing(folder, step, keep))
        try:
            write(tensors_of(method, optimizer), checkpoint_id=temporary)
        except CheckpointException as error:  # of all ranks, where one fails
            raise checkpoint.cannot_save(folder, step, error) from error


def is_one(path: Path) -> bool:
    """Whether a checkpoint is of this kind."""
    return (path / INDEX).is_file()


def restore(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """Load a checkpoint of either kind into a method and its optimiser; the steps done.

    Raises:
        Damaged: a file is not what was written.
        RunError: it is of another format.
    """
    if is_one(path):
        load(path, method, optimizer)
    else:
        state, own = checkpoint.load(path), method.state_dict()
        method.load_state_dict({k: _part(x, own.get(k)) for k, x in state["method"].items()})
        if optimizer is not None:
            optimizer.load_state_dict(state["optimizer"])
            for parameter, fields in optimizer.state.items():
                fields.update({k: _part(x, parameter) for k, x in fields.items()})
    return checkpoint.step_of(path)


def load(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Load a sharded checkpoint into a method, sharded or whole, and into its optimiser.

    Raises:
        Damaged: a file is not what was written, or of another method.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load as read

    wrong = dist.on_main(lambda: damage(path))
    if wrong is not None:
        raise checkpoint.Damaged(path, wrong)
    try:
        saved = FileSystemReader(path).read_metadata().state_dict_metadata.keys()
        if optimizer is not None:
            _fill(optimizer)
        into = tensors_of(method, optimizer)
        # a parameter that has rested so far has no state yet
        rested = {name for name in into.keys() - saved if name.startswith("optimizer/")}
        for name in rested:
            del into[name]
        with warnings.catch_warnings():  # that one process reads is no surprise
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            read(dict(into), checkpoint_id=path, no_dist=dist.world_size() == 1)
    except Exception as error:
        raise checkpoint.Damaged(path, reason(error)) from error
    if optimizer is not None:
        for name, parameter in method.named_parameters():
            if any(key.startswith(f"optimizer/{name}/") for key in rested):
                optimizer.state.pop(parameter, None)


def tensors_of(
    method: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Tensor]:
    """All that a run remembers, by name; not copies."""
    found = {f"method/{name}": x for name, x in method.state_dict().items()}
    if optimizer is not None:
        for name, parameter in method.named_parameters():
            for field, x in optimizer.state.get(parameter, {}).items():
                found[f"optimizer/{name}/{field}"] = x
    return found


def _part(x: Any, like: Any) -> Any:
    """This rank's part of a whole tensor where ``like`` is a sharded one of its shape; else x."""
    if not hasattr(like, "placements") or getattr(x, "shape", None) != like.shape:
        return x
    from torch.distributed.tensor import distribute_tensor

    whole = x.contiguous()  # fused optimisers want the layout of the parameter, not channels last
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def _fill(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter the state that an optimiser makes at its first step, moving none."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, lr in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = lr
