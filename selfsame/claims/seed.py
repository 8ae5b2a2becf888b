"""SEED's claim: a small network learns more from a large one's similarities than on its own."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsame.claims import digits
from selfsame.claims.claim import Arm, Bars, Check, Claim, Found, Numbers, Quantity, Setting
from selfsame.claims.students import Perceptron, images, learn, neighbours
from selfsame.methods import simclr
from selfsame.methods.seed import SEED, Settings
from selfsame.nn.precision import unit
from selfsame.nn.teacher import Teacher
from selfsame.types import Backbone

WIDTH = 256  # of the teacher
SMALL = 8  # features of the student
QUEUE = 1024
NEAREST = 10


def distorted(x: Tensor) -> Tensor:
    """Images [B, 1, 8, 8] turned up to 20 degrees, sheared, scaled by a fifth, moved by a pixel."""
    turn, size, shear, right, down = 2 * torch.rand(5, len(x)) - 1
    cos, sin, scale = (0.35 * turn).cos(), (0.35 * turn).sin(), 1 + 0.2 * size
    rows = [
        torch.stack([scale * cos, 0.4 * shear - sin, 0.25 * right], 1),
        torch.stack([sin, scale * cos, 0.25 * down], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x + 1, grid, align_corners=False) - 1  # black, -1, around the image


def one(x: Tensor) -> Tensor:
    """A view of each image, [1, B, 1, 8, 8]."""
    return distorted(x)[None]


def two(x: Tensor) -> Tensor:
    """Two views of each image, [2, B, 1, 8, 8]."""
    return torch.stack([distorted(x), distorted(x)])


def contrast(network: Backbone, steps: int) -> None:
    """Train a network with SimCLR."""
    data, method = images(), simclr.SimCLR(simclr.Settings(output=64), network)
    learn(method, data.train_x, data.train_y, steps, two)


@cache
def teacher(seed: int, steps: int) -> Teacher:
    """A perceptron that learnt the digits without labels, or where there are no steps nothing."""
    torch.manual_seed(seed)
    network = Perceptron((WIDTH, WIDTH), rectified=False)
    contrast(network, steps)
    return Teacher(network, image_size=8)


def small() -> Perceptron:
    """A hundredth of the teacher's weights."""
    return Perceptron((16, SMALL), rectified=False)


def alone(setting: Setting) -> Found:
    """The small network with SimCLR."""
    torch.manual_seed(setting.seed)
    network = small()
    contrast(network, setting.steps)
    return Found({"knn": known(network)})


def taught(steps: int, setting: Setting) -> Found:
    """The small network with SEED, of a teacher that took so many steps."""
    theirs, data = teacher(setting.seed, steps), images()
    torch.manual_seed(setting.seed)
    config = Settings(labels=0.0, queue=QUEUE, teacher_temperature=0.05, hidden=64)
    student = SEED(config, small(), theirs)
    before = divergence(student, theirs)[0]
    learn(student, data.train_x, data.train_y, setting.steps, one)
    after, shared = divergence(student, theirs)
    numbers = {
        "knn": known(student.backbone),
        "teacher": known(theirs.backbone),
        "before": before,
        "after": after,
        "shared": shared,
    }
    return Found(numbers)


def known(network: Backbone) -> float:
    """Share of the test images whose nearest training image is of the same digit."""
    data = images()
    with torch.no_grad():
        bank, query = (network(x).pooled for x in (data.train_x, data.test_x))
    return neighbours(bank, data.train_y, query, data.test_y)


