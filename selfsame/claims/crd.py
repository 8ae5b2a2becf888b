"""CRD's claim: the teacher's features hold structure that its classes, and so KD, do not."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsame.claims import digits
from selfsame.claims.claim import Arm, Bars, Check, Claim, Found, Numbers, Quantity, Setting
from selfsame.claims.students import Perceptron, images, learn, neighbours, teach
from selfsame.methods.crd import CRD, Settings
from selfsame.nn.teacher import Teacher

CLASSES = 2  # even and odd
WIDTH = 16  # of the student
NEGATIVES = 64
TESTS = 597  # images among which the teacher's features are found


@cache
def teacher(seed: int, steps: int) -> Teacher:
    """A perceptron that learnt by labels whether a digit is odd, and never which one it is."""
    torch.manual_seed(seed)
    data = images()
    network = Perceptron((256, 256), dropout=0.5)
    return teach(network, data.train_x, data.train_y % CLASSES, steps)


def arm(settings: dict[str, float], setting: Setting) -> Found:
    """Train a student; what its features tell of the teacher's, and of the digits."""
    theirs, data = teacher(setting.seed, setting.steps), images()
    torch.manual_seed(setting.seed)
    config = Settings(negatives=NEGATIVES, images=len(data.train_x), classes=CLASSES)
    config = config.model_copy(update=settings)
    student = CRD(config, Perceptron((64, WIDTH)), theirs)
    curves = learn(student, data.train_x, data.train_y % CLASSES, setting.steps)
    assert student.classifier is not None
    with torch.no_grad():
        bank, test = (student.backbone(x).pooled for x in (data.train_x, data.test_x))
        hers, truth = (theirs.backbone(x).pooled for x in (data.train_x, data.test_x))
        right = digits.accuracy(student.classifier(test), data.test_y % CLASSES)
    numbers = {
        "parity": right,
        "found": found(bank, hers, test, truth),
        "digits": neighbours(bank, data.train_y, test, data.test_y),
        "teacher": neighbours(hers, data.train_y, truth, data.test_y),
    }
    return Found(numbers, {"positive": curves["positive"]})


def found(bank: Tensor, hers: Tensor, test: Tensor, truth: Tensor) -> float:
    """How often a test image's features find the teacher's of the same image among those of all.

    A linear map from the student's features to the teacher's is fitted to the training images, so
    that students are compared that were never asked for such a map.

    Args:
        bank: the student's features of the training images, [N, D].
        hers: the teacher's of the same, [N, D'].
        test: the student's of the test images, [M, D].
        truth: the teacher's of the same, [M, D'].
    """
    mean, centre = bank.mean(0), hers.mean(0)
    # features of a ReLU that never fires are zero: a driver for matrices that lack rank
    solved = torch.linalg.lstsq((bank - mean).double(), (hers - centre).double(), driver="gelsd")
    guess = F.normalize((test - mean).double() @ solved.solution, dim=1)
    nearest = (guess @ F.normalize((truth - centre).double(), dim=1).T).argmax(1)
    return float((nearest == torch.arange(len(test))).float().mean())


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    crd, kd, labels = mean["CRD"], mean["KD"], mean["labels alone"]
    return (
        "The teacher knows only even and odd, and yet its features tell the ten digits apart for "
        f"{100 * crd['teacher']:.0f} % of the test images (nearest neighbour). Its two logits do "
        f"not say so: the student of KD is right about even and odd for {100 * kd['parity']:.0f} % "
        f"and about the digit for {100 * kd['digits']:.0f} %, the one of labels alone for "
        f"{100 * labels['digits']:.0f} %. The student of CRD has to tell the teacher's features of "
        f"its image from those of {NEGATIVES} others, most of which are of another digit: it is "
        f"right about the digit for {100 * crd['digits']:.0f} %. Mapped linearly, its {WIDTH} "
        f"features find the teacher's 256 of the same image among {TESTS} for "
        f"{100 * crd['found']:.0f} % of the images, those of KD for {100 * kd['found']:.0f} % and "
        f"those of labels for {100 * labels['found']:.0f} %."
    )


CLAIM = Claim(
    name="crd",
    paper="Tian, Krishnan, Isola, Contrastive representation distillation, ICLR 2020",
    arxiv="1910.10699",
    says="contrasting with the teacher's features transfers structure that matching its classes "
    "misses",
    source="section 1, and the transfer of representations in section 4",
    experiment="A perceptron learns whether a digit is odd. Students of "
    f"{WIDTH} features learn the same task: with CRD, with KD, or from labels alone. "
    "Then nearest neighbours among their features say which digit it is, which nobody was taught; "
    "and it is counted how often a student's features, mapped linearly, find the teacher's of the "
    "same test image among those of all.",
    data=digits.DATA,
    file="selfsame/methods/crd.py",
    arms={
        "CRD": Arm(lambda setting: arm({"labels": 1.0}, setting)),
        "KD": Arm(
            lambda setting: arm({"labels": 0.1, "alpha": 0.9, "beta": 0.0}, setting), control=True
        ),
        "labels alone": Arm(
            lambda setting: arm({"labels": 1.0, "beta": 0.0}, setting), control=True
        ),
    },
    quantities={
        "digits": Quantity("digit, 1-NN, %", 1, 100),
        "found": Quantity("teacher's found, %", 1, 100),
        "parity": Quantity("even or odd, %", 1, 100),
    },
    checks=(
        Check(
            "digits told apart more often than with KD, points",
            lambda n: 100 * (n["CRD"]["digits"] - n["KD"]["digits"]),
            6.0,
            "92.0 % and 79.7 %: 12 points more (9.4, 15.4, 12.1)",
        ),
        Check(
            "the teacher's features of the image found more often than with KD, factor",
            lambda n: n["CRD"]["found"] / max(n["KD"]["found"], 1 / TESTS),
            1.35,
            "27.9 % and 15.0 %: factors of 1.40, 2.79, 1.58, half of whose mean logarithm it is",
        ),
    ),
    steps={"fast": 400, "full": 6000},
    panels=(
        Bars("digits", "digit told by the nearest neighbour, %", 1, 100, {"chance": 10.0}),
        Bars("found", "teacher's features found, %", 1, 100),
        Bars("parity", "even or odd, % right", 1, 100, {"chance": 50.0}),
    ),
    seen=seen,
    reason="a teacher whose features tell no more than its classes",
    deviations=(
        "digits and perceptrons in the place of CIFAR-100 and ResNets",
        f"two classes, {NEGATIVES} negatives, {WIDTH} features",
    ),
)
