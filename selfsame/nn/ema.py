"""Teachers that are exponential moving averages of their students."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def teacher_of(student: Module) -> Module:
    """A copy with the student's weights that no gradient reaches and that drops nothing.

    Dropout and stochastic depth are switched off; BatchNorm stays as it is, so that a teacher in
    training mode normalises with its own batches and keeps its own running statistics.
    """
    teacher = deepcopy(student).requires_grad_(False)
    for module in teacher.modules():
        if isinstance(module, nn.Dropout) or type(module).__name__ == "StochasticDepth":
            module.p = 0.0  # type: ignore[assignment]
        elif hasattr(module, "drop_prob"):  # timm's name, and ours
            module.drop_prob = 0.0  # type: ignore[assignment]
    return teacher


def bounded(momentum: float, total: int, memory: float) -> float:
    """``momentum``, or less where the teacher would remember too long for a short run.

    A momentum m averages over about ``1 / (1 - m)`` steps. The papers' values suit their runs of
    10^5 steps and more, of which that is a small part; in a run of a few hundred steps the teacher
    would stay near its random start.

    Args:
        momentum: what a long run has.
        total: optimiser steps of the run.
        memory: the largest share of the run to average over; 0 for no bound.
    """
    return min(momentum, 1.0 - 1.0 / max(1.0, memory * total)) if memory else momentum


@torch.no_grad()
def update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """``teacher <- momentum * teacher + (1 - momentum) * student``, for parameters only.

    Buffers (BatchNorm's running statistics, its integer counter) are left as they are, as in the
    authors' codes of MoCo, BYOL and DINO.

    Args:
        teacher: as ``teacher_of`` gives it.
        student: a module of the same structure.
        momentum: in [0, 1]; 1 changes nothing.
    """
    ours: list[Tensor] = list(teacher.parameters())
    theirs: list[Tensor] = list(student.parameters())
    torch._foreach_lerp_(ours, theirs, 1.0 - momentum)
