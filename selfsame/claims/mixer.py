"""Mixer's claim: perceptrons are enough, and how the pixels lie does not matter to them."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.backbones.mixer import Mixer
from selfsame.backbones.resnet import ResNet
from selfsame.claims import digits
from selfsame.claims.claim import Arm, Bars, Check, Claim, Found, Numbers, Quantity, Setting
from selfsame.types import Backbone

SIDE, PATCH = 8, 2  # pixels
LEARNT = 200  # images that are learnt from: few, so that it counts what a network knows before


class Silent(nn.Module):
    """In the place of a perceptron across tokens: no token hears of another."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, N] -> [1, 1, 1]: zero, which is added to the tokens."""
        return x.new_zeros(1, 1, 1)


class Classified(nn.Module):
    """A network and a classifier of its pooled features, for pixels [n, 64]."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.dim, digits.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels [n, 64] -> logits [n, 10]."""
        pooled: Tensor = self.backbone(x.unflatten(1, (1, SIDE, SIDE))).pooled
        return self.head(pooled)  # type: ignore[no-any-return]


def mixer(*, mixing: bool = True) -> Mixer:
    """A Mixer; without ``mixing`` it looks at each patch alone."""
    network = Mixer(image_size=SIDE, channels=1, patch=PATCH, width=48, depth=4)
    for block in network.blocks() if not mixing else ():
        block.mlp_tokens = Silent()
    return network


def resnet() -> ResNet:
    """A ResNet of three stages at full resolution."""
    return ResNet("resnet8", stem="cifar", width=16, channels=1)


def arm(build: partial[Backbone], setting: Setting, *, shuffled: bool = False) -> Found:
    """Train on digits as they are or shuffled; what of the test digits, seen alike, is right."""
    torch.manual_seed(setting.seed)
    data, network = digits.digits(), Classified(build())
    see = shuffle if shuffled else nn.Identity()
    train, test = see(data.train_x), see(data.test_x)
    rows = torch.arange(LEARNT) + LEARNT * setting.seed  # other images for each seed
    digits.fit(
        network,
        rows,
        setting.steps,
        lambda b: F.cross_entropy(network(train[b]), data.train_y[b]),
    )
    with torch.no_grad():
        found = {
            "accuracy": digits.accuracy(network(test), data.test_y),
            "train": digits.accuracy(network(train[rows]), data.train_y[rows]),
        }
    return Found(found)


def shuffle(x: Tensor) -> Tensor:
    """Pixels [n, 64] with their patches in another order, and the pixels of each: one for all."""
    numbers, rows = torch.Generator().manual_seed(0), SIDE // PATCH
    x = x.unflatten(1, (rows, PATCH, rows, PATCH)).transpose(2, 3).flatten(3).flatten(1, 2)
    x = x[:, torch.randperm(rows**2, generator=numbers)]  # [n, patches, pixels]
    x = x[:, :, torch.randperm(PATCH**2, generator=numbers)]
    x = x.unflatten(2, (PATCH, PATCH)).unflatten(1, (rows, rows))
    return x.transpose(2, 3).flatten(1)


def lost(n: Numbers, network: str) -> float:
    """Points of accuracy that shuffling the pixels takes from a network."""
    return 100 * (n[network]["accuracy"] - n[f"{network}, shuffled"]["accuracy"])


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    right = {name: 100 * each["accuracy"] for name, each in mean.items()}
    return (
        f"The Mixer has {right['Mixer']:.1f} % of the test digits right, and "
        f"{right['Mixer, shuffled']:.1f} % where the patches of all images, and the pixels in each "
        "patch, were put in one other order before it saw any: it has no notion of what lies "
        f"beside what that it could lose. A ResNet falls from {right['ResNet']:.1f} % to "
        f"{right['ResNet, shuffled']:.1f} %, since its kernels look at neighbours. That tokens are "
        "mixed at all is what the Mixer lives by: with its perceptrons across tokens taken out it "
        f"looks at each patch alone and has {right['no token mixing']:.1f} % right."
    )


CLAIM = Claim(
    name="mixer",
    paper="Tolstikhin et al., MLP-Mixer: an all-MLP architecture for vision, NeurIPS 2021",
    arxiv="2105.01601",
    says="perceptrons across patches and across channels are enough, and the order of patches and "
    "pixels does not matter to them",
    source="section 3.4 and figure 4 (invariance to input permutations)",
    experiment=f"A Mixer and a ResNet learn ten digits from {LEARNT} images as they are, and from "
    "images whose 16 patches, and the 4 pixels in each, were all put in one other order, in "
    "training and in testing. And a Mixer learns whose perceptrons across tokens were taken out.",
    data=digits.DATA,
    file="selfsame/backbones/mixer.py",
    arms={
        "Mixer": Arm(partial(arm, partial(mixer))),
        "Mixer, shuffled": Arm(partial(arm, partial(mixer), shuffled=True)),
        "ResNet": Arm(partial(arm, partial(resnet)), control=True),
        "ResNet, shuffled": Arm(partial(arm, partial(resnet), shuffled=True), control=True),
        "no token mixing": Arm(partial(arm, partial(mixer, mixing=False)), control=True),
    },
    quantities={
        "accuracy": Quantity("test digits right, %", 1, 100),
        "train": Quantity("training digits right, %", 1, 100),
    },
    checks=(
        Check(
            "what shuffling takes from the ResNet, points more than from the Mixer",
            lambda n: lost(n, "ResNet") - lost(n, "Mixer"),
            5.0,
            "",
        ),
        Check(
            "what it takes from the Mixer, points",
            lambda n: lost(n, "Mixer"),
            3.0,
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
    steps={"fast": 200, "full": 3000},
    panels=(Bars("accuracy", "test digits right, %", 1, 100, {"chance": 10.0}),),
    seen=seen,
    reason="digits are easy, and a network that looks at all pixels does without neighbours",
    deviations=(
        "digits of 8 px in the place of JFT-300M",
        "a Mixer of 4 blocks 48 wide, a ResNet of 8 layers from 16 channels on",
    ),
)
