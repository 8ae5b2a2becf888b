"""Schedules as pure functions of the step, in optimiser steps and never in epochs.

Every schedule is half-open, as the authors' codes write it: step 0 has exactly the start value and
step ``total`` *would* have exactly the end value, so the last step that runs, ``total - 1``, stops
just short of it. Steps before 0 or after ``total`` give the nearer end.
"""

from __future__ import annotations

import math


def linear(step: float, total: float, start: float, end: float) -> float:
    """Straight line from ``start`` at step 0 to ``end`` at step ``total``.

    The last step, ``total - 1``, has ``end - (end - start) / total``. A ramp that must reach its
    end *on* its last step (``numpy.linspace(start, end, n)``) is ``linear(step, n - 1, ...)``.
    """
    return start + (end - start) * _fraction(step, total)


def cosine(step: float, total: float, start: float, end: float) -> float:
    """Half a cosine from ``start`` at step 0 to ``end`` at step ``total``; either may be larger.

    ``end + (start - end) * (1 + cos(pi * step / total)) / 2``, so the last step, ``total - 1``,
    has ``end + (start - end) * sin(pi / (2 * total)) ** 2``. Source: Loshchilov and Hutter, SGDR,
    arXiv 1608.03983, equation 5, without restarts.
    """
    return end + (start - end) * (1 + math.cos(math.pi * _fraction(step, total))) / 2


def warmup_cosine(
    step: float,
    total: float,
    warmup_steps: float,
    peak: float,
    final: float,
    *,
    start: float = 0.0,
    closed: bool = False,
) -> float:
    """Linear ramp from ``start`` to ``peak`` over ``warmup_steps``, then a cosine to ``final``.

    Step 0 has ``start`` (``peak`` where ``warmup_steps`` is 0), step ``warmup_steps`` has ``peak``,
    and step ``total - 1`` has ``cosine(n - 1, n, peak, final)`` with ``n = total - warmup_steps``.
    ``closed`` lets the ramp reach ``peak`` on its last step, so that two steps have it: SwAV, DINO,
    iBOT and DINOv2 write their ramps with ``numpy.linspace``.
    Source: Goyal et al., arXiv 1706.02677, section 2.2, and the schedules of SimCLR, BYOL, MAE.
    """
    if step < warmup_steps:
        return linear(step, warmup_steps - 1 if closed else warmup_steps, start, peak)
    return cosine(step - warmup_steps, total - warmup_steps, peak, final)


def _fraction(step: float, total: float) -> float:
    """``step / total`` kept in [0, 1]; 1 where there is nothing to walk through."""
    return min(max(step / total, 0.0), 1.0) if total > 0 else 1.0
