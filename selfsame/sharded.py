"""Checkpoints of sharded runs: every rank writes its part, any number of ranks reads them.

In the place of ``state.pt`` a checkpoint then holds what torch.distributed.checkpoint writes. Names
are those of parameters, so that a run may go on with whole weights, and on one process.
"""

from __future__ import annotations

import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from selfsame import checkpoint, dist
from selfsame.errors import RunError
from selfsame.files import atomic, temporary_of

INDEX = ".metadata"


def save(
    folder: Path, step: int, method: nn.Module, optimizer: torch.optim.Optimizer, *, keep: int = 2
) -> Path:
    """Write ``folder/step-NNNNNNNN`` from all ranks, and drop all but the newest ``keep``.

    Raises:
        RunError: a disk refused; earlier checkpoints are untouched.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save as write

    final = folder / f"step-{step:08d}"
    place = atomic(final) if dist.is_main() else nullcontext(temporary_of(final))
    try:
        with dist.agreed(), place as temporary:  # complete once rank 0 has renamed it
            dist.on_main(temporary.mkdir)
            write(tensors_of(method, optimizer), checkpoint_id=temporary)
    except (OSError, CheckpointException) as error:
        last = checkpoint.latest(folder)
        raise RunError(
            f"cannot save the checkpoint of step {step}: {error}",
            tip="free some disk space, then go on with --resume from "
            + (f"step {checkpoint.step_of(last)}" if last else "the start"),
        ) from error
    if dist.is_main():
        for old in checkpoint.all_of(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    return final


def is_one(path: Path) -> bool:
    """Whether a checkpoint is of this kind."""
    return (path / INDEX).is_file()


def load(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Load a checkpoint into a method, sharded or whole, and into its optimiser.

    Raises:
        RunError: a file is damaged, or of another method.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load as read

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
        raise RunError(
            f"cannot read the checkpoint {path}: {error}",
            tip=f"delete {path} to go on from the one before it",
        ) from error
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
