"""DINO's claim: centring and sharpening avoid opposite collapses, and only both avoid both."""

from __future__ import annotations

import math

from selfsame.claims.claim import Arm, Bars, Check, Claim, Curves, Found, Numbers, Quantity, Setting
from selfsame.claims.training import DATA, RESNET, learn, neighbours, small

OUTPUTS = 256  # K
STUDENT = 0.1  # temperature
# the teacher's temperature is the student's: targets are as soft as what they are compared with
NOT_SHARP = (
    f"method.teacher_temperature={STUDENT}",
    f"method.teacher_temperature_start={STUDENT}",
)
NOT_CENTRED = ("method.center_momentum=1.0",)  # the centre stays where it began, at zero


def arm(settings: tuple[str, ...], setting: Setting) -> Found:
    """Train; the teacher's entropy and the divergence of the student from it, of ln K."""
    recipe = small("dino", RESNET, f"method.outputs={OUTPUTS}", *settings)
    recipe = recipe.model_copy(update={"views": recipe.views[:2]})
    learnt = learn(recipe, setting)
    whole = math.log(OUTPUTS)
    curves = {
        "entropy": [(step, h / whole) for step, h in learnt.curve("teacher_entropy")],
        "divergence": learnt.curve("divergence"),
    }
    numbers = {
        "entropy": learnt.late("teacher_entropy") / whole,
        "divergence": learnt.late("divergence"),
        "knn": neighbours(learnt.result.encoder),
    }
    return Found(numbers, curves)


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    both, centre, sharp = mean["both"], mean["centring only"], mean["sharpening only"]
    return (
        f"With centring alone the teacher's entropy is {100 * centre['entropy']:.1f} % of ln K: "
        "its targets say the same of every prototype. With sharpening alone it is "
        f"{100 * sharp['entropy']:.1f} %: each target is all but one prototype. "
        "In both the targets say little of an image, and the student diverges the less from them: "
        f"by {centre['divergence']:.3f} and {sharp['divergence']:.3f} nats. With both the entropy "
        f"is {100 * both['entropy']:.1f} %, and the divergence stays at {both['divergence']:.2f} "
        "nats. Nearest neighbours hardly tell the three apart after so few steps "
        f"({100 * both['knn']:.1f} %, {100 * centre['knn']:.1f} % and {100 * sharp['knn']:.1f} % "
        "of the test images): a collapse of the targets comes first, "
        "and features that learn nothing more follow from it."
    )


CLAIM = Claim(
    name="dino",
    paper="Caron et al., Emerging properties in self-supervised vision transformers, ICCV 2021",
    arxiv="2104.14294",
    says="centring and sharpening of the teacher avoid opposite collapses: both are needed",
    source="figure 7 and section 5.3",
    experiment="DINO learns three times from the same images: as it is, without sharpening (the "
    "teacher's temperature is the student's, 0.1 in the place of 0.04), and without centring (the "
    "centre stays zero). Watched are the entropy H of the teacher's targets, as a share of ln K, "
    "and the divergence KL of the student from them.",
    data=DATA,
    file="selfsame/methods/dino.py",
    arms={
        "both": Arm(lambda setting: arm((), setting)),
        "centring only": Arm(lambda setting: arm(NOT_SHARP, setting), control=True),
        "sharpening only": Arm(lambda setting: arm(NOT_CENTRED, setting), control=True),
    },
    quantities={
        "entropy": Quantity("H / ln K", 3),
        "divergence": Quantity("KL, nats", 3),
        "knn": Quantity("kNN, %", 1, 100),
    },
    checks=(
        Check(
            "with both the entropy stays below what centring alone has",
            lambda n: n["both"]["entropy"],
            0.95,
            "0.883 with both (0.858 to 0.897), 0.999 with centring only, of three seeds",
            above=False,
        ),
        Check(
            "centring only: the entropy goes to ln K",
            lambda n: n["centring only"]["entropy"],
            0.95,
            "the same",
        ),
        Check(
            "with both the entropy stays above what sharpening alone has",
            lambda n: n["both"]["entropy"],
            0.5,
            "0.883 with both, 0.043 with sharpening only (0.000, 0.053, 0.075)",
        ),
        Check(
            "sharpening only: the entropy goes to 0",
            lambda n: n["sharpening only"]["entropy"],
            0.5,
            "the same",
            above=False,
        ),
        Check(
            "the divergence is larger with both than with centring only, nats",
            lambda n: n["both"]["divergence"] - n["centring only"]["divergence"],
            0.185,
            "0.375 and 0.004: 0.37 apart",
        ),
        Check(
            "the divergence is larger with both than with sharpening only, nats",
            lambda n: n["both"]["divergence"] - n["sharpening only"]["divergence"],
            0.116,
            "0.375 and 0.142: 0.23 apart (0.34, 0.27, 0.08)",
        ),
    ),
    steps={"fast": 300, "full": 2000},
    panels=(
        Curves("entropy", "teacher's entropy / ln K", {"uniform": 1.0, "one prototype": 0.0}),
        Curves("divergence", "KL of student from teacher, nats", {"no information": 0.0}),
        Bars("knn", "kNN, % right", 1, 100, {"chance": 10.0}),
    ),
    seen=seen,
    reason="with one seed of three the targets of sharpening alone still tell images apart when "
    "the learning rate has come to nothing: the collapse stops half-way",
    deviations=("two global crops and no local ones", f"K = {OUTPUTS}, a ResNet of 10 layers"),
)
