"""ResNet's claim: without shortcuts a deeper network fits its own training images worse."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.claims.claim import Arm, Bars, Check, Claim, Curves, Found, Numbers, Quantity, Setting
from selfsame.claims.training import DATA, first, images, learn, scores, small
from selfsame.methods.supervised import Settings, Supervised
from selfsame.types import Backbone

SHALLOW, DEEP = 18, 34  # layers: the two of figure 4
WIDTH = 16  # channels of the first stage
IMAGES = 2000  # of the training images, that the loss is measured on, whole


class Nothing(nn.Module):
    """What a plain network has for a shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        """[...] -> []: zero."""
        return x.new_zeros(())


class Plain(Supervised):
    """Supervised training of the same network without its shortcuts."""

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        for block in backbone.blocks():
            block.downsample = Nothing()


def arm(method: str, depth: int, setting: Setting) -> Found:
    """Train; the loss of training images after the last step, and its curve."""
    network = (
        f"backbone.name=resnet{depth}",
        "backbone.options.stem=patch",
        f"backbone.options.width={WIDTH}",
        "backbone.options.zero_init=false",  # a plain block that ends in zero is silent
        "method.classes=10",
        "batch_size=32",
    )
    learnt = learn(small(method, network, like="supervised"), setting)
    said, label = scores(learnt.result.encoder, first(images().train, IMAGES))
    numbers = {
        "loss": float(F.cross_entropy(said, label)),
        "accuracy": float((said.argmax(1) == label).float().mean()),
    }
    return Found(numbers, {"loss": learnt.curve("loss")})


def worse(n: Numbers, kind: str) -> float:
    """By how much the deeper network's loss is larger than the shallower one's."""
    return n[f"{kind}, {DEEP} layers"]["loss"] - n[f"{kind}, {SHALLOW} layers"]["loss"]


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    plain, residual = (
        [mean[f"{kind}, {depth} layers"] for depth in (SHALLOW, DEEP)]
        for kind in ("plain", "residual")
    )
    return (
        f"Without shortcuts the network of {DEEP} layers ends with a loss of "
        f"{plain[1]['loss']:.2f} on its own training images, the one of {SHALLOW} layers with "
        f"{plain[0]['loss']:.2f}, although the deeper one could do all that the shallower one does "
        f"({100 * plain[1]['accuracy']:.0f} % of the images right in the place of "
        f"{100 * plain[0]['accuracy']:.0f} %). With shortcuts the losses are "
        f"{residual[1]['loss']:.2f} and {residual[0]['loss']:.2f}: after so few steps the deeper "
        f"network is behind as well, by {worse(mean, 'residual'):.2f} in the place of "
        f"{worse(mean, 'plain'):.2f}. All have BatchNorm after every convolution, so signals do "
        "not vanish."
    )


PLAIN = f"{__name__}:Plain"

CLAIM = Claim(
    name="resnet",
    paper="He, Zhang, Ren, Sun, Deep residual learning for image recognition, CVPR 2016",
    arxiv="1512.03385",
    says="without shortcuts a deeper network has the higher training error; with them the lower",
    source="figure 4 and table 2",
    experiment=f"ResNets of {SHALLOW} and {DEEP} layers learn the ten classes, with and without "
    "their shortcuts, for as many steps, from the same weights, images and crops. Watched is the "
    "loss on training images themselves: a matter of optimisation and not of overfitting.",
    data=DATA,
    file="selfsame/backbones/resnet.py",
    arms={
        f"residual, {SHALLOW} layers": Arm(lambda setting: arm("supervised", SHALLOW, setting)),
        f"residual, {DEEP} layers": Arm(lambda setting: arm("supervised", DEEP, setting)),
        f"plain, {SHALLOW} layers": Arm(lambda setting: arm(PLAIN, SHALLOW, setting), control=True),
        f"plain, {DEEP} layers": Arm(lambda setting: arm(PLAIN, DEEP, setting), control=True),
    },
    quantities={
        "loss": Quantity("training loss", 3),
        "accuracy": Quantity("training images right, %", 1, 100),
    },
    checks=(
        Check(
            "plain: the deeper network's loss is the larger, by",
            lambda n: worse(n, "plain"),
            0.16,
            "2.18 and 1.85: 0.32 apart (0.32, 0.29, 0.36)",
        ),
        Check(
            "with shortcuts it is so by less, difference",
            lambda n: worse(n, "plain") - worse(n, "residual"),
            0.1,
            "0.32 and 0.12: 0.20 apart (0.20, 0.14, 0.26)",
        ),
        Check(
            f"{DEEP} layers: the loss is smaller with shortcuts than without, by",
            lambda n: n[f"plain, {DEEP} layers"]["loss"] - n[f"residual, {DEEP} layers"]["loss"],
            0.2,
            "1.79 and 2.18: 0.39 apart (0.37, 0.33, 0.48)",
        ),
        Check(
            "with shortcuts the deeper network's loss is the smaller, by",
            lambda n: -worse(n, "residual"),
            0.0,
            "1.79 and 1.66: 0.12 larger and not smaller (0.12, 0.15, 0.11)",
        ),
    ),
    steps={"fast": 250, "full": 3000},
    panels=(
        Curves("loss", "loss of each batch"),
        Bars("loss", "loss of training images, at the end", 2),
        Bars("accuracy", "training images right, %", 1, 100, {"chance": 10.0}),
    ),
    seen=seen,
    reason="so few steps show the start alone, where the deeper network is behind with "
    "shortcuts, too",
    deviations=(
        f"channels from {WIDTH} on in the place of 64, images of 32 px",
        "AdamW in the place of SGD",
    ),
)
