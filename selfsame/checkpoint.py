"""Checkpoints, complete or absent: the state of a run is (step, method, optimizer).

A checkpoint is a folder ``step-NNNNNNNN`` with ``state.pt`` and the checksums of what is in it, so
that a file that decayed on the disk is noticed, and the checkpoint before it serves.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfsame.errors import RunError
from selfsame.files import atomic, damage, reason, refused, remove, seal

FORMAT = 2
_NAME = re.compile(r"step-(\d{8,})")


def save(
    folder: Path, step: int, method: nn.Module, optimizer: torch.optim.Optimizer, *, keep: int = 2
) -> Path:
    """Write ``folder/step-NNNNNNNN`` and drop all but the newest ``keep`` checkpoints.

    Raises:
        RunError: a value is not finite, or the disk refused; earlier checkpoints are untouched.
    """
    broken = not_finite(method, optimizer)
    if broken is not None:
        raise RunError(
            f"after step {step} the values of {broken} are not finite; nothing was saved",
            tip=f"go on from {_last(folder)} in a new run with a lower learning rate",
        )
    final = folder / f"step-{step:08d}"
    state = {
        "format": FORMAT,
        "step": step,
        "method": method.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    try:
        with atomic(final) as temporary:
            temporary.mkdir()
            with (temporary / "state.pt").open("wb") as stream:
                torch.save(state, stream)
            seal(temporary)
    except (OSError, RuntimeError) as error:  # torch's own, over the system's
        then = f"go on with --resume from {_last(folder)}"
        raise refused(f"the checkpoint of step {step}", error, then) from error
    for newer in _all(folder):
        if step_of(newer) > step:  # `load_latest` refused it
            remove(newer)
    prune(folder, step, keep)
    return final


def prune(folder: Path, step: int, keep: int = 2) -> None:
    """Drop what is needless beside the checkpoint of ``step``: old ones, and unfinished ones."""
    older = [path for path in _all(folder) if step_of(path) < step]
    for path in [*older[: 1 - keep or None], *folder.glob(".tmp-*")]:
        remove(path)


def not_finite(method: nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
    """The name of the first tensor whose values are not finite, or None.

    Buffers may hold infinities (masks of attention do), parameters and the optimiser's state may
    not. A GPU is asked once.
    """
    checks = {name: p.isfinite().all() for name, p in method.named_parameters()}
    checks |= {name: ~b.isnan().any() for name, b in method.named_buffers()}
    for number, state in enumerate(optimizer.state.values()):
        for key, value in state.items():
            if isinstance(value, Tensor):
                checks[f"the optimiser's {key} of parameter {number}"] = value.isfinite().all()
    device = next(iter(checks.values())).device if checks else None
    flags = torch.stack([check.to(device) for check in checks.values()])
    return next((name for name, good in zip(checks, flags.tolist(), strict=True) if not good), None)


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    found = _all(folder)
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


def load_latest(folder: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The state in the newest checkpoint that is undamaged, None where there is none at all.

    Damaged ones are named to ``say`` and stay until the run saves again.

    Raises:
        RunError: all are damaged.
    """
    for path in (found := _all(folder)[::-1]):
        try:
            return load(path)
        except Damaged as error:
            if not path.exists():  # a run that is going on dropped it while we were reading
                return load_latest(folder, say)
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


def _all(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), key=step_of)


def _last(folder: Path) -> str:
    """The newest checkpoint in words."""
    last = latest(folder)
    return f"step {step_of(last)}" if last else "the start"
