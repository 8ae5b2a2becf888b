"""DKD's claim: KD hides what a sure teacher says of the other classes, for its weight is 1 - p."""

from __future__ import annotations

import torch
from torch import Tensor

from selfsame.claims import digits
from selfsame.claims.claim import Arm, Bars, Check, Claim, Found, Numbers, Quantity, Setting
from selfsame.methods.dkd import other_loss, target_loss
from selfsame.methods.kd import soft_targets

TEMPERATURE = 4.0


def arm(coupled: bool, setting: Setting) -> Found:
    """How strongly each image teaches a student about the classes that are not its own.

    The norm of the gradient of the other classes' term with respect to the student's logits, for
    each image: weighted with 1 - p of the teacher, as KD has it, or not. Compared are the halves of
    which the teacher is more and less sure.
    """
    torch.manual_seed(setting.seed)
    data, teacher = digits.digits(), digits.teacher(setting.steps)
    learning = digits.perceptron(64)  # has learnt nothing yet
    with torch.no_grad():
        target, logits = teacher(data.train_x).double(), learning(data.train_x).double()
    p = (target / TEMPERATURE).softmax(1).gather(1, data.train_y[:, None]).squeeze(1)
    logits.requires_grad_()
    one_by_one = [
        other_loss(logits[i : i + 1], target[i : i + 1], data.train_y[i : i + 1], TEMPERATURE)
        for i in range(len(logits))
    ]
    weights = 1 - p if coupled else torch.ones_like(p)
    (torch.stack(one_by_one) * weights).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    size = logits.grad.norm(dim=1)
    sure = p > p.median()
    numbers = {
        "sure": float(size[sure].mean()),
        "unsure": float(size[~sure].mean()),
        "ratio": float(size[sure].mean() / size[~sure].mean()),
        "error": identity_error(logits.detach(), target, data.train_y, p),
    }
    return Found(numbers)


def identity_error(student: Tensor, teacher: Tensor, label: Tensor, p: Tensor) -> float:
    """The largest distance of KD from TCKD + (1 - p) NCKD, equation 6, over images, relative."""
    most = 0.0
    for i in range(0, len(label), 10):
        one = slice(i, i + 1)
        kd = soft_targets(student[one], teacher[one], TEMPERATURE)
        tckd = target_loss(student[one], teacher[one], label[one], TEMPERATURE)
        nckd = other_loss(student[one], teacher[one], label[one], TEMPERATURE)
        most = max(most, float((tckd + (1 - p[i]) * nckd - kd).abs() / kd))
    return most


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    kd, dkd = mean["KD, coupled"], mean["DKD, decoupled"]
    return (
        f"KD is the target's term plus 1 - p times that of the other classes, to {kd['error']:.0e} "
        "of its value. So the images of which the teacher is sure, whose other classes it ranks "
        f"best, teach the least about them: the gradient of that term is {kd['ratio']:.2f} times "
        "as large for the surer half of the images as for the other. Decoupled it is "
        f"{dkd['ratio']:.2f} times as large."
    )


CLAIM = Claim(
    name="dkd",
    paper="Zhao et al., Decoupled knowledge distillation, CVPR 2022",
    arxiv="2203.08679",
    says="KD weighs what the teacher says of the other classes by 1 - p, so least where it is "
    "sure; decoupled it teaches as much there",
    source="equation 6, section 3.2, table 2",
    experiment="A perceptron learns ten digits and teaches a smaller one at T = 4. For each image "
    "the gradient of the other classes' term is measured, with KD's weight 1 - p and with DKD's "
    "constant one, for the half of the images of which the teacher is surer and for the other "
    "half.",
    data=digits.DATA,
    file="selfsame/methods/dkd.py",
    arms={
        "DKD, decoupled": Arm(lambda setting: arm(False, setting)),
        "KD, coupled": Arm(lambda setting: arm(True, setting), control=True),
    },
    quantities={
        "sure": Quantity("gradient, surer half", 3),
        "unsure": Quantity("other half", 3),
        "ratio": Quantity("ratio", 3),
    },
    checks=(
        Check(
            "decoupled, the surer half teaches more than coupled, ratio of ratios",
            lambda n: n["DKD, decoupled"]["ratio"] / n["KD, coupled"]["ratio"],
            1.32,
            "1.06 and 0.64: a ratio of 1.65 (1.56, 1.62, 1.76), where 1 is none",
        ),
        Check(
            "KD is TCKD + (1 - p) NCKD, relative error",
            lambda n: n["KD, coupled"]["error"],
            1e-5,
            "exact by construction: rounding alone",
            above=False,
        ),
    ),
    steps={"fast": 200, "full": 6000},
    panels=(
        Bars("sure", "gradient of the other classes, surer half", 3),
        Bars("ratio", "the surer half over the other", 2, 1.0, {"the same": 1.0}),
    ),
    seen=seen,
    reason="a teacher that is equally sure of all images weighs them alike",
    deviations=("digits in the place of CIFAR-100; gradients in the place of accuracies",),
)
