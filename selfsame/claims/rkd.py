"""RKD's claim: distances and angles between images transfer, whatever the widths."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.claims import digits
from selfsame.claims.claim import Arm, Bars, Check, Claim, Found, Numbers, Quantity, Setting
from selfsame.claims.students import Perceptron, images, learn, teach
from selfsame.methods.rkd import RKD, Settings, angles, distances
from selfsame.nn.teacher import Teacher
from selfsame.types import Backbone, Output, Progress

SEEN = 5  # digits below it are what students see
WIDTH, TEACHER = 8, 256  # features of student and teacher
OF_ANGLES = 64  # images whose angles are compared


class Regression(RKD):
    """A student whose embedding, mapped linearly, is the teacher's: image by image."""

    def __init__(self, config: Settings, backbone: Backbone, teacher: Teacher) -> None:
        super().__init__(config, backbone, teacher)
        self.map = nn.Linear(backbone.dim, teacher.dim)

    def own_loss(self, e: Mapping[str, Tensor], t: Progress) -> Output:
        """The mean squared difference."""
        return Output(F.mse_loss(self.map(e["s_pooled"]), e["t_pooled"]), {}, {})


@cache
def teacher(seed: int, steps: int) -> Teacher:
    """A perceptron that learnt all ten digits by their labels."""
    torch.manual_seed(seed)
    data = images()
    return teach(Perceptron((TEACHER, TEACHER), dropout=0.5), data.train_x, data.train_y, steps)


def arm(method: type[RKD], settings: dict[str, float], setting: Setting) -> Found:
    """Train a student on half of the digits; how images of the others lie to each other."""
    theirs, data = teacher(setting.seed, setting.steps), images()
    torch.manual_seed(setting.seed)
    config = Settings(labels=0.0, classes=digits.CLASSES).model_copy(update=settings)
    student = method(config, Perceptron((64, 64, WIDTH), rectified=False), theirs)
    known, new = data.train_y < SEEN, data.test_y >= SEEN
    learn(student, data.train_x[known], data.train_y[known], setting.steps)
    with torch.no_grad():
        x, y = data.test_x[new], data.test_y[new]
        s, t = student.backbone(x).pooled, theirs.backbone(x).pooled
    pairs = ~torch.eye(len(x), dtype=torch.bool)
    numbers = {
        "distances": correlation(distances(s)[pairs], distances(t)[pairs]),
        "angles": correlation(angles(s[:OF_ANGLES]), angles(t[:OF_ANGLES])),
        "recall": recall(s, y),
        "teacher": recall(t, y),
    }
    return Found(numbers)


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, of two tensors of a shape."""
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def recall(e: Tensor, y: Tensor) -> float:
    """Share of embeddings, [N, D], whose nearest other one has their label: recall at 1."""
    nearest = torch.cdist(e, e).fill_diagonal_(torch.inf).argmin(1)
    return float((y[nearest] == y).float().mean())


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    both, one = mean["distances and angles"], mean["distances"]
    image, labels = mean["regression"], mean["labels"]
    return (
        f"The student has {WIDTH} features where the teacher has {TEACHER}, and saw only digits "
        f"below {SEEN}. Of the others, which it never saw, distances between two images correlate "
        f"with the teacher's by {both['distances']:.2f} and angles of three by "
        f"{both['angles']:.2f}; with distances alone by {one['distances']:.2f} and "
        f"{one['angles']:.2f}. A student that learns the same features image by image through a "
        f"linear map has {image['distances']:.2f} and {image['angles']:.2f}: the map, which is "
        "thrown away, need not keep distances. One that learns from labels has "
        f"{labels['distances']:.2f} and {labels['angles']:.2f}. The nearest other image is of the "
        f"same digit for {100 * both['recall']:.0f} %, {100 * one['recall']:.0f} %, "
        f"{100 * image['recall']:.0f} % and {100 * labels['recall']:.0f} %; among the features of "
        f"the teacher, which learnt all ten, for {100 * both['teacher']:.0f} %."
    )


CLAIM = Claim(
    name="rkd",
    paper="Park, Kim, Lu, Cho, Relational knowledge distillation, CVPR 2019",
    arxiv="1904.05068",
    says="distances and angles between images transfer to a student of any width, and beyond the "
    "classes that it saw",
    source="equations 4 to 9, section 4.1 (table 1)",
    experiment=f"A perceptron of {TEACHER} features learns ten digits. Students of {WIDTH} see "
    f"only images of digits below {SEEN}, and learn without labels its distances and angles, "
    "its distances alone, or, as a control, its features image by image through a linear map; "
    "another control learns from labels. Compared are distances, angles and retrieval among test "
    "images of the other five digits.",
    data=digits.DATA,
    file="selfsame/methods/rkd.py",
    arms={
        "distances and angles": Arm(lambda setting: arm(RKD, {}, setting)),
        "distances": Arm(lambda setting: arm(RKD, {"angle": 0.0}, setting)),
        "regression": Arm(lambda setting: arm(Regression, {}, setting), control=True),
        "labels": Arm(
            lambda setting: arm(RKD, {"distance": 0.0, "angle": 0.0, "labels": 1.0}, setting),
            control=True,
        ),
    },
    quantities={
        "distances": Quantity("correlation of distances", 3),
        "angles": Quantity("of angles", 3),
        "recall": Quantity("recall at 1, %", 1, 100),
    },
    checks=(
        Check(
            "correlation of distances, more than by regression",
            lambda n: n["distances and angles"]["distances"] - n["regression"]["distances"],
            0.13,
            "0.883 and 0.612: 0.27 more (0.262, 0.243, 0.306)",
        ),
        Check(
            "correlation of angles, more than by regression",
            lambda n: n["distances and angles"]["angles"] - n["regression"]["angles"],
            0.13,
            "0.861 and 0.589: 0.27 more (0.270, 0.239, 0.307)",
        ),
        Check(
            "correlation of angles, more than with distances alone",
            lambda n: n["distances and angles"]["angles"] - n["distances"]["angles"],
            0.028,
            "0.861 and 0.803: 0.058 more (0.053, 0.066, 0.055)",
        ),
        Check(
            "recall at 1, more than by regression, points",
            lambda n: 100 * (n["distances and angles"]["recall"] - n["regression"]["recall"]),
            5.5,
            "95.6 % and 84.4 %: 11 points more (14.5, 9.9, 9.2)",
        ),
    ),
    steps={"fast": 500, "full": 6000},
    panels=(
        Bars("distances", "distances, correlation with the teacher's", 2, 1.0, {"equal": 1.0}),
        Bars("angles", "angles, correlation with the teacher's", 2, 1.0, {"equal": 1.0}),
        Bars("recall", "recall at 1, %", 1, 100, {"chance": 20.0}),
    ),
    seen=seen,
    reason="five digits and a thousand images show a student little of the teacher's space",
    deviations=(
        "digits that the student never saw in the place of species of birds and models of cars",
        "the teacher learnt from labels, not from triplets",
    ),
)
