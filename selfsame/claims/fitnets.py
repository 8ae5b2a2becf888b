"""FitNets' claim: a hint from the teacher's middle layer lets a thin deep student train."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from statistics import fmean

import torch

from selfsame.claims import digits
from selfsame.claims.claim import Arm, Bars, Check, Claim, Curves, Found, Numbers, Quantity, Setting
from selfsame.claims.students import Perceptron, images, learn, teach
from selfsame.methods.fitnets import FitNets, Settings
from selfsame.nn.teacher import Teacher

DEPTH, WIDTH = 24, 16  # of the student; the teacher has 2 layers of 256
HINTS = 0.3  # share of the steps that have the hint alone
ALPHA = 0.9  # of the soft targets
SMOOTH = 8  # points of the curve that are averaged


@cache
def teacher(seed: int) -> Teacher:
    """A wide perceptron of two layers that learnt the digits by their labels."""
    torch.manual_seed(seed)
    data = images()
    return teach(Perceptron((256,), (256,), dropout=0.5), data.train_x, data.train_y, 400)


def arm(hints: float, settings: dict[str, float], setting: Setting) -> Found:
    """Train a student in the paper's two stages, or in the second alone; how often it is right.

    Args:
        hints: share of the steps of the first stage, in which the lower half learns the hint.
        settings: of the second stage, which has none.
        setting: what the arm is run with.
    """
    theirs, data = teacher(setting.seed), images()
    torch.manual_seed(setting.seed)
    half = (WIDTH,) * (DEPTH // 2)
    network, first = Perceptron(half, half, batchnorm=True), round(hints * setting.steps)
    if first:
        stage = FitNets(Settings(labels=0.0), network, theirs)
        learn(stage, data.train_x, data.train_y, first)
    config = Settings(beta=0.0, classes=digits.CLASSES).model_copy(update=settings)
    student = FitNets(config, network, theirs)
    curves = learn(student, data.train_x, data.train_y, setting.steps - first)
    assert student.classifier is not None
    with torch.no_grad():
        right = digits.accuracy(student.classifier(network(data.test_x).pooled), data.test_y)
    numbers = {"accuracy": right, "loss": fmean(y for _, y in curves["hard"][-SMOOTH:])}
    curve = [(first + step, value) for step, value in running(curves["hard"])]
    return Found(numbers, {"hard": curve})


def running(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of each `SMOOTH` points that follow each other: batches differ."""
    ends = range(SMOOTH, len(points) + 1)
    return [(points[end - 1][0], fmean(y for _, y in points[end - SMOOTH : end])) for end in ends]


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    first, along = mean["hint first"], mean["hint all along"]
    soft, hard = mean["soft targets"], mean["labels"]
    return (
        f"A student of {DEPTH} layers of {WIDTH} units, without skips, is hard to train: after the "
        f"same number of steps soft targets have brought it to {100 * soft['accuracy']:.0f} % of "
        f"the test images, labels alone to {100 * hard['accuracy']:.0f} %. Where the first "
        f"{100 * HINTS:.0f} % of the steps teach its lower half the teacher's middle layer, and "
        "the others the soft targets, it reaches "
        f"{100 * first['accuracy']:.0f} %; with the hint beside the soft targets all along "
        f"{100 * along['accuracy']:.0f} %. The cross-entropy with the labels is "
        f"{first['loss']:.2f} and {along['loss']:.2f} at the end, with soft targets alone "
        f"{soft['loss']:.2f}."
    )


CLAIM = Claim(
    name="fitnets",
    paper="Romero et al., FitNets: hints for thin deep nets, ICLR 2015",
    arxiv="1412.6550",
    says="a hint from the teacher's middle layer lets thin deep students train that soft targets "
    "alone train badly",
    source="section 2.2, algorithm 1, figure 2",
    experiment=f"A perceptron of two layers of 256 units learns the digits. One of {DEPTH} layers "
    f"of {WIDTH} learns from it, always for the same number of steps: its lower half the hint "
    "first and the whole the soft targets then, as in the paper; both together, as in "
    "RepDistiller; as controls the soft targets and the labels, or the labels alone.",
    data=digits.DATA,
    file="selfsame/methods/fitnets.py",
    arms={
        "hint first": Arm(lambda setting: arm(HINTS, {"alpha": ALPHA, "labels": 1.0}, setting)),
        "hint all along": Arm(
            lambda setting: arm(0.0, {"beta": 100.0, "alpha": ALPHA, "labels": 1.0}, setting)
        ),
        "soft targets": Arm(
            lambda setting: arm(0.0, {"alpha": ALPHA, "labels": 1.0}, setting), control=True
        ),
        "labels": Arm(lambda setting: arm(0.0, {"labels": 1.0}, setting), control=True),
    },
    quantities={
        "accuracy": Quantity("digits right, %", 1, 100),
        "loss": Quantity("cross-entropy, last steps", 2),
    },
    checks=(
        Check(
            "digits right, hint first more than soft targets, points",
            lambda n: 100 * (n["hint first"]["accuracy"] - n["soft targets"]["accuracy"]),
            4.7,
            "56.3 % and 47.0 %: 9.3 points more (5.2, 3.5, 19.3)",
        ),
        Check(
            "digits right, hint all along more than soft targets, points",
            lambda n: 100 * (n["hint all along"]["accuracy"] - n["soft targets"]["accuracy"]),
            4.7,
            "56.5 % and 47.0 %: 9.5 points more (9.2, 5.0, 14.2)",
        ),
    ),
    steps={"fast": 400, "full": 6000},
    panels=(
        Curves("hard", "cross-entropy, running mean", {"chance": 2.303}),
        Bars("accuracy", "digits right, %", 1, 100, {"chance": 10.0}),
    ),
    seen=seen,
    reason="where so deep a network begins decides more than how it is taught; in a trial with "
    "twice the steps soft targets nearly caught up (69 % against 74 % in the mean) and were ahead "
    "with one seed of three",
    deviations=(
        "perceptrons with BatchNorm and digits in the place of convolutional maxout networks and "
        "CIFAR-10",
        "the weight of the soft targets does not decay",
    ),
)
