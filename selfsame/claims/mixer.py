"""Mixer's claim: perceptrons are enough, and how the pixels lie does not matter to them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.backbones.mixer import Mixer, MixerBlock
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
        pooled: Tensor = self.backbone(x.view(-1, 1, SIDE, SIDE)).pooled
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


def arm(
    build: Callable[[], Backbone],
    setting: Setting,
    *,
    shuffled: bool = False,
    rearranged: bool = False,
) -> Found:
    """Train on digits as they are or shuffled; what of the test digits, seen alike, is right.

    What is ``rearranged`` learns from digits as they are and is tested on shuffled ones.
    """
    torch.manual_seed(setting.seed)
    data, network = digits.digits(), Classified(build())
    train = shuffle(data.train_x) if shuffled else data.train_x
    test = shuffle(data.test_x) if shuffled or rearranged else data.test_x
    rows = torch.arange(LEARNT) + LEARNT * setting.seed  # other images for each seed
    digits.fit(
        network,
        rows,
        setting.steps,
        lambda b: F.cross_entropy(network(train[b]), data.train_y[b]),
    )
    if rearranged:
        rearrange(network.backbone)
    with torch.no_grad():
        return Found({"accuracy": digits.accuracy(network(test), data.test_y)})


def orders() -> tuple[Tensor, Tensor]:
    """The other order of patches, int64 [16], and of the pixels of each, [4]."""
    numbers = torch.Generator().manual_seed(0)
    patches = torch.randperm((SIDE // PATCH) ** 2, generator=numbers)
    return patches, torch.randperm(PATCH**2, generator=numbers)


def shuffle(x: Tensor) -> Tensor:
    """Pixels [n, 64] with their patches in another order, and the pixels of each: one for all."""
    (patches, pixels), rows = orders(), SIDE // PATCH
    x = x.view(-1, rows, PATCH, rows, PATCH).transpose(2, 3).reshape(-1, rows**2, PATCH**2)
    x = x[:, patches][:, :, pixels]
    return x.reshape(-1, rows, rows, PATCH, PATCH).transpose(2, 3).reshape(-1, SIDE**2)


@torch.no_grad()
def rearrange(network: Backbone) -> None:
    """Put a Mixer's weights in the order of shuffled images, in place: it says the same of them."""
    assert isinstance(network, Mixer)
    patches, pixels = orders()
    projection = network.patch_embed.proj.weight  # [D, 1, 2, 2]
    projection.copy_(projection.flatten(2)[..., pixels].view_as(projection))
    for block in network.blocks():
        assert isinstance(block, MixerBlock)
        first, last = block.mlp_tokens.fc1, block.mlp_tokens.fc2
        first.weight.copy_(first.weight[:, patches])
        last.weight.copy_(last.weight[patches])
        last.bias.copy_(last.bias[patches])


def lost(n: Numbers, network: str) -> float:
    """Points of accuracy that shuffling the pixels takes from a network."""
    return 100 * (n[network]["accuracy"] - n[f"{network}, shuffled"]["accuracy"])


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    right = {name: 100 * each["accuracy"] for name, each in mean.items()}
    return (
        "That tokens are mixed is what the Mixer lives by: it has "
        f"{right['Mixer']:.1f} % of the test digits right, and {right['no token mixing']:.1f} % "
        "with its perceptrons across tokens taken out, where it looks at each patch alone. How the "
        "pixels lie is nothing to it: with its weights put in the order of shuffled digits it has "
        f"{right['Mixer, rearranged']:.1f} % of those right, the same ones, so whatever it can "
        "learn from digits it can learn from shuffled ones. Learning from shuffled digits itself "
        f"gives {right['Mixer, shuffled']:.1f} %. A ResNet, whose kernels look at neighbours, goes "
        f"from {right['ResNet']:.1f} % to {right['ResNet, shuffled']:.1f} %: on images so small "
        "hardly more than seeds differ."
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
    "training and in testing. The weights of a third Mixer, which learnt from images as they are, "
    "are put into the order of shuffled ones, on which it is tested. The perceptrons across tokens "
    "of a fourth were taken out.",
    data=digits.DATA,
    file="selfsame/backbones/mixer.py",
    arms={
        "Mixer": Arm(partial(arm, mixer)),
        "Mixer, shuffled": Arm(partial(arm, mixer, shuffled=True)),
        "Mixer, rearranged": Arm(partial(arm, mixer, rearranged=True)),
        "ResNet": Arm(partial(arm, resnet), control=True),
        "ResNet, shuffled": Arm(partial(arm, resnet, shuffled=True), control=True),
        "no token mixing": Arm(partial(arm, partial(mixer, mixing=False)), control=True),
    },
    quantities={
        "accuracy": Quantity("test digits right, %", 1, 100),
    },
    checks=(
        Check(
            "what token mixing gives, points",
            lambda n: 100 * (n["Mixer"]["accuracy"] - n["no token mixing"]["accuracy"]),
            21.0,
            "91.0 % and 49.3 %: 42 points apart (41, 43, 41)",
        ),
        Check(
            "rearranged, on shuffled digits: points from the Mixer on digits",
            lambda n: 100 * abs(n["Mixer"]["accuracy"] - n["Mixer, rearranged"]["accuracy"]),
            0.2,
            "exact by construction: rounding alone, that a digit in 597 may turn on",
            above=False,
        ),
        Check(
            "shuffling takes more from the ResNet than from the Mixer, points",
            lambda n: lost(n, "ResNet") - lost(n, "Mixer"),
            0.45,
            "1.8 and 1.0 points: 0.9 apart (-0.7, 2.7, 0.7)",
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
