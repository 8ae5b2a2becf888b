"""DeiT's claim: a token for the teacher's decisions becomes another one than the class token."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.backbones.vit import ViT
from selfsame.claims import digits
from selfsame.claims.claim import Arm, Bars, Check, Claim, Curves, Found, Numbers, Quantity, Setting
from selfsame.methods.deit import hard_loss

SIDE, PATCH = 8, 2  # pixels
WIDTH, DEPTH, HEADS = 48, 3, 3
TAUGHT = 100  # images that the teacher learnt from: few, so that it errs
RATE, DECAY, WARMUP = 1e-3, 0.05, 50  # of AdamW; steps
POINTS = 20  # of the curve


class Student(nn.Module):
    """A ViT with two tokens and a classifier for each."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ViT(
            "vit_tiny",
            image_size=SIDE,
            channels=1,
            patch=PATCH,
            width=WIDTH,
            depth=DEPTH,
            heads=HEADS,
            distilled=True,
        )
        self.head = nn.Linear(WIDTH, digits.CLASSES)
        self.head_dist = nn.Linear(WIDTH, digits.CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [n, 10] of the class token and of the other, of pixels [n, 64]."""
        first, second = self.backbone(as_images(x)).pooled.chunk(2, dim=1)
        return self.head(first), self.head_dist(second)

    @torch.no_grad()
    def cosines(self, x: Tensor) -> list[float]:
        """Mean cosine of the two tokens of an image after each block, through the last norm."""
        found = self.backbone.layers(as_images(x), DEPTH)
        pairs = [each.pooled.chunk(2, dim=1) for each in found]
        return [float(F.cosine_similarity(first, second).mean()) for first, second in pairs]


def as_images(x: Tensor) -> Tensor:
    """Pixels [n, 64] -> [n, 1, 8, 8]."""
    return x.view(-1, 1, SIDE, SIDE)


def arm(distilled: bool, setting: Setting) -> Found:
    """Train; the second token learns from the teacher's decisions, or from labels as the first."""
    torch.manual_seed(setting.seed)
    data = digits.digits()
    teacher = digits.perceptron(64)
    digits.fit(
        teacher,
        torch.arange(TAUGHT),
        setting.steps // 4,
        lambda b: F.cross_entropy(teacher(data.train_x[b]), data.train_y[b]),
    )
    with torch.no_grad():
        said, said_of_test = teacher(data.train_x), teacher(data.test_x)
    student = Student()
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=DECAY)
    curve = []
    for step in range(setting.steps):
        rate = RATE * min(1.0, (step + 1) / WARMUP) * (1 - step / setting.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        b = torch.randint(digits.TRAIN, (digits.BATCH,))
        first, second = student(data.train_x[b])
        other = (
            hard_loss(second, said[b]) if distilled else F.cross_entropy(second, data.train_y[b])
        )
        optimizer.zero_grad()
        loss = (F.cross_entropy(first, data.train_y[b]) + other) / 2
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if (step + 1) % (setting.steps // POINTS) == 0:
            curve.append((step + 1.0, student.cosines(data.test_x)[-1]))
    with torch.no_grad():
        first, second = student(data.test_x)
    cosines = student.cosines(data.test_x)
    decided = said_of_test.argmax(1)
    numbers = {
        "first": cosines[0],
        "last": cosines[-1],
        "right": digits.accuracy(first, data.test_y),
        "other_right": digits.accuracy(second, data.test_y),
        "agree": digits.accuracy(first, decided),
        "other_agrees": digits.accuracy(second, decided),
        "teacher": digits.accuracy(said_of_test, data.test_y),
    }
    return Found(numbers, {"cosine": curve})


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    taught, twice = mean["distillation token"], mean["second class token"]
    return (
        f"Two class tokens that learn from the same labels become nearly one: their cosine is "
        f"{twice['last']:.3f} after the last block (in the paper 0.999, after 300 epochs). The "
        "token that learns the decisions of a teacher, who is right for "
        f"{100 * taught['teacher']:.1f} % of the test images, stays farther from the class token "
        f"beside it: {taught['last']:.3f} (in the paper 0.93). It decides as the "
        f"teacher for {100 * taught['other_agrees']:.1f} % of the test images, the class token for "
        f"{100 * taught['agree']:.1f} %. It is right for {100 * taught['other_right']:.1f} % of "
        f"them, the class token for {100 * taught['right']:.1f} %: a teacher so much weaker than "
        "the labels makes nothing better here."
    )


CLAIM = Claim(
    name="deit",
    paper="Touvron et al., Training data-efficient image transformers & distillation through "
    "attention, ICML 2021",
    arxiv="2012.12877",
    says="a token for the teacher's hard labels learns something else than the class token; a "
    "second class token does not",
    source="section 4 (cosine of the tokens), table 4 (agreement with the teacher)",
    experiment="A small ViT with two tokens learns ten digits. The class token learns from the "
    f"labels; the other from the decisions of a perceptron that learnt from {TAUGHT} of the images "
    "and errs, or, as a control, from the labels too. Measured is the cosine of the two tokens of "
    "each test image after the last block, and whose decisions they share.",
    data=digits.DATA,
    file="selfsame/methods/deit.py",
    arms={
        "distillation token": Arm(partial(arm, True)),
        "second class token": Arm(partial(arm, False), control=True),
    },
    quantities={
        "first": Quantity("cosine, first block", 3),
        "last": Quantity("last block", 3),
        "agree": Quantity("class token as the teacher, %", 1, 100),
        "other_agrees": Quantity("other token, %", 1, 100),
        "right": Quantity("class token right, %", 1, 100),
        "other_right": Quantity("other token, %", 1, 100),
    },
    checks=(
        Check(
            "the tokens' cosine is smaller than that of two class tokens, by",
            lambda n: n["second class token"]["last"] - n["distillation token"]["last"],
            0.03,
            "0.943 and 0.884: 0.059 apart (0.035, 0.052, 0.089)",
        ),
        Check(
            "the distillation token decides as the teacher more often than the class token, points",
            lambda n: (
                100 * (n["distillation token"]["other_agrees"] - n["distillation token"]["agree"])
            ),
            2.0,
            "90.9 % and 86.8 %: 4.1 points apart (4.0, 3.0, 5.4)",
        ),
    ),
    steps={"fast": 600, "full": 6000},
    panels=(
        Curves("cosine", "cosine of the tokens, last block", {"the same": 1.0}),
        Bars("last", "cosine after the last block", 3, 1.0, {"the same": 1.0}),
        Bars("other_agrees", "other token decides as the teacher, %", 1, 100),
    ),
    seen=seen,
    reason="two tokens that begin apart take many steps to become one",
    deviations=(
        "digits of 8 px in the place of ImageNet, a ViT of 3 blocks 48 wide",
        "a perceptron as teacher, and weaker than the student",
    ),
)
