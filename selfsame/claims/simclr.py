"""SimCLR's claim: without colour distortion crops share a shortcut, their colours."""

from __future__ import annotations

from selfsame.claims.claim import Arm, Bars, Check, Claim, Curves, Found, Numbers, Quantity, Setting
from selfsame.claims.training import DATA, RESNET, learn, neighbours, small

NO_COLOUR = ("views.jitter=0.0", "views.grayscale=0.0")


def arm(settings: tuple[str, ...], setting: Setting) -> Found:
    """Train; how often the other view is found, and nearest neighbours."""
    learnt = learn(small("simclr", RESNET, *settings), setting)
    numbers = {
        "accuracy": learnt.late("accuracy"),
        "neutral": learnt.result.health["neutral_match"],
        "knn": neighbours(learnt.result.encoder),
    }
    return Found(numbers, {"loss": learnt.curve("loss"), "accuracy": learnt.curve("accuracy")})


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    both, crops = mean["crops and colour"], mean["crops only"]
    return (
        f"Crops alone are the easier game: the other view is found for "
        f"{100 * crops['accuracy']:.0f} % of the anchors, with colour distortion for "
        f"{100 * both['accuracy']:.0f} %. What is learnt by it is worth less: nearest neighbours "
        f"are right for {100 * crops['knn']:.1f} % of the test images in the place of "
        f"{100 * both['knn']:.1f} %. Images whose colours were all made alike are recognised for "
        f"{100 * crops['neutral']:.0f} % with crops alone and for {100 * both['neutral']:.0f} % "
        "with both: the shortcut is the colours that two crops of an image share."
    )


CLAIM = Claim(
    name="simclr",
    paper="Chen et al., A simple framework for contrastive learning of visual representations, "
    "ICML 2020",
    arxiv="2002.05709",
    says="crops and colour distortion together make the task: crops alone leave a shortcut",
    source="figures 5 and 6, section 3.1",
    experiment="SimCLR learns twice from the same crops: with colour jitter and grayscale, and "
    "without. Compared are how often it finds the other view among the batch and what the features "
    "are worth to nearest neighbours.",
    data=DATA,
    file="selfsame/methods/simclr.py",
    arms={
        "crops and colour": Arm(lambda setting: arm((), setting)),
        "crops only": Arm(lambda setting: arm(NO_COLOUR, setting), control=True),
    },
    quantities={
        "accuracy": Quantity("other view found, %", 1, 100),
        "neutral": Quantity("found without colours, %", 1, 100),
        "knn": Quantity("kNN, %", 1, 100),
    },
    checks=(
        Check(
            "the other view is found more often with crops only, points",
            lambda n: 100 * (n["crops only"]["accuracy"] - n["crops and colour"]["accuracy"]),
            29.0,
            "89 % and 30 %: 58 points apart, of three seeds",
        ),
        Check(
            "images without their colours are recognised more often with both, points",
            lambda n: 100 * (n["crops and colour"]["neutral"] - n["crops only"]["neutral"]),
            17.0,
            "45 % and 11 %: 34 points apart (32, 34, 37)",
        ),
        Check(
            "neighbours are right more often with both, points",
            lambda n: 100 * (n["crops and colour"]["knn"] - n["crops only"]["knn"]),
            1.6,
            "35.9 % and 32.7 %: 3.2 points apart (2.6, 4.3, 2.6)",
        ),
    ),
    steps={"fast": 300, "full": 3000},
    panels=(
        Curves("accuracy", "share of anchors that find the other view"),
        Bars("neutral", "found with all colours made alike, %", 1, 100),
        Bars("knn", "kNN, % right", 1, 100, {"chance": 10.0}),
    ),
    seen=seen,
    reason="colours help to tell the ten classes of CIFAR-10 apart, and a short run learns them "
    "first",
    deviations=("crops of 35 % or more", "batch 64, a ResNet of 10 layers"),
)