@torch.no_grad()
def divergence(student: SEED, theirs: Teacher) -> tuple[float, float]:
    """How the test images' similarities to the training images differ from the teacher's.

    KL of equation 4's distributions in nats, and the share of the teacher's `NEAREST` training
    images that are among as many of the student.
    """
    data, config = images(), student.config
    queue, t = (unit(theirs.backbone(x).pooled) for x in (data.train_x, data.test_x))
    s = unit(student.projector(student.backbone(data.test_x).pooled))
    hers = F.log_softmax(t @ queue.T / config.teacher_temperature, dim=1)
    mine = F.log_softmax(s @ queue.T / config.student_temperature, dim=1)
    near = [torch.zeros_like(x).scatter(1, x.topk(NEAREST).indices, 1.0) for x in (hers, mine)]
    shared = (near[0] * near[1]).sum() / near[0].sum()
    return float((hers.exp() * (hers - mine)).sum(1).mean()), float(shared)


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    seed, own, blank = mean["SEED"], mean["SimCLR alone"], mean["SEED, untrained teacher"]
    return (
        f"With SimCLR alone the nearest neighbour among the small network's {SMALL} features is of "
        f"the right digit for {100 * own['knn']:.1f} % of the test images. As many steps on the "
        "similarities of a large network that learnt without labels, too, give "
        f"{100 * seed['knn']:.1f} % (the large one: {100 * seed['teacher']:.1f} %). The divergence "
        "of its distribution over the training images from the teacher's falls from "
        f"{seed['before']:.2f} to {seed['after']:.2f} nats, and of the {NEAREST} that are nearest "
        f"to the teacher {100 * seed['shared']:.0f} % are nearest to the student. A teacher that "
        f"learnt nothing gives {100 * blank['knn']:.1f} %."
    )


CLAIM = Claim(
    name="seed",
    paper="Fang et al., SEED: self-supervised distillation for visual representation, ICLR 2021",
    arxiv="2101.04731",
    says="a small network learns more from a large one's similarities than by itself, without "
    "labels",
    source="equations 1 to 4, table 1, figure 1",
    experiment=f"A perceptron of {WIDTH} units learns the digits with SimCLR. "
    f"One of {SMALL} features, with less than a fiftieth of its weights, learns with SEED from "
    "its similarities to a queue, with SimCLR alone for as many steps, or, as another control, "
    "with SEED from a large network that learnt nothing. Nobody sees a label.",
    data=digits.DATA,
    file="selfsame/methods/seed.py",
    arms={
        "SEED": Arm(lambda setting: taught(2 * setting.steps, setting)),
        "SimCLR alone": Arm(alone, control=True),
        "SEED, untrained teacher": Arm(lambda setting: taught(0, setting), control=True),
    },
    quantities={
        "knn": Quantity("1-NN, %", 1, 100),
        "before": Quantity("KL before, nats", 2),
        "after": Quantity("after", 2),
        "shared": Quantity("neighbours shared, %", 1, 100),
    },
    checks=(
        Check(
            "neighbours are right more often than with SimCLR alone, points",
            lambda n: 100 * (n["SEED"]["knn"] - n["SimCLR alone"]["knn"]),
            5.0,
            "",
        ),
        Check(
            "neighbours are right more often than with an untrained teacher, points",
            lambda n: 100 * (n["SEED"]["knn"] - n["SEED, untrained teacher"]["knn"]),
            5.0,
            "",
        ),
        Check(
            "the divergence from the teacher's similarities falls, share that is left",
            lambda n: n["SEED"]["after"] / n["SEED"]["before"],
            0.6,
            "",
            above=False,
        ),
    ),
    steps={"fast": 400, "full": 4000},
    panels=(
        Bars("knn", "digit of the nearest neighbour, % right", 1, 100, {"chance": 10.0}),
        Bars("after", "KL from the teacher's similarities, nats", 2),
        Bars("shared", "of 10 neighbours, those of the teacher, %", 1, 100),
    ),
    seen=seen,
    reason="digits are easy enough for a small network by itself",
    deviations=(
        "SimCLR in the place of MoCo v2, perceptrons, digits",
        f"{QUEUE:,} embeddings and a teacher's temperature of 0.05, as the small recipe has it",
    ),
)
