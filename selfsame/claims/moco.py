"""MoCo's claim: only a slow encoder keeps the keys of a queue comparable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from selfsame.claims.claim import Arm, Check, Claim, Curves, Found, Numbers, Quantity, Setting
from selfsame.claims.training import DATA, RESNET, learn, neighbours, small
from selfsame.data.sample import SIDE
from selfsame.methods.moco import MoCo, Settings
from selfsame.nn.batchnorm import resting_statistics
from selfsame.nn.precision import unit
from selfsame.types import Backbone, Output, Progress

BATCH = 64
QUEUE = 2048  # K
AGE = QUEUE // BATCH  # steps that a key stays in the queue
GUESS = math.log(1 + QUEUE)  # the loss where all keys look alike


class Watched(MoCo):
    """MoCo that computes the keys of a batch again when they leave the queue."""

    images: Tensor
    keys: Tensor
    agreement: Tensor

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.register_buffer("images", torch.zeros(BATCH, 3, SIDE, SIDE))
        self.register_buffer("keys", torch.zeros(BATCH, config.output))
        self.register_buffer("agreement", torch.ones(()))

    def forward(self, views: Mapping[str, Tensor], t: Progress) -> Output:
        """As the method; ``agreement`` is the newest."""
        out = super().forward(views, t)
        metrics = {**out.metrics, "agreement": self.agreement.clone()}
        return Output(out.loss, metrics, {**out.carry, "images": views["global"][1]})

    @torch.no_grad()
    def after_step(self, t: Progress, carry: Sequence[Mapping[str, Tensor]]) -> None:
        """As the method, and the cosine of old and new keys each time the queue has turned over."""
        super().after_step(t, carry)
        if t.step % AGE:
            return
        if t.step:
            with resting_statistics(self.key_backbone):
                again = unit(self.key_head(self.key_backbone(self.images).pooled))
            self.agreement.copy_((again * self.keys).sum(1).mean())
        self.images.copy_(carry[0]["images"])
        self.keys.copy_(carry[0]["keys"])


def arm(momentum: float, setting: Setting) -> Found:
    """Train; how keys age, what the loss comes to, and nearest neighbours."""
    settings = (
        f"batch_size={BATCH}",
        f"method.queue={QUEUE}",
        f"method.momentum={momentum}",
    )
    learnt = learn(small(f"{__name__}:Watched", RESNET, *settings, like="moco"), setting)
    numbers = {
        "agreement": min(value for _, value in learnt.curve("agreement")),
        "accuracy": max(value for _, value in learnt.curve("accuracy")),
        "loss": learnt.late("loss"),
        "knn": neighbours(learnt.result.encoder),
    }
    return Found(numbers, {key: learnt.curve(key) for key in ("agreement", "accuracy", "loss")})


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    slow, none = mean["momentum 0.99"], mean["momentum 0"]
    return (
        f"Keys stay in the queue for {AGE} steps. With a slow encoder an old key and the one that "
        f"the encoder gives then have a cosine of {slow['agreement']:.2f} or more; without it of "
        f"{none['agreement']:.2f} at the lowest: an old key points to another side of the sphere. "
        "So a key gives itself away by being new, and the queries, which need not look at the "
        f"image for that, find theirs for up to {100 * none['accuracy']:.0f} % of the images (with "
        f"the slow encoder for up to {100 * slow['accuracy']:.0f} %). What this learns is worth "
        f"nothing: all keys become one, and the loss ends at {none['loss']:.2f}, that of a guess "
        f"among {1 + QUEUE:,} ({GUESS:.2f}); with the slow encoder at {slow['loss']:.2f}. Nearest "
        f"neighbours are right for {100 * slow['knn']:.1f} % of the test images with it and for "
        f"{100 * none['knn']:.1f} % without."
    )


CLAIM = Claim(
    name="moco",
    paper="He et al., Momentum contrast for unsupervised visual representation learning, CVPR 2020",
    arxiv="1911.05722",
    says="a slow encoder keeps the keys of a queue consistent; without it training fails",
    source="section 4.1, ablation: momentum",
    experiment=f"MoCo with a queue of {QUEUE:,} keys learns twice: with a momentum of 0.99 and of "
    "0, where the encoder of keys is that of queries. Watched are the cosine of keys with those "
    "that the same views get when the queue has turned over, how often a query finds its key among "
    "those of the queue, and the loss.",
    data=DATA,
    file="selfsame/methods/moco.py",
    arms={
        "momentum 0.99": Arm(lambda setting: arm(0.99, setting)),
        "momentum 0": Arm(lambda setting: arm(0.0, setting), control=True),
    },
    quantities={
        "agreement": Quantity("cosine of old and new keys, lowest", 2),
        "accuracy": Quantity("own key found, highest, %", 0, 100),
        "loss": Quantity("loss", 2),
        "knn": Quantity("kNN, %", 1, 100),
    },
    checks=(
        Check(
            "the lowest cosine of old and new keys is higher than without the slow encoder",
            lambda n: n["momentum 0.99"]["agreement"] - n["momentum 0"]["agreement"],
            0.6,
            "0.78 and -0.51: 1.29 apart, of three seeds",
        ),
        Check(
            "the loss is lower than without it",
            lambda n: n["momentum 0"]["loss"] - n["momentum 0.99"]["loss"],
            0.6,
            "7.62 and 6.44: 1.18 apart",
        ),
        Check(
            "neighbours are right more often than without it, points",
            lambda n: 100 * (n["momentum 0.99"]["knn"] - n["momentum 0"]["knn"]),
            1.3,
            "27.7 % and 25.1 %: 2.6 points apart (3.4, 2.3, 2.1)",
        ),
    ),
    steps={"fast": 200, "full": 3000},
    panels=(
        Curves("agreement", f"cosine of keys with those {AGE} steps later", {"the same": 1.0}),
        Curves("accuracy", "share of queries that find their key"),
        Curves("loss", "loss", {"a guess": GUESS}),
    ),
    seen=seen,
    reason="keys that hardly move in so few steps are consistent whatever the momentum",
    deviations=(
        f"{QUEUE:,} keys in the place of 65,536, and a momentum of 0.99 for a short run",
        "BatchNorm over the whole batch, without shuffling",
    ),
)
