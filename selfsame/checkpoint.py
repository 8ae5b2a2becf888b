"""Checkpoints, complete or absent: the state of a run is (step, method, optimizer)."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from selfsame.errors import RunError
from selfsame.files import atomic

FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")


def save(
    folder: Path, step: int, method: nn.Module, optimizer: torch.optim.Optimizer, *, keep: int = 2
) -> Path:
    """Write ``folder/step-NNNNNNNN/state.pt`` and drop all but the newest ``keep`` checkpoints.

    Raises:
        RunError: the disk refused; earlier checkpoints are untouched.
    """
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
            torch.save(state, temporary / "state.pt")
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        last = latest(folder)
        raise RunError(
            f"cannot save the checkpoint of step {step}: {_first_line(error)}",
            tip="free some disk space, then go on with --resume from "
            + (f"step {step_of(last)}" if last else "the start"),
        ) from error
    for old in all_of(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    found = all_of(folder)
    return found[-1] if found else None


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state in a checkpoint: ``step``, ``method`` and ``optimizer``.

    Raises:
        RunError: the file is damaged or of another format.
    """
    try:
        state: dict[str, Any] = torch.load(
            path / "state.pt", map_location=device, weights_only=True
        )
    except Exception as error:
        raise RunError(
            f"cannot read the checkpoint {path}: {_first_line(error)}",
            tip=f"delete {path} to go on from the one before it",
        ) from error
    if state.get("format") != FORMAT:
        raise RunError(f"{path} has checkpoint format {state.get('format')}, not {FORMAT}")
    return state


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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
