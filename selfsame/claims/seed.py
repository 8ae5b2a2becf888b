"""SEED's claim: a small network learns more from a large one's similarities than on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsame.claims import canvases, digits
from selfsame.claims.canvases import COPIES
from selfsame.claims.claim import Arm, Bars, Check, Claim, Found, Numbers, Quantity, Setting
from selfsame.claims.students import Convolutions, learn, neighbours
from selfsame.methods import simclr
from selfsame.methods.seed import SEED, Settings
from selfsame.nn.precision import unit
from selfsame.nn.teacher import Teacher
from selfsame.types import Backbone, Method

TEACHER, STUDENT = (16, 32, 64), (4, 8, 8)  # channels
QUEUE = 1024
NEAREST = 10
CHANCE = 100 * NEAREST / (2 * digits.TRAIN)  # percent of them that are shared by chance


def views(count: int) -> Callable[[Tensor], Tensor]:
    """Other canvases of the digits of a batch, [B], as views, [count, B, 1, S, S]."""
    x = canvases.of(test=False).x
    x = x.view(COPIES, -1, *x.shape[1:])
    return lambda batch: torch.stack(
        [x[torch.randint(COPIES, batch.shape), batch] for _ in range(count)]
    )


def train(method: Method, steps: int, count: int) -> None:
    """Train a method on ``count`` canvases of each digit of a batch; labels are not looked at."""
    rows = torch.arange(digits.TRAIN)
    learn(method, rows, torch.zeros_like(rows), steps, views(count))


@cache
def teacher(seed: int, steps: int) -> Teacher:
    """A network that learnt the digits without labels, or where there are no steps nothing."""
    torch.manual_seed(seed)
    network = Convolutions(*TEACHER)
    train(simclr.SimCLR(simclr.Settings(output=64), network), steps, count=2)
    return Teacher(network, image_size=canvases.SIDE)


def alone(setting: Setting) -> Found:
    """The small network with SimCLR."""
    torch.manual_seed(setting.seed)
    network = Convolutions(*STUDENT)
    train(simclr.SimCLR(simclr.Settings(output=64), network), setting.steps, count=2)
    return Found({"knn": known(network)})


def taught(steps: int, setting: Setting) -> Found:
    """The small network with SEED, of a teacher that took so many steps."""
    theirs = teacher(setting.seed, steps)
    torch.manual_seed(setting.seed)
    config = Settings(labels=0.0, queue=QUEUE, hidden=64)
    student = SEED(config, Convolutions(*STUDENT), theirs).eval()
    before = divergence(student, theirs)[0]
    train(student, setting.steps, count=1)
    after, shared = divergence(student, theirs)
    numbers = {
        "knn": known(student.backbone),
        "teacher": known(theirs.backbone),
        "before": before,
        "after": after,
        "shared": shared,
    }
    return Found(numbers)


def bank() -> canvases.Canvases:
    """Two canvases of each training digit."""
    return canvases.Canvases(*(part[: 2 * digits.TRAIN] for part in canvases.of(test=False)))


def known(network: Backbone) -> float:
    """Share of the test canvases whose nearest training canvas is of the same digit."""
    test = canvases.of(test=True)
    with torch.no_grad():
        features, query = (network.eval()(x).pooled for x in (bank().x, test.x))
    return neighbours(features, bank().y, query, test.y)


@torch.no_grad()
def divergence(student: SEED, theirs: Teacher) -> tuple[float, float]:
    """How the test canvases' similarities to the training canvases differ from the teacher's.

    KL of equation 4's distributions in nats, and the share of the teacher's `NEAREST` training
    canvases that are among as many of the student.
    """
    config, x = student.config, canvases.of(test=True).x
    queue, t = (unit(theirs.backbone(each).pooled) for each in (bank().x, x))
    s = unit(student.projector(student.backbone(x).pooled))
    hers = F.log_softmax(t @ queue.T / config.teacher_temperature, dim=1)
    mine = F.log_softmax(s @ queue.T / config.student_temperature, dim=1)
    near = [torch.zeros_like(x).scatter(1, x.topk(NEAREST).indices, 1.0) for x in (hers, mine)]
    shared = (near[0] * near[1]).sum() / near[0].sum()
    return float((hers.exp() * (hers - mine)).sum(1).mean()), float(shared)


def _channels(widths: Sequence[int]) -> str:
    return f"{', '.join(map(str, widths[:-1]))} and {widths[-1]}"


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    seed, own, blank = mean["SEED"], mean["SimCLR alone"], mean["SEED, untrained teacher"]
    return (
        "A large network that learnt without labels finds a canvas of the same digit for "
        f"{100 * seed['teacher']:.1f} % of the test canvases. The small one alone, with SimCLR, "
        f"comes to {100 * own['knn']:.1f} %; with as many steps on the large one's similarities "
        f"it comes to {100 * seed['knn']:.1f} %. The divergence of its distribution over the "
        f"training canvases from the teacher's falls from {seed['before']:.2f} to "
        f"{seed['after']:.2f} nats, and of the {NEAREST} that are nearest to the teacher "
        f"{100 * seed['shared']:.0f} % are nearest to the student, too (by chance {CHANCE:.1f} %). "
        "It is what the teacher learnt that counts: the similarities of an untrained one, right "
        f"for {100 * blank['teacher']:.1f} %, give {100 * blank['knn']:.1f} %."
    )


CLAIM = Claim(
    name="seed",
    paper="Fang et al., SEED: self-supervised distillation for visual representation, ICLR 2021",
    arxiv="2101.04731",
    says="a small network learns more from a large one's similarities than by itself, without "
    "labels",
    source="equations 1 to 4, table 1, figure 1",
    experiment=f"Digits stand somewhere on a canvas of {canvases.SIDE} px, among pieces of others; "
    f"views are other canvases of a digit. A network of {_channels(TEACHER)} channels learns them "
    f"with SimCLR. One of {_channels(STUDENT)} learns with SEED from its similarities to a queue, "
    "with SimCLR alone for as many steps, or, as another control, with SEED from a large network "
    "that learnt nothing. Nobody sees a label.",
    data=f"{digits.DATA}; {COPIES} canvases of each",
    file="selfsame/methods/seed.py",
    arms={
        "SEED": Arm(lambda setting: taught(setting.steps, setting)),
        "SimCLR alone": Arm(alone, control=True),
        "SEED, untrained teacher": Arm(lambda setting: taught(0, setting), control=True),
    },
    quantities={
        "knn": Quantity("1-NN, %", 1, 100),
        "before": Quantity("KL before, nats", 2),
        "after": Quantity("KL after", 2),
        "shared": Quantity("neighbours shared, %", 1, 100),
    },
    checks=(
        Check(
            "neighbours are right more often than with SimCLR alone, points",
            lambda n: 100 * (n["SEED"]["knn"] - n["SimCLR alone"]["knn"]),
            6.2,
            "42.1 % and 29.6 %: 12.5 points more (16.3, 14.3, 7.0)",
        ),
        Check(
            "neighbours are right more often than with an untrained teacher, points",
            lambda n: 100 * (n["SEED"]["knn"] - n["SEED, untrained teacher"]["knn"]),
            15.0,
            "42.1 % and 11.7 %: 30 points more (31.1, 24.9, 35.1)",
        ),
        Check(
            "the divergence from the teacher's similarities falls, share that is left",
            lambda n: n["SEED"]["after"] / n["SEED"]["before"],
            0.85,
            "3.15 and 2.21 nats: 0.70 is left (0.70, 0.73, 0.68)",
            above=False,
        ),
    ),
    steps={"fast": 400, "full": 4000},
    panels=(
        Bars("knn", "digit of the nearest neighbour, % right", 1, 100, {"chance": 10.0}),
        Bars("shared", "of 10 neighbours, those of the teacher, %", 1, 100, {"chance": CHANCE}),
    ),
    seen=seen,
    reason="a small network that learns well by itself has less to gain",
    deviations=(
        "SimCLR in the place of MoCo v2, digits in the place of ImageNet",
        f"{QUEUE:,} embeddings in the queue",
    ),
)
