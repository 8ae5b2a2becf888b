"""Checkpoints, complete or absent: the state of a run is (step, method, optimizer).

A checkpoint is a folder ``step-NNNNNNNN`` with ``state.pt`` and the checksums of what is in it, so
that a file that decayed on the disk is noticed, and the checkpoint before it serves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from selfsame.errors import RunError
from selfsame.files import atomic, damage, reason, refused, remove, seal

FORMAT = 2
T = TypeVar("T")
_NAME = re.compile(r"step-(\d{8,})")


def save(
    folder: Path, step: int, method: nn.Module, optimizer: torch.optim.Optimizer, *, keep: int = 2
) -> None:
    """Write ``folder/step-NNNNNNNN`` and drop all but the newest ``keep`` checkpoints.

    Raises:
        RunError: a value is not finite, or the disk refused; earlier checkpoints are untouched.
    """
    refuse(not_finite(method, optimizer), folder, step)
    state = {
        "format": FORMAT,
        "step": step,
        "method": method.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    with writing(folder, step, keep) as temporary, (temporary / "state.pt").open("wb") as stream:
        torch.save(state, stream)


@contextmanager
def writing(folder: Path, step: int, keep: int) -> Iterator[Path]:
    """Give a folder to fill with the state; then it is sealed and becomes the newest checkpoint.

    Raises:
        RunError: the disk refused; earlier checkpoints are untouched.
    """
    try:
        with atomic(path_of(folder, step)) as temporary:
            temporary.mkdir()
            yield temporary
            seal(temporary)
    except (OSError, RuntimeError) as error:  # torch's own, over the system's
        raise cannot_save(folder, step, error) from error
    for newer in all_of(folder):
        if step_of(newer) > step:  # `load_latest` refused it
            remove(newer)
    prune(folder, step, keep)


def cannot_save(folder: Path, step: int, error: BaseException) -> RunError:
    """The error of a checkpoint that the disk refused."""
    then = f"go on with --resume from {_last(folder)}"
    return refused(f"the checkpoint of step {step}", error, then)


def refuse(broken: str | None, folder: Path, step: int) -> None:
    """Raise a RunError where ``broken`` names a tensor that is not finite."""
    if broken is not None:
        raise RunError(
            f"after step {step} the values of {broken} are not finite; nothing was saved",
            tip=f"go on from {_last(folder)} in a new run with a lower learning rate",
        )


def prune(folder: Path, step: int, keep: int = 2) -> None:
    """Drop what is needless beside the checkpoint of ``step``: old ones, and unfinished ones."""
    older = [path for path in all_of(folder) if step_of(path) < step]
    for path in [*older[: 1 - keep or None], *folder.glob(".tmp-*")]:
        remove(path)


def not_finite(method: nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
    """The name of the first tensor whose values are not finite, or None.

    Buffers may hold infinities (masks of attention do), parameters and the optimiser's state may
    not. Of sharded tensors, this rank's part is looked at. A GPU is asked once.
    """
    checks = {name: _local(p).isfinite().all() for name, p in method.named_parameters()}
    checks |= {name: ~_local(b).isnan().any() for name, b in method.named_buffers()}
    for number, state in enumerate(optimizer.state.values()):
        for key, value in state.items():
            if isinstance(value, Tensor):
                name = f"the optimiser's {key} of parameter {number}"
                checks[name] = _local(value).isfinite().all()
    device = next(iter(checks.values())).device if checks else None
    flags = torch.stack([check.to(device) for check in checks.values()])
    return next((name for name, good in zip(checks, flags.tolist(), strict=True) if not good), None)


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    found = all_of(folder)
    return found[-1] if found else None


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state in a checkpoint: ``step``, ``method`` and ``optimizer``.

    Raises:
        Damaged: the file is not what was written.
        RunError: it is of another format.
    """
    wrong = damage(path)
    if wrong is not None:
        raise Damaged(path, wrong)
    try:
        state: dict[str, Any] = torch.load(
            path / "state.pt", map_location=device, weights_only=True
        )
    except Exception as error:
        raise Damaged(path, reason(error)) from error
    if state.get("format") != FORMAT:
        raise RunError(f"{path} has checkpoint format {state.get('format')}, not {FORMAT}")
    return state


def load_latest(
    folder: Path, say: Callable[[str], None], read: Callable[[Path], T] | None = None
) -> T | None:
    """What ``read`` makes of the newest checkpoint that is undamaged, None where there is none.

    Damaged ones are named to ``say`` and stay until the run saves again.

    Args:
        folder: of checkpoints.
        say: tells people.
        read: `load`, or what else raises ``Damaged``.

    Raises:
        RunError: all are damaged.
    """
    for path in (found := all_of(folder)[::-1]):
        try:
            return (read or load)(path)  # type: ignore[return-value]
        except Damaged as error:
            if not path.exists():  # a run that is going on dropped it while we were reading
                return load_latest(folder, say, read)
            say(f"damaged    {error}; going back to the one before it")
            last = error
    if found:
        raise RunError(str(last), tip=f"delete {folder} to begin again from the start") from last
    return None


class Damaged(RunError):  # noqa: N818
    """A checkpoint that is not what was written."""

    def __init__(self, path: Path, wrong: str) -> None:
        super().__init__(
            f"cannot read the checkpoint {path}: {wrong}",
            tip=f"delete {path} to go on from the one before it",
        )


def step_of(path: Path) -> int:
    """The number of optimiser steps done at a checkpoint."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def all_of(folder: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), key=step_of)


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:08d}"


def _local(x: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; others are whole."""
    part: Tensor = x.to_local() if hasattr(x, "to_local") else x
    return part


def _last(folder: Path) -> str:
    """The newest checkpoint in words."""
    last = latest(folder)
    return f"step {step_of(last)}" if last else "the start"
