"""The verdict on a run: a state, the likely cause of what is wrong, and the knob to turn.

It reads three things and nothing else: the rows of label-free health (`selfsame.evals.probe`), the
rows of ``metrics.jsonl`` and the recipe. ``docs/health.md`` explains it.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from selfsame.evals.faults import LOOKS, ROWS, STD, Evidence, Row, slower
from selfsame.recipe import Recipe

SMALL = 0.1  # of the fall since the start: what a run that has come to rest may still move


class Verdict(NamedTuple):
    """What a run amounts to, in words."""

    state: str  # "collapsed", "unstable", "still improving", "plateaued" or "too early to tell"
    kind: str | None  # of a collapse: "complete" or "dimensional"
    reason: str  # the numbers
    cause: str | None  # the likely one, of whatever is wrong; None where nothing is, or unknown
    tip: str  # the knob to turn

    @property
    def headline(self) -> str:
        """State and cause."""
        state = f"{self.state} ({self.kind})" if self.kind else self.state
        return f"{state}, likely cause: {self.cause}" if self.cause else state

    def lines(self) -> list[str]:
        """For the terminal."""
        wrap = textwrap.TextWrapper(
            80,
            initial_indent=" " * 11,
            subsequent_indent=" " * 11,
            break_on_hyphens=False,
        )
        return [
            f"verdict    {self.headline}",
            *wrap.wrap(self.reason),
            *wrap.wrap(f"tip: {self.tip}"),
        ]


def judge(
    health: Sequence[Row], metrics: Sequence[Row], recipe: Recipe, *, diverged: str | None = None
) -> Verdict:
    """The verdict on a run.

    Args:
        health: rows of protocol "health" of ``eval.jsonl``, the first before the first step.
        metrics: rows of ``metrics.jsonl``.
        recipe: what the run learns with.
        diverged: why the run could not go on, if it could not.
    """
    if diverged is not None:
        return Verdict("unstable", None, diverged, "learning rate", slower(recipe))
    evidence = Evidence(sorted(health, key=lambda row: row["step"]), metrics, recipe)
    for look in LOOKS:
        found = look(evidence)
        if found is not None:
            break
    if found is not None and found.state is not None:
        return Verdict(found.state, found.kind, found.reason, found.cause, found.tip)
    state, reason, tip = trend(metrics, evidence.health)
    if found is not None:
        return Verdict(state, None, f"{found.reason} {reason}", found.cause, found.tip)
    return Verdict(state, None, f"{_healthy(evidence)} {reason}", None, tip)


def trend(metrics: Sequence[Row], health: Sequence[Row] = ()) -> tuple[str, str, str]:
    """Whether a run still improves: a state, a reason and a tip.

    A straight line through the second half of the logged losses, and the 95 % interval of its fall.
    A loss that rises says nothing where its targets move (queues, teachers, clusters): then the
    matches of views decide, once there are enough of them.
    """
    points = [(row["step"], row["loss"]) for row in metrics]
    late = points[len(points) // 2 :]
    if len(late) < ROWS:
        return "too early to tell", "Too few losses are logged.", "train longer"
    fall, error = _fall(late)
    begin = median(loss for _, loss in points[:3])
    total = max(begin - median(loss for _, loss in late), fall)
    said = (
        f"Over the second half of the run the loss {'fell' if fall >= 0 else 'rose'} by "
        f"{abs(fall):.3g} (+- {error:.2g}) after {begin:.3g} at the start."
    )
    if fall < -error:
        said += " Where targets move, it may rise."
        matches = [(row["step"], -row["view_match"]) for row in health]
        late = matches[len(matches) // 2 :]
        if len(late) < ROWS:
            return "too early to tell", said, "train longer"
        fall, error = _fall(late)
        total = -late[0][1]
        said += f" The share of views that find each other rose by {fall:.2f} (+- {error:.2g})."
    if abs(fall) + error <= SMALL * total:
        tip = "stop here; more data, a larger network or another method may help"
        return "plateaued", said, tip
    if fall > error:
        return "still improving", said, "train longer: --epochs or --steps"
    return "too early to tell", said, "train longer, or log more often with --log-every"


def _fall(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """How far a fitted line falls from the first point to the last; half its 95 % interval."""
    n = len(points)
    mean_x, mean_y = (sum(p[i] for p in points) / n for i in (0, 1))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    left = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    span = points[-1][0] - points[0][0]
    return -slope * span, student(n - 2) * span * math.sqrt(left / (n - 2) / spread)


def student(freedom: int) -> float:
    """Deviations that 95 % of Student's t lie within: 1.96 for many degrees of freedom.

    Source: Abramowitz and Stegun, 26.7.5; off by less than 1 % from three degrees on.
    """
    return 1.96 + 2.372 / freedom + 2.823 / freedom**2 + 2.556 / freedom**3


def _healthy(e: Evidence) -> str:
    last = e.last
    share = last["feature_std"] / last["feature_std_reference"]
    said = (
        f"Not collapsed: RankMe {last['rankme']:.1f} of {min(last['dim'], last['images']):.0f} "
        f"({e.first['rankme']:.1f} at the start), deviation {share:.2f} of 1/sqrt(d)."
    )
    if share < STD:
        said += (
            f" All features share a large part, but {last['view_match']:.0%} of the images find "
            "their other view: centre and scale each dimension before you compare by cosine."
        )
    return said
