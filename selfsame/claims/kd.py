"""Distillation: soft targets carry what labels do not, and T^2 keeps the gradient's size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.claims import digits
from selfsame.claims.claim import Arm, Bars, Check, Claim, Found, Numbers, Quantity, Setting
from selfsame.methods.kd import soft_targets

UNSEEN = 3  # the digit that the student never sees
TEMPERATURE = 8.0
HOT = 20.0  # against 1, for the gradient


def student(soft: bool, setting: Setting) -> Found:
    """A student without any 3, from the teacher's soft targets or from labels.

    After training the bias of the 3 is moved until the student says 3 as often as there are some in
    the training images, as in section 3 of the paper; for both students alike.
    """
    torch.manual_seed(setting.seed)
    data, taught = digits.digits(), digits.perceptron(64)
    rows = torch.nonzero(data.train_y != UNSEEN).flatten()
    if soft:
        teacher = digits.teacher(setting.steps)

        def loss(b: Tensor) -> Tensor:
            with torch.no_grad():
                target = teacher(data.train_x[b])
            return soft_targets(taught(data.train_x[b]), target, TEMPERATURE)

    else:

        def loss(b: Tensor) -> Tensor:
            return F.cross_entropy(taught(data.train_x[b]), data.train_y[b])

    digits.fit(taught, rows, setting.steps, loss)
    with torch.no_grad():
        before = taught(data.test_x)
        offset = bias_shift(taught(data.train_x), float((data.train_y == UNSEEN).float().mean()))
        after = before + offset * F.one_hot(torch.tensor(UNSEEN), digits.CLASSES)
    mine = data.test_y == UNSEEN
    numbers = {
        "accuracy": digits.accuracy(after, data.test_y),
        "before": digits.accuracy(before[mine], data.test_y[mine]),
        "after": digits.accuracy(after[mine], data.test_y[mine]),
    }
    return Found(numbers)


def bias_shift(logits: Tensor, share: float) -> Tensor:
    """What to add to the logit of the unseen class so that it wins for a share of the images."""
    others = logits.clone()
    others[:, UNSEEN] = -torch.inf
    return (others.max(1).values - logits[:, UNSEEN]).quantile(share)


def gradient(squared: bool, setting: Setting) -> Found:
    """The gradient with respect to a student's logits at T of 20, over the one at 1.

    The student is in the middle of learning: it took a twentieth of the teacher's steps.
    """
    torch.manual_seed(setting.seed)
    data, teacher = digits.digits(), digits.teacher(setting.steps)
    learning = digits.perceptron(64)
    labels = data.train_y
    digits.fit(
        learning,
        torch.arange(digits.TRAIN),
        setting.steps // 20,
        lambda b: F.cross_entropy(learning(data.train_x[b]), labels[b]),
    )
    norms = {
        t: size(learning, teacher, data.test_x, t) / (1.0 if squared else t**2) for t in (1.0, HOT)
    }
    return Found({"gradient": norms[HOT] / norms[1.0]})


def size(learning: nn.Module, teacher: nn.Module, x: Tensor, temperature: float) -> float:
    """Norm of the gradient of the soft targets' loss with respect to the student's logits."""
    with torch.no_grad():
        logits, target = learning(x), teacher(x)
    logits.requires_grad_()
    soft_targets(logits, target, temperature).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    return float(logits.grad.norm())


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    soft, hard = mean["soft targets, no 3"], mean["labels, no 3"]
    return (
        f"A student that never saw a 3 learns from the soft targets of other digits what one looks "
        f"like: with the bias of the 3 moved so that it says 3 often enough, it knows "
        f"{100 * soft['after']:.0f} % of the unseen ones ({100 * soft['before']:.0f} % as it was). "
        f"One that learnt from labels knows {100 * hard['after']:.0f} % after the same move, and "
        f"{100 * hard['before']:.0f} % before. At a temperature of {HOT:.0f} the gradient of the "
        f"loss with T^2 is {mean['T^2']['gradient']:.2f} times that at 1; without T^2 it is "
        f"{mean['no T^2']['gradient']:.4f} times, and the balance with the labels would depend on "
        "T."
    )


CLAIM = Claim(
    name="kd",
    paper="Hinton, Vinyals, Dean, Distilling the knowledge in a neural network, 2014",
    arxiv="1503.02531",
    says="soft targets carry what labels do not: a digit that a student never saw; and T^2 keeps "
    "the gradient's size",
    source="sections 2 and 3 (MNIST without 3s)",
    experiment="A perceptron 256 wide learns ten digits; one 64 wide learns from images without "
    "any 3, from its soft targets at T = 8 or, as a control, from labels. Then the norm of the "
    "gradient with respect to a student's logits is compared between T = 20 and T = 1, with and "
    "without T^2.",
    data=digits.DATA,
    file="selfsame/methods/kd.py",
    arms={
        "soft targets, no 3": Arm(lambda setting: student(True, setting)),
        "labels, no 3": Arm(lambda setting: student(False, setting), control=True),
        "T^2": Arm(lambda setting: gradient(True, setting)),
        "no T^2": Arm(lambda setting: gradient(False, setting), control=True),
    },
    quantities={
        "before": Quantity("3s known, %", 1, 100),
        "after": Quantity("after the bias moved, %", 1, 100),
        "accuracy": Quantity("all digits, %", 1, 100),
        "gradient": Quantity("gradient at T = 20 / at 1", 4),
    },
    checks=(
        Check(
            "3s known after the bias moved, more than from labels, points",
            lambda n: 100 * (n["soft targets, no 3"]["after"] - n["labels, no 3"]["after"]),
            25.0,
            "92 % and 43 %: 49 points apart (three seeds)",
        ),
        Check(
            "gradient with T^2, T = 20 over T = 1, factor away from 1",
            lambda n: max(n["T^2"]["gradient"], 1 / n["T^2"]["gradient"]),
            4.0,
            "2.5 with each of three seeds; without T^2 it is 160",
            above=False,
        ),
        Check(
            "gradient without T^2, T = 20 over T = 1",
            lambda n: n["no T^2"]["gradient"],
            0.05,
            "0.0062 to 0.0064; 1 / T^2 is 0.0025",
            above=False,
        ),
    ),
    steps={"fast": 600, "full": 6000},
    panels=(
        Bars("after", "3s known after the bias moved, %", 1, 100),
        Bars("accuracy", "all digits, % right", 1, 100),
        Bars("gradient", "gradient at T = 20 / at T = 1", 4, 1.0, {"the same": 1.0}),
    ),
    seen=seen,
    reason="a teacher that is too sure has little left to say, and 1,200 images are few",
    deviations=("scikit-learn's digits of 8 px in the place of MNIST", "T = 8, 64 and 256 units"),
)
