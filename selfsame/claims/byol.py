"""BYOL's claim: without negatives, a predictor and a target that moves slowly are both needed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from selfsame.claims.claim import Arm, Bars, Check, Claim, Curves, Found, Numbers, Quantity, Setting
from selfsame.claims.training import DATA, RESNET, fresh_views, learn, neighbours, small
from selfsame.methods.byol import BYOL, Settings
from selfsame.nn.pairs import pair
from selfsame.nn.precision import unit
from selfsame.types import Backbone

FIXED = ("method.tau_base=1.0", "method.memory=0.0")  # the target keeps its random weights
IMAGES = 1024  # that the target is asked about, in views that training has not had


class NoPredictor(BYOL):
    """BYOL whose projections themselves must equal the target's."""

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.predictor = nn.Sequential()  # of nothing: the identity


def arm(method: str, settings: tuple[str, ...], setting: Setting) -> Found:
    """Train; what is left of the projections, what the target knows, and nearest neighbours."""
    learnt = learn(small(method, RESNET, *settings, like="byol"), setting)
    built = learnt.method().train()
    assert isinstance(built, BYOL)
    with torch.no_grad():
        z1, z2 = (built.target(x) for x in pair(fresh_views(learnt.plan, built, IMAGES)["global"]))
    numbers = {
        "spread": learnt.late("spread"),
        "contrast": contrast(z1, z2),
        "loss": learnt.late("loss"),
        "knn": neighbours(learnt.result.encoder),
    }
    return Found(numbers, {key: learnt.curve(key) for key in ("spread", "loss")})


def contrast(z1: Tensor, z2: Tensor) -> float:
    """Cosine of two views of an image, less that of two images: means over [N, D] and [N, D]."""
    cosine = unit(z1) @ unit(z2).T
    same, count = cosine.diagonal().sum(), len(cosine)
    return float(same / count - (cosine.sum() - same) / (count * (count - 1)))


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    both, fixed, without = mean["both"], mean["fixed target"], mean["no predictor"]
    return (
        f"Without the predictor all images get one projection: the deviation falls to "
        f"{without['spread']:.2f} of an isotropic one's, and the loss to {without['loss']:.3f}. "
        f"With it the deviation stays at {both['spread']:.2f}, though nothing in the loss pushes "
        "images apart. A target that keeps its random weights does not collapse either "
        f"({fixed['spread']:.2f}), but it remains a poor teacher: to it two views of an image are "
        f"closer than two images by a cosine of {fixed['contrast']:.2f}, to the moving target by "
        f"{both['contrast']:.2f}, to the collapsed one by {without['contrast']:.4f}. What the "
        "online network learns comes back as a better target: that is the bootstrap. Nearest "
        "neighbours hardly tell the targets apart after so few steps: they are right for "
        f"{100 * both['knn']:.1f} %, {100 * fixed['knn']:.1f} % (fixed) and "
        f"{100 * without['knn']:.1f} % (no predictor) of the test images."
    )


CLAIM = Claim(
    name="byol",
    paper="Grill et al., Bootstrap your own latent: a new approach to self-supervised learning, "
    "NeurIPS 2020",
    arxiv="2006.07733",
    says="no negatives: a predictor and a slowly moving target are enough, and both are needed",
    source="tables 5a and 5b",
    experiment="BYOL learns three times from the same images: as it is, with a target that keeps "
    "its random weights (tau is 1), and without the predictor. Watched is the standard deviation "
    "of the projections' channels at unit length, times the square root of their number: 1 where "
    f"they fill the sphere, 0 where all are one. After the last step the target is asked about "
    f"{IMAGES:,} images, in views that no step has had: how much closer are two views of an image "
    "than views of two images?",
    data=DATA,
    file="selfsame/methods/byol.py",
    arms={
        "both": Arm(lambda setting: arm("byol", (), setting)),
        "fixed target": Arm(lambda setting: arm("byol", FIXED, setting), control=True),
        "no predictor": Arm(
            lambda setting: arm(f"{__name__}:NoPredictor", (), setting), control=True
        ),
    },
    quantities={
        "spread": Quantity("deviation x sqrt(d)", 3),
        "contrast": Quantity("two views closer by", 3),
        "loss": Quantity("loss", 3),
        "knn": Quantity("kNN, %", 1, 100),
    },
    checks=(
        Check(
            "the deviation is larger than without the predictor",
            lambda n: n["both"]["spread"] - n["no predictor"]["spread"],
            0.36,
            "0.760 and 0.03: 0.73 apart, of three seeds",
        ),
        Check(
            "to the target two views are closer than without the predictor",
            lambda n: n["both"]["contrast"] - n["no predictor"]["contrast"],
            0.15,
            "0.310 and 0.0001: 0.31 apart",
        ),
        Check(
            "to the target two views are closer than to a fixed one",
            lambda n: n["both"]["contrast"] - n["fixed target"]["contrast"],
            0.09,
            "0.310 and 0.124: 0.19 apart (0.19, 0.20, 0.17)",
        ),
    ),
    steps={"fast": 200, "full": 3000},
    panels=(
        Curves("spread", "deviation x sqrt(d)", {"isotropic": 1.0, "one projection": 0.0}),
        Curves("loss", "loss", {"least": 0.0}),
        Bars("contrast", "cosine of two views less that of two images", 2),
    ),
    seen=seen,
    reason="a collapse and a better target both take some hundred steps",
    deviations=("batch 64, heads 512 wide", "a target that remembers a fiftieth of the run"),
)
