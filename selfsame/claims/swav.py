"""SwAV's claim: codes that use all prototypes alike, by Sinkhorn-Knopp, prevent the collapse."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsame.claims.claim import Arm, Bars, Check, Claim, Curves, Found, Numbers, Quantity, Setting
from selfsame.claims.training import DATA, RESNET, fresh_views, learn, neighbours, small
from selfsame.methods.swav import SwAV, scores, swapped_prediction
from selfsame.types import Output, Progress

PROTOTYPES = 64
IMAGES = 1024  # that are assigned to prototypes, in views that training has not had


class NoSinkhorn(SwAV):
    """SwAV whose codes are each image's own softmax, whatever the others have."""

    def loss(self, embedded: Mapping[str, Tensor], t: Progress) -> Output:
        """As the method, but for what the class says."""
        s = scores(embedded["z"], self.prototypes.weight)
        codes = F.softmax(s[: self.config.codes].detach() / self.config.epsilon, dim=-1)
        loss = swapped_prediction(s, codes, self.config.temperature)
        p = F.softmax(s.detach() / self.config.temperature, dim=-1).mean((0, 1))
        agreement = (s[1].detach().argmax(-1) == codes[0].argmax(-1)).float().mean()
        return Output(loss, {"entropy": torch.special.entr(p).sum(), "agreement": agreement}, {})


def arm(method: str, setting: Setting) -> Found:
    """Train; how many prototypes images are nearest to, and nearest neighbours."""
    settings = (f"method.prototypes={PROTOTYPES}", "method.queue=0", "method.freeze=0")
    recipe = small(method, RESNET, *settings, like="swav")
    recipe = recipe.model_copy(update={"views": recipe.views[:1]})
    learnt = learn(recipe, setting)
    trained = learnt.method().train()
    assert isinstance(trained, SwAV)
    with torch.no_grad():
        views = fresh_views(learnt.plan, trained, IMAGES)
        z = trained.embed(views, Progress(0, 1, 0, 0.0))["z"][0]
        nearest = scores(z, trained.prototypes.weight).argmax(1)
    count = torch.bincount(nearest, minlength=PROTOTYPES)
    numbers = {
        "used": int((count > 0).sum()),
        "largest": float(count.max() / IMAGES),
        "knn": neighbours(learnt.result.encoder),
    }
    return Found(numbers, {"loss": learnt.curve("loss"), "entropy": learnt.curve("entropy")})


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    with_it, without = mean["Sinkhorn"], mean["no Sinkhorn"]
    return (
        f"With Sinkhorn-Knopp {with_it['used']:.0f} of {PROTOTYPES} prototypes are the nearest of "
        f"some of {IMAGES:,} images, and the most popular has {100 * with_it['largest']:.0f} % of "
        f"them. Without it {without['used']:.0f} are in use, the most popular has "
        f"{100 * without['largest']:.0f} %, and the loss falls all the same: it is easy to predict "
        f"a code that all images share. Nearest neighbours do "
        f"not tell them apart after so few steps ({100 * with_it['knn']:.1f} % and "
        f"{100 * without['knn']:.1f} % of the test images)."
    )


CLAIM = Claim(
    name="swav",
    paper="Caron et al., Unsupervised learning of visual features by contrasting cluster "
    "assignments, NeurIPS 2020",
    arxiv="2006.09882",
    says="codes that use all prototypes alike, by Sinkhorn-Knopp, prevent the trivial solution",
    source="section 3.1, equations 3 to 5",
    experiment=f"SwAV with {PROTOTYPES} prototypes learns twice: with its codes, and with codes "
    "that are the softmax of each image's own scores at the same smoothness.",
    data=DATA,
    file="selfsame/methods/swav.py",
    arms={
        "Sinkhorn": Arm(lambda setting: arm("swav", setting)),
        "no Sinkhorn": Arm(lambda setting: arm(f"{__name__}:NoSinkhorn", setting), control=True),
    },
    quantities={
        "used": Quantity(f"prototypes in use of {PROTOTYPES}", 1),
        "largest": Quantity("images of the largest, %", 1, 100),
        "knn": Quantity("kNN, %", 1, 100),
    },
    checks=(
        Check(
            "prototypes in use, more than without",
            lambda n: n["Sinkhorn"]["used"] - n["no Sinkhorn"]["used"],
            26.0,
            "54 and 1: 53 apart, of three seeds",
        ),
        Check(
            "images of the largest prototype, fewer than without, points",
            lambda n: 100 * (n["no Sinkhorn"]["largest"] - n["Sinkhorn"]["largest"]),
            43.0,
            "14 % and 100 %: 86 points apart",
        ),
    ),
    steps={"fast": 40, "full": 1000},
    panels=(
        Bars("used", f"prototypes in use of {PROTOTYPES}", 1, 1.0, {"all": PROTOTYPES}),
        Curves("loss", "loss"),
        Bars("knn", "kNN, % right", 1, 100, {"chance": 10.0}),
    ),
    seen=seen,
    reason="a collapse takes time, and few steps may end before it",
    deviations=("two crops, no local ones, no queue", "prototypes learn from the first step"),
)
