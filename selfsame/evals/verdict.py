"""The verdict on a run: a state, the likely cause of what is wrong, and the knob to turn.

It reads three things and nothing else: the rows of label-free health (`selfsame.evals.probe`), the
rows of ``metrics.jsonl`` and the recipe. Every threshold stands between what healthy runs and runs
with a planted fault gave, on three seeds; the ranges are next to it and in ``docs/health.md``, and
``tests/evals/planted.py`` measures them anew.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from selfsame import optim
from selfsame.recipe import Recipe

Row = Mapping[str, Any]

ROWS = 5  # of metrics.jsonl, below which nothing but a clear collapse is said


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
        wrap = textwrap.TextWrapper(100, initial_indent=" " * 11, subsequent_indent=" " * 11)
        return [
            f"verdict    {self.headline}",
            *wrap.wrap(self.reason),
            *wrap.wrap(f"tip: {self.tip}"),
        ]


class Finding(NamedTuple):
    """Something that is wrong with a run. ``state`` is None where the run may go on well."""

    cause: str | None
    reason: str
    tip: str
    state: str | None = None
    kind: str | None = None


@dataclass(frozen=True)
class Evidence:
    """What a verdict may read."""

    health: Sequence[Row]  # in the order of steps
    metrics: Sequence[Row]
    recipe: Recipe

    @property
    def first(self) -> Row:
        """Health before the first step."""
        return self.health[0]

    @property
    def last(self) -> Row:
        """Health now."""
        return self.health[-1]

    @property
    def compares_views(self) -> bool:
        """Whether the method is given several views of an image to make alike."""
        return sum(view.count for view in self.recipe.views) > 1

    def late(self, key: str) -> float | None:
        """The median of a training metric over the last quarter; None where it is not measured."""
        values = [row[key] for row in self.metrics if key in row]
        return median(values[-max(1, len(values) // 4) :]) if len(values) >= ROWS else None


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
        return Verdict("unstable", None, diverged, "learning rate", _slower(recipe))
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


# What can be wrong: a cause before its consequences. ---------------------------------------------


def learning_rate(e: Evidence) -> Finding | None:
    """Steps as large as the weights, and weights that grew.

    A step of AdamW changes a weight by about the learning rate, one of LARS by the trust ratio
    times it, one of SGD by the gradient times it over ``1 - momentum``.
    """
    if len(e.metrics) < ROWS or not e.first.get("weight_rms"):
        return None
    size, grown = e.first["weight_rms"], e.last["weight_rms"] / e.first["weight_rms"]
    relative = max(_relative_step(row, size, e.recipe.optim) for row in e.metrics)
    if relative < RELATIVE_STEP or grown < GROWTH:
        return None
    return Finding(
        "learning rate",
        f"A step changed a typical weight by {relative:.1f} times its size at the start (0.1 is "
        f"much), and the weights grew {grown:.1f} times: what they held is overwritten.",
        _slower(e.recipe),
        "unstable",
    )


def targets(e: Evidence) -> Finding | None:
    """A teacher whose targets are the same for all images, or a single prototype each.

    DINO, section 5.3: without centring one prototype takes all images, without sharpening every
    image gets all prototypes alike. The entropy of the mean target, H + I, counts the prototypes
    that are in use, the information I tells how well they tell images apart.
    """
    entropy, information = e.late("teacher_entropy"), e.late("information")
    count = getattr(e.recipe.method, "outputs", None)
    if entropy is None or information is None or not count:
        return None
    most = math.log(count)
    told = information / min(most, math.log(2 * e.recipe.batch_size))
    numbers = (
        f"Of {count:,} prototypes {math.exp(entropy + information):,.0f} are in use, a target "
        f"spreads over {math.exp(entropy):,.1f} and tells {information:.2f} nats about its image"
    )
    sharpness = "--set method.teacher_temperature=... (papers have 0.04 to 0.07)"
    if told < SAME and entropy > UNIFORM * most:
        return Finding(
            "temperature too high",
            f"{numbers}: all images have the same, uniform target.",
            f"sharpen the teacher: lower {sharpness}",
            "collapsed",
            "complete",
        )
    if told < DISTINCT and entropy + information < IN_USE * most:
        return Finding(
            "centring",
            f"{numbers}: a few prototypes take all images.",
            "the centre does not hold the teacher's outputs apart: --set "
            "method.center_momentum=0.9, or a higher temperature of the teacher",
            "collapsed",
            "complete" if told < SAME else "dimensional",
        )
    if told > DISTINCT and entropy < SHARP * most:
        return Finding(
            "temperature too low",
            f"{numbers}: the student must copy guesses as if they were certain.",
            f"soften the teacher: raise {sharpness}",
        )
    return None


def projections(e: Evidence) -> Finding | None:
    """Projections that use little of their sphere: what a stop-gradient prevents."""
    spread = e.late("spread")
    if spread is None or spread > SPREAD:
        return None
    loss = e.late("loss")
    return Finding(
        "stop-gradient",
        f"The projections' deviation is {spread:.2f} of that of isotropic ones, at a loss of "
        f"{loss:.3g}: both views are mapped to nearly the same place, whatever the image.",
        "gradient reaches the targets: detach them, and keep the predictor or the slow teacher",
        "collapsed",
        "complete" if spread < COMPLETE else "dimensional",
    )


def features(e: Evidence) -> Finding | None:
    """An encoder that gives every image the same features, or uses few of its dimensions."""
    share = e.last["feature_std"] / e.last["feature_std_reference"]
    tip = (
        "strengthen what keeps features apart (negatives, variance, centring, stop-gradient), or "
        "lower the learning rate"
    )
    if share < STD:
        return Finding(
            None,
            f"The features' deviation is {share:.3f} of 1/sqrt(d): all images look alike to the "
            "encoder.",
            tip,
            "collapsed",
            "complete",
        )
    if not e.compares_views or e.last["step"] == 0:
        return None  # who reconstructs begins with few dimensions and gains them slowly
    most = min(e.last["images"], e.last["dim"])
    rank, before = e.last["rankme"], e.first["rankme"]
    if rank < RANK_KEPT * before and rank < RANK * most:
        return Finding(
            None,
            f"The features fill {rank:.1f} of {most:.0f} dimensions, and filled {before:.1f} at "
            "random initialisation.",
            tip,
            "collapsed",
            "dimensional",
        )
    return None


def weak_views(e: Evidence) -> Finding | None:
    """A task that raw pixels solve."""
    if not e.compares_views or e.last["images"] < IMAGES:
        return None
    found = e.last["pixel_match"]
    if found < WEAK:
        return None
    return Finding(
        "weak views",
        f"In raw pixels, {found:.0%} of the images find their other view among all (in the first "
        f"row's features, {e.first['view_match']:.0%}): there is little to learn.",
        "crop more, --set views.scale=[0.2,1.0], and change colours: --set views.jitter=0.8",
    )


def shortcut(e: Evidence) -> Finding | None:
    """Views that are matched by what is constant over an image: its colours, a cast, a level."""
    if not e.compares_views or e.last["step"] == 0 or e.last["images"] < IMAGES:
        return None
    before, after, found = e.first["neutral_match"], e.last["neutral_match"], e.last["view_match"]
    if after > min(KEPT * before, RECOGNISED) or found < SOLVED:
        return None
    return Finding(
        "shortcut",
        f"{found:.0%} of the images find their other view, but only {after:.0%} are recognised "
        f"once their channels have the same mean and deviation, and {before:.0%} were by random "
        "weights: the views share their colours or a level, and the encoder learnt that.",
        "change what the views share: --set views.jitter=0.8 --set views.grayscale=0.2; leave out "
        "channels that are constant over an image",
    )


def temperature(e: Evidence) -> Finding | None:
    """Negatives that all count the same, or of which few count.

    Many negatives and much training move the measure, too, so only a temperature outside of what
    papers have is named.
    """
    shared, value = e.late("negatives"), getattr(e.recipe.method, "temperature", None)
    if shared is None or value is None:
        return None
    low, high = PUBLISHED
    if shared > ALIKE and value > high:
        return Finding(
            "temperature too high",
            f"The entropy of the negatives' weights is {shared:.1%} of its maximum: near and far "
            "ones are pushed away alike.",
            f"lower --set method.temperature=... (now {value:g}; papers have 0.07 to 0.5)",
        )
    if shared < FEW and value < low:
        return Finding(
            "temperature too low",
            f"The entropy of the negatives' weights is {shared:.1%} of its maximum: the few "
            "nearest images are pushed away, though they may show the same thing.",
            f"raise --set method.temperature=... (now {value:g}; papers have 0.07 to 0.5)",
        )
    return None


LOOKS: tuple[Callable[[Evidence], Finding | None], ...] = (
    learning_rate,
    targets,
    projections,
    weak_views,
    shortcut,
    features,
    temperature,
)

# Thresholds, each between healthy runs and runs with the fault; ranges over seeds. ---------------

RELATIVE_STEP = 1.0
GROWTH = 2.0
SAME = 0.02
UNIFORM = 0.95
DISTINCT = 0.4
IN_USE = 0.5
SHARP = 0.1
SPREAD = 0.6
COMPLETE = 0.1
STD = 0.1
RANK = 0.1
RANK_KEPT = 0.6
IMAGES = 256  # of the probe, below which a share of matches says little
WEAK = 0.7
KEPT = 1.1
RECOGNISED = 0.4
SOLVED = 0.5
ALIKE = 0.985
FEW = 0.76
PUBLISHED = (0.05, 1.0)
UNSURE = 0.25


def trend(metrics: Sequence[Row], health: Sequence[Row] = ()) -> tuple[str, str, str]:
    """Whether a run still improves: a state, a reason and a tip.

    A straight line through the second half of the logged losses, and its standard error. A loss
    that rises says nothing where its targets move (queues, teachers, clusters): then the matches of
    views decide, once there are enough of them.
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
        f"{abs(fall):.3g} (+- {2 * error:.2g}) after {begin:.3g} at the start."
    )
    if fall < -2 * error:
        said += " Where targets move, it may rise."
        matches = [(row["step"], -row["view_match"]) for row in health]
        late = matches[len(matches) // 2 :]
        if len(late) < ROWS:
            return "too early to tell", said, "train longer"
        fall, error = _fall(late)
        total = -late[0][1]
        said += f" The share of views that find each other rose by {fall:.2f} (+- {2 * error:.2g})."
    if fall > 2 * error:
        return "still improving", said, "train longer: --epochs or --steps"
    if 2 * error > UNSURE * total:
        return "too early to tell", said, "train longer, or log more often with --log-every"
    return "plateaued", said, "stop here; more data, a larger network or another method may help"


def _fall(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """How far a fitted line falls from the first point to the last, and the error of that."""
    n = len(points)
    mean_x, mean_y = (sum(p[i] for p in points) / n for i in (0, 1))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    left = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    span = points[-1][0] - points[0][0]
    return -slope * span, span * math.sqrt(left / (n - 2) / spread)


def _relative_step(row: Row, size: float, options: optim.Optim) -> float:
    """By what share of its size, at the start, a step changes a typical weight of the encoder."""
    if options.name == "adamw":
        return float(row["lr"]) / size
    if options.name == "lars":
        return float(row["lr"]) * options.trust_coefficient / (1 - options.momentum)
    return 0.0


def _slower(recipe: Recipe) -> str:
    return (
        f"lower the learning rate: --set optim.lr=... (now {recipe.optim.lr:g}), or warm up longer"
    )


def _healthy(e: Evidence) -> str:
    last = e.last
    return (
        f"Not collapsed: RankMe {last['rankme']:.1f} of {min(last['dim'], last['images']):.0f} "
        f"({e.first['rankme']:.1f} at the start), deviation "
        f"{last['feature_std'] / last['feature_std_reference']:.2f} of 1/sqrt(d)."
    )
