"""MoCo v3's claim: a patch projection that stays random steadies a ViT and costs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from selfsame.claims.claim import Arm, Bars, Check, Claim, Curves, Found, Numbers, Quantity, Setting
from selfsame.claims.training import DATA, VIT, learn, neighbours, small
from selfsame.methods.mocov3 import MoCoV3, Settings
from selfsame.recipe import SMALL_OPTIM
from selfsame.types import Backbone, Progress

STEPS = {"fast": 120, "full": 2000}
RATE = 0.03  # 15 times that of the small recipe: where spikes begin
SMALL_VIT = (
    *VIT,
    "backbone.options.patch=8",
    "backbone.options.positions=mocov3",
    "backbone.options.init=xavier_qkv",
    "method.projector_layers=3",
    "method.predictor_norm=true",
)


class Watched(MoCoV3):
    """MoCo v3 that notes the norm of the gradient of the first block, which both arms train."""

    norms: Tensor

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.register_buffer("norms", torch.zeros(max(STEPS.values())))

    @torch.no_grad()
    def after_step(self, t: Progress, carry: Sequence[Mapping[str, Tensor]]) -> None:
        """As the method, but for what the class says."""
        super().after_step(t, carry)
        gradients = [p.grad for p in self.backbone.blocks()[0].parameters() if p.grad is not None]
        self.norms[t.step] = torch.nn.utils.get_total_norm(gradients)


def arm(frozen: bool, setting: Setting) -> Found:
    """Train at a large learning rate; the largest gradient, the task, and nearest neighbours."""
    settings = (f"optim.lr={RATE}", f"backbone.options.frozen_patch={str(frozen).lower()}")
    learnt = learn(small(f"{__name__}:Watched", SMALL_VIT, *settings, like="mocov3"), setting)
    trained = learnt.method()
    assert isinstance(trained, Watched)
    norms = trained.norms[: setting.steps].cpu()
    warm = norms[setting.steps // 5 :]  # after the warm-up
    numbers = {
        "spike": float(warm.max() / warm.median()),
        "unrest": float(warm.log().std()),
        "loss": learnt.late("loss"),
        "accuracy": learnt.late("accuracy"),
        "knn": neighbours(learnt.result.encoder),
    }
    gradient = list(enumerate((norms / warm.median()).tolist(), start=1))
    return Found(numbers, {"gradient": gradient, "loss": learnt.curve("loss")})


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    frozen, learnt = mean["frozen"], mean["learnt"]
    return (
        f"At a learning rate of {RATE}, {RATE / SMALL_OPTIM.lr:.0f} times the small recipe's, the "
        f"largest gradient of the first block is {learnt['spike']:.1f} times the median while the "
        f"patch projection is learnt, and {frozen['spike']:.1f} times while it keeps its random "
        f"weights; the logarithm of its norm deviates by {learnt['unrest']:.2f} and by "
        f"{frozen['unrest']:.2f}. But a spike is a rare event, and these means hang on single "
        "seeds, as the dots of the figure say: with most of them there is none to be prevented. "
        f"Little or nothing is lost by freezing: the loss ends at {frozen['loss']:.2f} frozen and "
        f"at {learnt['loss']:.2f} learnt, and nearest neighbours are right for "
        f"{100 * frozen['knn']:.1f} % and {100 * learnt['knn']:.1f} % of the test images. Both "
        "learn badly at such a rate."
    )


CLAIM = Claim(
    name="mocov3",
    paper="Chen, Xie and He, An empirical study of training self-supervised vision transformers, "
    "ICCV 2021",
    arxiv="2104.02057",
    says="gradients of a ViT spike, and a patch projection that stays random steadies them",
    source="figures 4 and 5, section 4.2",
    experiment="MoCo v3 trains a ViT of 4 blocks at a learning rate that is too large: with the "
    "patch projection frozen at its random start, and with it learnt. Watched is the norm of the "
    "gradient of the first block, which learns in both, at every step after the warm-up.",
    data=DATA,
    file="selfsame/methods/mocov3.py",
    arms={
        "frozen": Arm(lambda setting: arm(True, setting)),
        "learnt": Arm(lambda setting: arm(False, setting), control=True),
    },
    quantities={
        "spike": Quantity("largest gradient over the median", 1),
        "unrest": Quantity("deviation of its logarithm", 2),
        "loss": Quantity("loss", 2),
        "knn": Quantity("kNN, %", 1, 100),
    },
    checks=(
        Check(
            "the largest gradient is smaller with it frozen, ratio",
            lambda n: n["learnt"]["spike"] / n["frozen"]["spike"],
            1.8,
            "6.9 and 3.5 times the median; ratios 6.1, 0.7, 1.3 of three seeds, 2.7 in the mean",
        ),
        Check(
            "the gradient varies less with it frozen",
            lambda n: n["learnt"]["unrest"] - n["frozen"]["unrest"],
            0.06,
            "0.48 and 0.36: 0.12 apart (0.36, 0.00, 0.01), one seed of three",
        ),
    ),
    steps=STEPS,
    panels=(
        Curves("gradient", "gradient of the first block / its median", {"median": 1.0}),
        Curves("loss", "loss"),
        Bars("spike", "largest gradient / median", 1),
    ),
    seen=seen,
    reason="spikes come with large batches and deep networks; with 4 blocks, 64 images and 120 "
    "steps one run of three had some",
    deviations=("a ViT of 4 blocks, 96 wide, patches of 8 px", "batch 64"),
)
