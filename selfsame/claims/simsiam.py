"""SimSiam's claim: what prevents the collapse is the stop-gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from selfsame.claims.claim import Arm, Bars, Check, Claim, Curves, Found, Numbers, Quantity, Setting
from selfsame.claims.training import DATA, RESNET, learn, neighbours, small
from selfsame.methods.simsiam import SimSiam
from selfsame.nn.pairs import pair, spread
from selfsame.nn.precision import unit
from selfsame.types import Output, Progress

BATCH = 64
# z has mean zero in a batch, so not all unit vectors can be one: all but one of them, at the least
FLOOR = math.sqrt(1 - (1 - 2 / BATCH) ** 2)


class Open(SimSiam):
    """SimSiam without its stop-gradient: both sides of equation 1 learn."""

    def forward(self, views: Mapping[str, Tensor], t: Progress) -> Output:
        """As the method, but for what the class says."""
        x1, x2 = pair(views["global"])
        z1, p1 = self.branch(x1)
        z2, p2 = self.branch(x2)
        cosines = [(unit(p) * unit(z)).sum(-1).mean() for p, z in ((p1, z2), (p2, z1))]
        return Output(-torch.stack(cosines).mean(), {"spread": spread(z1)}, {})


def arm(method: str, setting: Setting) -> Found:
    """Train; the deviation of the projections, the loss, and nearest neighbours."""
    learnt = learn(small(method, RESNET, f"batch_size={BATCH}", like="simsiam"), setting)
    numbers = {
        "spread": learnt.late("spread"),
        "loss": learnt.late("loss"),
        "knn": neighbours(learnt.result.encoder),
    }
    return Found(numbers, {key: learnt.curve(key) for key in ("spread", "loss")})


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    with_it, without = mean["stop-gradient"], mean["no stop-gradient"]
    return (
        f"Without the stop-gradient the loss falls faster, to {without['loss']:.2f} (-1 is the "
        "least), and less is learnt by it: the projections of different images move together. "
        f"Their deviation is {without['spread']:.2f} of that of an isotropic distribution and "
        "still falling; the last BatchNorm, whose outputs have mean zero in each batch, allows "
        f"about {FLOOR:.2f} at the least (one image of {BATCH} on the other side of the sphere), "
        "where the paper's larger batches come nearer to 0. With the stop-gradient the deviation "
        f"stays at {with_it['spread']:.2f} and the loss is {with_it['loss']:.2f}. Nearest "
        f"neighbours are right for {100 * with_it['knn']:.1f} % of the test images with it and for "
        f"{100 * without['knn']:.1f} % without. Both runs have the same network, predictor, "
        "images, views and learning rate."
    )


CLAIM = Claim(
    name="simsiam",
    paper="Chen and He, Exploring simple siamese representation learning, CVPR 2021",
    arxiv="2011.10566",
    says="two views, one network and no negatives: the stop-gradient alone prevents the collapse",
    source="figure 2 and section 4.1",
    experiment="SimSiam learns twice from the same images, once with and once without the "
    "stop-gradient of equation 3. Watched is the standard deviation of the projections' channels "
    "after they were brought to unit length, times the square root of their number: 1 where they "
    "are spread over the whole sphere, 0 where all images have one projection.",
    data=DATA,
    file="selfsame/methods/simsiam.py",
    arms={
        "stop-gradient": Arm(lambda setting: arm("simsiam", setting)),
        "no stop-gradient": Arm(lambda setting: arm(f"{__name__}:Open", setting), control=True),
    },
    quantities={
        "spread": Quantity("deviation x sqrt(d)", 3),
        "loss": Quantity("loss", 3),
        "knn": Quantity("kNN, %", 1, 100),
    },
    checks=(
        Check(
            "with it the deviation stays near 1/sqrt(d)",
            lambda n: n["stop-gradient"]["spread"],
            0.7,
            "0.989 with it, 0.420 without (0.404 to 0.436), of three seeds",
        ),
        Check(
            "without it the deviation falls",
            lambda n: n["no stop-gradient"]["spread"],
            0.7,
            "the same",
            above=False,
        ),
        Check(
            "neighbours are right more often with it, points",
            lambda n: 100 * (n["stop-gradient"]["knn"] - n["no stop-gradient"]["knn"]),
            3.5,
            "29.7 % and 22.6 %: 7 points apart (7.7, 8.7, 4.9)",
        ),
    ),
    steps={"fast": 300, "full": 4000},
    panels=(
        Curves("spread", "deviation x sqrt(d)", {"isotropic": 1.0, "least with BatchNorm": FLOOR}),
        Curves("loss", "loss", {"least": -1.0}),
        Bars("knn", "kNN, % right", 1, 100, {"chance": 10.0}),
    ),
    seen=seen,
    reason="a collapse takes some hundred steps; with fewer the two runs have hardly parted",
)
