"""ViT's claim: with few labels it loses to a ResNet; learning without labels first helps it."""

from __future__ import annotations

from functools import partial

from selfsame.claims.claim import Arm, Bars, Check, Claim, Curves, Found, Numbers, Quantity, Setting
from selfsame.claims.training import (
    DATA,
    RESNET,
    VIT,
    classified,
    first,
    images,
    learn,
    small,
)

LABELS = 1000
TRANSFORMER = (  # as MAE's recipe has it: the mean of the tokens, fixed positions
    *VIT,
    "backbone.options.patch=8",
    "backbone.options.pool=mean",
    "backbone.options.positions=mae",
    "backbone.options.init=xavier",
)


def arm(network: tuple[str, ...], setting: Setting, *, without_labels: bool = False) -> Found:
    """Train with the labels of 1,000 images, after learning from all of them without, or not."""
    begin: tuple[str, ...] = ()
    if without_labels:
        before = setting._replace(folder=setting.folder.with_name(f"{setting.folder.name}-mae"))
        painter = learn(small("mae", network, "batch_size=32"), before)
        begin = (f"backbone.init={painter.result.run}",)
    settings = (*begin, "method.classes=10", "batch_size=32", "optim.lr=2e-3")
    train = first(images().train, LABELS)
    learnt = learn(small("supervised", network, *settings), setting, train)
    numbers = {
        "test": classified(learnt.result.encoder, images().test),
        "train": classified(learnt.result.encoder, train),
    }
    return Found(numbers, {"loss": learnt.curve("loss")})


def points(n: Numbers, better: str, worse: str) -> float:
    """Points of accuracy on the test images between two arms."""
    return 100 * (n[better]["test"] - n[worse]["test"])


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    resnet, vit, after = (mean[name] for name in ("ResNet", "ViT", "ViT, MAE first"))
    return (
        f"From {LABELS:,} labelled images the ResNet learns to have {100 * resnet['test']:.1f} % "
        f"of the test images right, the ViT {100 * vit['test']:.1f} %: it has to find out by "
        "itself that what lies side by side belongs together. After it had painted hidden patches "
        f"of all 8,000 images, without a label, it is {100 * after['test']:.1f} %. Of the training "
        f"images they have {100 * resnet['train']:.1f} %, {100 * vit['train']:.1f} % and "
        f"{100 * after['train']:.1f} % right: this is how they begin, and none has learnt them by "
        "heart."
    )


CLAIM = Claim(
    name="vit",
    paper="Dosovitskiy et al., An image is worth 16x16 words: transformers for image recognition "
    "at scale, ICLR 2021",
    arxiv="2010.11929",
    says="with few labels a ViT loses to a ResNet, whose convolutions know what it must learn; "
    "learning without labels first narrows the gap",
    source="figures 3 and 4, section 4.6",
    experiment=f"A ResNet and a ViT learn the ten classes from {LABELS:,} labelled images, for as "
    "many steps. A second ViT learnt as many steps of MAE from all 8,000 images before, without "
    "labels.",
    data=DATA,
    file="selfsame/backbones/vit.py",
    arms={
        "ResNet": Arm(partial(arm, RESNET)),
        "ViT, MAE first": Arm(partial(arm, TRANSFORMER, without_labels=True)),
        "ViT": Arm(partial(arm, TRANSFORMER), control=True),
    },
    quantities={
        "test": Quantity("test images right, %", 1, 100),
        "train": Quantity("training images right, %", 1, 100),
    },
    checks=(
        Check(
            "the ResNet is right more often than the ViT, points",
            lambda n: points(n, "ResNet", "ViT"),
            1.1,
            "33.3 % and 31.0 %: 2.3 points apart (2.2, 3.5, 1.2)",
        ),
        Check(
            "the ViT that learnt without labels before, more often than without, points",
            lambda n: points(n, "ViT, MAE first", "ViT"),
            1.0,
            "30.2 % and 31.0 %: 0.8 points fewer and not more (-1.4, 0.6, -1.5)",
        ),
    ),
    steps={"fast": 250, "full": 4000},
    panels=(
        Bars("test", "test images right, %", 1, 100, {"chance": 10.0}),
        Curves("loss", "loss of each batch"),
    ),
    seen=seen,
    reason="few steps without labels teach little, and few of the labels are learnt by then",
    deviations=(
        f"{LABELS:,} images of CIFAR-10 in the place of millions",
        "MAE in the place of the paper's own prediction of patches (their mean colour)",
        "a ViT of 4 blocks 96 wide with 16 patches, a ResNet of 10 layers from 16 channels on",
    ),
)
