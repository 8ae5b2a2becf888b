"""What can be wrong with a run: each fault looks for itself in the rows of a run.

Every threshold stands between what healthy runs and runs with the fault planted gave; the ranges
are next to it and in ``docs/health.md``, and ``tests/evals/planted.py`` measures them anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from selfsame import optim
from selfsame.recipe import Recipe

Row = Mapping[str, Any]

ROWS = 5  # of metrics.jsonl, below which nothing but a clear collapse is said
IMAGES = 256  # of the probe, below which RankMe and shares of matches say little

# Thresholds. Behind each, what recorded runs had: healthy ones | those with the fault.
RELATIVE_STEP = 1.0  # over the size of a weight: 0.03 to 0.04 | 2.7 to 3.8
GROWTH = 2.0  # of the weights since the start: 1.00 to 1.18 | 3.1 to 14.7
GROWTH_ALONE = 5.0  # the same, where the relative step is not known; not measured
SAME = 0.02  # I over what a batch could tell: 0.11 to 0.15 | 0.0004 (a uniform target)
UNIFORM = 0.95  # H over ln K: 0.83 to 0.90 | 0.999 (a uniform target)
DISTINCT = 0.4  # the same as SAME: 0.14 to 0.16 (no centre) | 0.56 to 0.58 (sharp)
IN_USE = 0.7  # H + I over ln K: 0.96 to 1.00 | 0.42 to 0.54 (no centre)
SHARP = 0.1  # H over ln K: 0.83 to 0.90 | 0.03 to 0.04 (sharp)
SPREAD = 0.5  # of projections, over that of isotropic ones: 0.74 to 1.00 | 0.04 to 0.38
COMPLETE = 0.1  # spread: 0.32 to 0.38 (SimSiam, some directions) | 0.04 (BYOL, none)
STD = 0.1  # of features, over isotropic ones: 0.45 to 0.86 | 0.015 to 0.024 (MAE, rate x100)
APART = 0.5  # view match over its start, where pixels are painted: 1.0 to 1.2 | 0.08 to 0.18 (same)
RANK = 0.1  # RankMe over its most: 0.25 or more | 0.05 to 0.06 (VICReg, rate x100)
RANK_KEPT = 0.6  # RankMe over its start: 0.84 (iBOT), 1.05 or more | 0.31 to 0.40 (the same)
WEAK = 0.7  # pixel match: 0.13 to 0.15 | 1.00; 0.30 to 0.32 with colours kept
SOLVED = 0.5  # view match: 0.09 to 0.17 | 0.66 to 0.86
KEPT = 1.1  # neutral match over its start: 0.58 (iBOT), 0.60 (SwAV), 1.04 to 2.5 | 0.39 to 1.00
RECOGNISED = 0.4  # neutral match: 0.07 (iBOT) to 0.59 | 0.04 to 0.25
ALIKE = 0.985  # entropy of the negatives' weights: 0.74 to 0.98 | 0.991 to 0.999
FEW = 0.76  # the same: 0.77 to 0.98, and 0.74 at a temperature of 0.1 | 0.55 to 0.73
PUBLISHED = (0.05, 1.0)  # temperatures: from MoCo's 0.07 to MoCo v3's 1.0


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
    def viewed(self) -> float:
        """Images that were seen in views, among which each looks for its own."""
        return float(self.last.get("viewed", IMAGES if self.last["images"] >= IMAGES else 0))

    @property
    def compares_views(self) -> bool:
        """Whether the method is given several views of an image to make alike."""
        return sum(view.count for view in self.recipe.views) > 1

    def late(self, key: str) -> float | None:
        """The median of a training metric over the last quarter; None where it is not measured."""
        values = [row[key] for row in self.metrics if key in row]
        return median(values[-max(1, len(values) // 4) :]) if len(values) >= ROWS else None


def learning_rate(e: Evidence) -> Finding | None:
    """Steps as large as the weights, and weights that grew.

    A step of AdamW changes a weight by about the learning rate, one of LARS by the trust
    coefficient times it. Of SGD only the growth is known, so more of it is asked for.
    """
    if len(e.metrics) < ROWS or not e.first.get("weight_rms"):
        return None
    size, grown = e.first["weight_rms"], e.last["weight_rms"] / e.first["weight_rms"]
    relative = _relative_step(max(row["lr"] for row in e.metrics), size, e.recipe.optim)
    if grown < (GROWTH if relative else GROWTH_ALONE) or 0 < relative < RELATIVE_STEP:
        return None
    steps = (
        f"A step changed a typical weight by {relative:.1f} times its size at the start (0.1 is "
        "much), and the"
        if relative
        else "The"
    )
    return Finding(
        "learning rate",
        f"{steps} weights grew {grown:.1f} times: what they held is overwritten.",
        slower(e.recipe),
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
    if share < STD and not _apart(e):
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
    if e.last["images"] < IMAGES:
        return None
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


def _apart(e: Evidence) -> bool:
    """Whether images that look alike by the angle are told apart as well as at the start.

    Features of who reconstructs may share a large part, beside which what differs is small: a MAE
    on photos had a deviation of 0.06 of 1/sqrt(d), and a better linear probe than raw pixels.
    """
    if e.compares_views or "view_match" not in e.first:
        return False
    return bool(e.last["view_match"] > APART * e.first["view_match"])


def weak_views(e: Evidence) -> Finding | None:
    """A task that raw pixels solve."""
    if not e.compares_views or e.viewed < IMAGES:
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
    if not e.compares_views or e.last["step"] == 0 or e.viewed < IMAGES:
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


def _relative_step(lr: float, size: float, options: optim.Optim) -> float:
    """By what share of ``size`` a step changes a weight; 0 where it cannot be told."""
    if options.name == "adamw":
        return lr / size
    if options.name == "lars":
        return lr * options.trust_coefficient / (1 - options.momentum)
    return 0.0


def slower(recipe: Recipe) -> str:
    """What to do about a learning rate that is too high."""
    return (
        f"lower the learning rate: --set optim.lr=... (now {recipe.optim.lr:g}), or warm up longer"
    )
