"""Barlow Twins' claim: two terms drive the cross-correlation of two views to the identity."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selfsame.claims.claim import (
    Arm,
    Check,
    Claim,
    Curves,
    Found,
    Numbers,
    Picture,
    Quantity,
    Setting,
)
from selfsame.claims.training import DATA, RESNET, fresh_views, learn, neighbours, small
from selfsame.evals.health import rankme
from selfsame.methods.barlow_twins import BarlowTwins, cross_correlation
from selfsame.nn.pairs import off_diagonal
from selfsame.report.pictures import uri
from selfsame.types import Method, Output, Progress

WIDTH = 64  # D
IMAGES = 1024  # that C is computed of, in views that training has not had


class OffDiagonalOnly(BarlowTwins):
    """Barlow Twins whose views need not be equal: the second term of equation 1 alone."""

    def loss(self, embedded: Mapping[str, Tensor], t: Progress) -> Output:
        """As the method, but for what the class says."""
        whole = super().loss(embedded, t)
        c = cross_correlation(*(self.standardize(view) for view in embedded["z"]))
        redundancy = self.config.lambd * off_diagonal(c).square().sum()
        return whole._replace(loss=self.config.scale * redundancy)


def arm(method: str, settings: tuple[str, ...], setting: Setting) -> Found:
    """Train; C before and after, its diagonal and the rest, and the embeddings' rank."""
    projector = f"method.projector=[{4 * WIDTH}, {WIDTH}]"
    recipe = small(method, RESNET, projector, "method.lambd=0.1", *settings, like="barlow_twins")
    learnt = learn(recipe, setting)
    views = fresh_views(learnt.plan, learnt.plan.build(), IMAGES)
    before, _ = correlation(learnt.plan.build(), views)
    after, z = correlation(learnt.method(), views)
    rest = off_diagonal(after).square().sum() / (WIDTH * (WIDTH - 1))
    numbers = {
        "diagonal": float(after.diagonal().mean()),
        "rest": float(rest.sqrt()),
        "rank": float(rankme(z)),
        "knn": neighbours(learnt.result.encoder),
    }
    curves = {"diagonal": learnt.curve("on_diagonal"), "rest": learnt.curve("off_diagonal")}
    return Found(numbers, curves, {"before": picture(before), "after": picture(after)})


@torch.no_grad()
def correlation(method: Method, views: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """C of two views, [D, D], and the standardised embeddings of the first, [N, D]."""
    assert isinstance(method, BarlowTwins)
    method.train()
    z = method.embed(views, Progress(0, 1, 0, 0.0))["z"]
    first, second = (method.standardize(view) for view in z)
    return cross_correlation(first, second), first


def picture(c: Tensor) -> str:
    """A matrix in [-1, 1]: orange where positive, blue where negative, white at zero."""
    ends = np.array([[10, 106, 143], [255, 255, 255], [194, 65, 12]], dtype=np.float64)
    at = (c.double().clamp(-1, 1).cpu().numpy() + 1) / 2  # 0 to 1
    channels = [np.interp(at, [0.0, 0.5, 1.0], ends[:, k]) for k in range(3)]
    return uri(Image.fromarray(np.stack(channels, -1).round().astype(np.uint8)), png=True)


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    both, equal, apart = mean["both terms"], mean["diagonal only"], mean["off-diagonal only"]
    return (
        "After so few steps C is on its way to the identity and not there: it has "
        f"{both['diagonal']:.2f} on its diagonal and a root mean square of {both['rest']:.3f} "
        "beside it. Without the redundancy term the diagonal is higher "
        f"({equal['diagonal']:.2f}), but the dimensions repeat each other ({equal['rest']:.2f} "
        f"beside the diagonal; effective rank {equal['rank']:.0f} of {WIDTH}, with both terms "
        f"{both['rank']:.0f}). Without the invariance term they are unrelated "
        f"({apart['rest']:.3f}), and so are the views ({apart['diagonal']:.2f} on the diagonal). "
        f"Nearest neighbours are right for {100 * both['knn']:.1f} %, "
        f"{100 * equal['knn']:.1f} % and {100 * apart['knn']:.1f} % of the test images."
    )


CLAIM = Claim(
    name="barlow_twins",
    paper="Zbontar et al., Barlow Twins: self-supervised learning via redundancy reduction, ICML "
    "2021",
    arxiv="2103.03230",
    says="the cross-correlation of two views' embeddings goes towards the identity, by both "
    "terms of the loss",
    source="equation 1, figure 1, table 5 (loss ablations)",
    experiment=f"Barlow Twins with D = {WIDTH} learns three times: with its loss, with the "
    "diagonal term alone (lambda is 0), and with the off-diagonal term alone. The "
    f"cross-correlation C of {IMAGES:,} images' two views, in views that no step has had, is drawn "
    "before and after.",
    data=DATA,
    file="selfsame/methods/barlow_twins.py",
    arms={
        "both terms": Arm(lambda setting: arm("barlow_twins", (), setting)),
        "diagonal only": Arm(
            lambda setting: arm("barlow_twins", ("method.lambd=0.0",), setting), control=True
        ),
        "off-diagonal only": Arm(
            lambda setting: arm(f"{__name__}:OffDiagonalOnly", (), setting), control=True
        ),
    },
    quantities={
        "diagonal": Quantity("mean of C's diagonal", 3),
        "rest": Quantity("RMS of the rest", 3),
        "rank": Quantity(f"effective rank of {WIDTH}", 1),
        "knn": Quantity("kNN, %", 1, 100),
    },
    checks=(
        Check(
            "the diagonal is higher than without its term",
            lambda n: n["both terms"]["diagonal"] - n["off-diagonal only"]["diagonal"],
            0.15,
            "0.41 and 0.11: 0.31 apart, of three seeds",
        ),
        Check(
            "the rest is smaller than without its term",
            lambda n: n["diagonal only"]["rest"] - n["both terms"]["rest"],
            0.23,
            "0.156 and 0.615: 0.46 apart",
        ),
        Check(
            "the rank is larger than without the redundancy term",
            lambda n: n["both terms"]["rank"] - n["diagonal only"]["rank"],
            8.0,
            "26.2 and 9.6: 16.6 apart",
        ),
    ),
    steps={"fast": 150, "full": 2000},
    panels=(
        Picture("both terms", "before", "C before training"),
        Picture("both terms", "after", "C after: both terms"),
        Picture("diagonal only", "after", "C after: diagonal only"),
        Picture("off-diagonal only", "after", "C after: off-diagonal only"),
        Curves("diagonal", "mean of C's diagonal", {"identity": 1.0}),
        Curves("rest", "RMS of the rest of C", {"identity": 0.0}),
    ),
    seen=seen,
    reason="few steps for two terms that pull against each other",
    deviations=(f"D = {WIDTH} and lambda 0.1, in the place of 8192 and 0.0051",),
)
