"""Attention transfer's claim: a student that is active where its teacher is does better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from selfsame.claims import canvases, digits
from selfsame.claims.canvases import COPIES, PIECES, SIDE
from selfsame.claims.claim import (
    Arm,
    Bars,
    Check,
    Claim,
    Curves,
    Found,
    Numbers,
    Picture,
    Quantity,
    Setting,
)
from selfsame.claims.students import Convolutions, learn, teach
from selfsame.methods.attention_transfer import AttentionTransfer, Settings, attention
from selfsame.nn.teacher import Teacher
from selfsame.report.pictures import uri
from selfsame.types import Output, Progress

LABELLED = 50  # digits that the student has
BETA = 10.0


class Shuffled(AttentionTransfer):
    """Attention transfer with the maps that the teacher has of other images of the batch."""

    def own_loss(self, e: Mapping[str, Tensor], t: Progress) -> Output:
        """As the method, but for what the class says."""
        others = {k: v.roll(1, 0) if k.startswith("t_stage") else v for k, v in e.items()}
        return super().own_loss(others, t)


@cache
def teacher(seed: int, steps: int) -> Teacher:
    """A wider network than the student that learnt all digits by their labels."""
    torch.manual_seed(seed)
    data = canvases.of(test=False)
    return teach(Convolutions(16, 32, 64), data.x, data.y, steps)


def arm(method: type[AttentionTransfer], beta: float, setting: Setting) -> Found:
    """Train a student; how often it is right, and where it is active."""
    theirs, data = teacher(setting.seed, setting.steps), canvases.of(test=False)
    torch.manual_seed(setting.seed)
    few = torch.arange(len(data.x)).view(COPIES, -1)[:, :LABELLED].flatten()
    config = Settings(beta=beta, labels=1.0, classes=digits.CLASSES)
    student = method(config, Convolutions(8, 16, 16), theirs)
    curves = learn(student, data.x[few], data.y[few], setting.steps)
    assert student.classifier is not None
    test = canvases.of(test=True)
    with torch.no_grad():
        maps, features = student.backbone.stages(test.x)
        mine, hers = attention(maps[-1]), attention(theirs.backbone.stages(test.x)[0][-1])
        right = digits.accuracy(student.classifier(features.pooled), test.y)
    numbers = {
        "accuracy": right,
        "similarity": float((mine * hers).sum(1).mean()),
        "on": on_digit(mine, test.where),
        "teacher": on_digit(hers, test.where),
    }
    shown = [test.x[:3].flatten(1) + 1, hers[:3], mine[:3]]
    return Found(numbers, {"similarity": curves["similarity"]}, {"maps": picture(shown)})


def on_digit(maps: Tensor, where: Tensor) -> float:
    """Share of the attention, [N, h * w], that is on the digit, the mean over images."""
    side = round(maps.shape[1] ** 0.5)
    inside = F.adaptive_avg_pool2d(where[:, None], side).flatten(1)
    return float(((maps * inside).sum(1) / maps.sum(1)).mean())


def picture(rows: Sequence[Tensor]) -> str:
    """Maps [n, h * w] in a row each, the largest value of each map white."""
    gap = 1
    step = SIDE + gap
    sheet = torch.full((len(rows) * step - gap, len(rows[0]) * step - gap), 0.5)
    for i, row in enumerate(rows):
        side = round(row.shape[1] ** 0.5)
        for j, each in enumerate(row):
            large = (each / each.max()).view(side, side).repeat_interleave(SIDE // side, 0)
            large = large.repeat_interleave(SIDE // side, 1)
            sheet[i * step : i * step + SIDE, j * step : j * step + SIDE] = large
    return uri(Image.fromarray((255 * sheet).byte().numpy()), png=True)


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    own, none, other = mean["attention"], mean["labels alone"], mean["maps of others"]
    return (
        f"A student that has {LABELLED} labelled digits and is asked to be active where the "
        f"teacher is ends with attention maps whose cosine with the teacher's is "
        f"{own['similarity']:.2f} on digits it never saw; {100 * own['on']:.0f} % of its last "
        f"stage's attention is on the digit (the teacher's: {100 * own['teacher']:.0f} %; spread "
        f"evenly it would be 25 %). From labels alone the cosine is {none['similarity']:.2f}, "
        f"and {100 * none['on']:.0f} % is on the digit. It knows "
        f"{100 * own['accuracy']:.1f} % of the digits, in the place of "
        f"{100 * none['accuracy']:.1f} %. The maps of other images, from the same teacher and with "
        f"the same weight, give {100 * other['accuracy']:.1f} %: it is not a regulariser that "
        "helps, but where to look in each image."
    )


CLAIM = Claim(
    name="attention_transfer",
    paper="Zagoruyko, Komodakis, Paying more attention to attention, ICLR 2017",
    arxiv="1612.03928",
    says="a student that is active where its teacher is does better",
    source="section 3.1, table 1, figure 1",
    experiment=f"Digits stand somewhere on a canvas of {SIDE} px, among {PIECES} pieces of others. "
    "A convolutional network of 16, 32 and 64 channels learns all of them by their labels. A "
    f"student of 8, 16 and 16 has {LABELLED} of the 1,200 digits with labels, and learns with the "
    "attention maps of the teacher, without them, or, as another control, with those that the "
    "teacher has of other images of the batch.",
    data=f"{digits.DATA}; {COPIES} canvases of each",
    file="selfsame/methods/attention_transfer.py",
    arms={
        "attention": Arm(lambda setting: arm(AttentionTransfer, BETA, setting)),
        "labels alone": Arm(lambda setting: arm(AttentionTransfer, 0.0, setting), control=True),
        "maps of others": Arm(lambda setting: arm(Shuffled, BETA, setting), control=True),
    },
    quantities={
        "accuracy": Quantity("digits right, %", 1, 100),
        "similarity": Quantity("cosine with the teacher's map", 3),
        "on": Quantity("attention on the digit, %", 1, 100),
    },
    checks=(
        Check(
            "maps nearer to the teacher's than with labels alone, 1 - cosine, factor",
            lambda n: (1 - n["labels alone"]["similarity"]) / (1 - n["attention"]["similarity"]),
            1.4,
            "cosines of 0.948 and 0.907: factors of 1.84, 1.81, 1.76, where 1 is none",
        ),
        Check(
            "attention on the digit, more than with labels alone, points",
            lambda n: 100 * (n["attention"]["on"] - n["labels alone"]["on"]),
            2.7,
            "48.0 % and 42.6 %: 5.4 points more (5.8, 5.4, 5.1)",
        ),
        Check(
            "digits right, more than with labels alone, points",
            lambda n: 100 * (n["attention"]["accuracy"] - n["labels alone"]["accuracy"]),
            3.1,
            "55.6 % and 49.3 %: 6.3 points more (10.1, 5.4, 3.4)",
        ),
        Check(
            "digits right, more than with the maps of other images, points",
            lambda n: 100 * (n["attention"]["accuracy"] - n["maps of others"]["accuracy"]),
            6.3,
            "55.6 % and 43.0 %: 12.6 points more (15.8, 11.1, 11.0)",
        ),
    ),
    steps={"fast": 400, "full": 6000},
    panels=(
        Bars("accuracy", "digits right, %", 1, 100, {"chance": 10.0}),
        Curves("similarity", "cosine with the compared map, training"),
        Bars("on", "attention on the digit, %", 1, 100, {"even": 25.0}),
        Picture("attention", "maps", "canvas, teacher, student with attention"),
        Picture("labels alone", "maps", "canvas, teacher, student of labels alone"),
        Picture("maps of others", "maps", "canvas, teacher, student of others' maps"),
    ),
    seen=seen,
    reason="a student that is short of steps rather than of labels gains little by being shown "
    "where to look",
    deviations=(
        "digits on canvases in the place of CIFAR-10, and few labels",
        f"a weight of {BETA:g}: the authors' 1,000 is for 200 epochs, and in so few steps even 100 "
        "drowns the labels",
    ),
)
