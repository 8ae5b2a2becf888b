"""Mixer's claim: perceptrons are enough, and how the pixels lie does not matter to them."""

from __future__ import annotations

from functools import partial

import numpy as np
from torch import Tensor, nn

from selfsame.claims.claim import Arm, Bars, Check, Claim, Curves, Found, Numbers, Quantity, Setting
from selfsame.claims.training import DATA, RESNET, classified, images, learn, small
from selfsame.data.arrays import ArraySource
from selfsame.data.sample import SIDE
from selfsame.methods.supervised import Settings, Supervised
from selfsame.types import Backbone, Source

PATCH = 8  # pixels
MIXER = (
    "backbone.name=mixer_small",
    "backbone.options.width=96",
    "backbone.options.depth=4",
    f"backbone.options.patch={PATCH}",
)
# views are the images as they are: a crop of shuffled pixels would be none of the image
WHOLE = ("views.scale=[1.0, 1.0]", "views.ratio=[1.0, 1.0]", "views.flip=0.0")


class Silent(nn.Module):
    """In the place of a perceptron across tokens: no token hears of another."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, N] -> [1, 1, 1]: zero, which is added to the tokens."""
        return x.new_zeros(1, 1, 1)


class NoTokenMixing(Supervised):
    """Supervised training of a Mixer that looks at each patch alone."""

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        for block in backbone.blocks():
            block.mlp_tokens = Silent()


def arm(
    network: tuple[str, ...], setting: Setting, *, method: str = "supervised", shuffle: bool = False
) -> Found:
    """Train on images as they are or shuffled; what of the test images, seen alike, is right."""
    train, test = images().train, images().test
    if shuffle:
        train, test = shuffled(train), shuffled(test)
    settings = (*WHOLE, "method.classes=10", "batch_size=32", "optim.lr=4e-3")
    learnt = learn(small(method, network, *settings, like="supervised"), setting, train)
    numbers = {
        "accuracy": classified(learnt.result.encoder, test),
        "loss": learnt.late("loss"),
    }
    return Found(numbers, {"loss": learnt.curve("loss")})


def shuffled(part: Source) -> ArraySource:
    """The images with their patches in another order, and the pixels of each: one for all."""
    assert isinstance(part, ArraySource)
    rows, draw = SIDE // PATCH, np.random.default_rng(0)
    x = part.images.reshape(-1, rows, PATCH, rows, PATCH, 3).swapaxes(2, 3)
    x = x.reshape(-1, rows**2, PATCH**2, 3)  # [N, patches, pixels, channels]
    x = x[:, draw.permutation(rows**2)][:, :, draw.permutation(PATCH**2)]
    x = x.reshape(-1, rows, rows, PATCH, PATCH, 3).swapaxes(2, 3).reshape(-1, SIDE, SIDE, 3)
    return ArraySource(np.ascontiguousarray(x), part.labels, part.classes, "shuffled")


def lost(n: Numbers, network: str) -> float:
    """Points of accuracy that shuffling the pixels takes from a network."""
    return 100 * (n[network]["accuracy"] - n[f"{network}, shuffled"]["accuracy"])


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    right = {name: 100 * each["accuracy"] for name, each in mean.items()}
    return (
        f"The Mixer has {right['Mixer']:.1f} % of the test images right, and "
        f"{right['Mixer, shuffled']:.1f} % where the patches of all images, and the pixels in each "
        "patch, were put in one other order before it saw any: it has no notion of what lies "
        "beside what that it could lose. A ResNet of about as many weights falls from "
        f"{right['ResNet']:.1f} % to {right['ResNet, shuffled']:.1f} %, since its kernels look at "
        "neighbours. That tokens are mixed at all is what the Mixer learns by: with its "
        "perceptrons across tokens taken out, it looks at each patch alone and has "
        f"{right['no token mixing']:.1f} % right."
    )


CLAIM = Claim(
    name="mixer",
    paper="Tolstikhin et al., MLP-Mixer: an all-MLP architecture for vision, NeurIPS 2021",
    arxiv="2105.01601",
    says="perceptrons across patches and across channels are enough, and the order of patches and "
    "pixels does not matter to them",
    source="section 3.4 and figure 4 (invariance to input permutations)",
    experiment="A Mixer and a ResNet learn the ten classes from images as they are, and from "
    "images whose 16 patches, and the 64 pixels in each, were all put in one other order, in "
    "training and in testing. And a Mixer learns whose perceptrons across tokens were taken out.",
    data=DATA,
    file="selfsame/backbones/mixer.py",
    arms={
        "Mixer": Arm(partial(arm, MIXER)),
        "Mixer, shuffled": Arm(partial(arm, MIXER, shuffle=True)),
        "ResNet": Arm(partial(arm, RESNET), control=True),
        "ResNet, shuffled": Arm(partial(arm, RESNET, shuffle=True), control=True),
        "no token mixing": Arm(
            partial(arm, MIXER, method=f"{__name__}:NoTokenMixing"), control=True
        ),
    },
    quantities={
        "accuracy": Quantity("test images right, %", 1, 100),
        "loss": Quantity("training loss", 3),
    },
    checks=(
        Check(
            "what shuffling takes from the ResNet, points",
            lambda n: lost(n, "ResNet"),
            5.0,
            "",
        ),
        Check(
            "what it takes from the Mixer, points",
            lambda n: abs(lost(n, "Mixer")),
            5.0,
            "",
            above=False,
        ),
        Check(
            "what token mixing gives, points",
            lambda n: 100 * (n["Mixer"]["accuracy"] - n["no token mixing"]["accuracy"]),
            3.0,
            "",
        ),
    ),
    steps={"fast": 300, "full": 3000},
    panels=(
        Bars("accuracy", "test images right, %", 1, 100, {"chance": 10.0}),
        Curves("loss", "training loss"),
    ),
    seen=seen,
    reason="few steps, after which no network has learnt much of what shuffling destroys",
    deviations=(
        "a Mixer of 4 blocks 96 wide and a ResNet of 10 layers, from 16 channels on",
        "patches of 8 px, images of 32 px",
    ),
)
