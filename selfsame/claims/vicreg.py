"""VICReg's claim: the variance term prevents the collapse, the covariance term the redundancy."""

from __future__ import annotations

import torch

from selfsame.claims.claim import Arm, Bars, Check, Claim, Curves, Found, Numbers, Quantity, Setting
from selfsame.claims.training import DATA, RESNET, fresh_views, learn, neighbours, small
from selfsame.evals.health import rankme
from selfsame.methods.vicreg import VICReg
from selfsame.types import Progress

WIDTH = 128  # D
IMAGES = 1024  # that are looked at, in views that training has not had


def arm(settings: tuple[str, ...], setting: Setting) -> Found:
    """Train; the embeddings' standard deviation and effective rank, and nearest neighbours."""
    expander = f"method.expander=[{2 * WIDTH}, {2 * WIDTH}, {WIDTH}]"
    learnt = learn(small("vicreg", RESNET, expander, *settings), setting)
    method = learnt.method().train()
    assert isinstance(method, VICReg)
    with torch.no_grad():
        views = fresh_views(learnt.plan, method, IMAGES)
        z = method.embed(views, Progress(0, 1, 0, 0.0))["z"][0].float()
    numbers = {"deviation": float(z.std(dim=0).mean())}
    if method.config.mu:  # of what has collapsed it would be that of the noise that is left
        numbers["rank"] = float(rankme(z - z.mean(dim=0)))
    numbers["knn"] = neighbours(learnt.result.encoder)
    # the hinge max(0, 1 - deviation) says the deviation, where that is below one
    deviation = [(step, 1 - v) for step, v in learnt.curve("variance")]
    return Found(numbers, {"deviation": deviation, "covariance": learnt.curve("covariance")})


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    whole, still, alike = mean["all terms"], mean["no variance"], mean["no covariance"]
    return (
        "Without the variance term the embeddings' standard deviation falls to "
        f"{still['deviation']:.3f}: all images have nearly the same. With it, it is "
        f"{whole['deviation']:.2f} (the term asks for 1, and the other two pull against it). "
        f"Without the covariance term it is {alike['deviation']:.2f}, but the dimensions repeat "
        f"each other: their effective rank is {alike['rank']:.0f} of {WIDTH}, with all terms "
        f"{whole['rank']:.0f}. Nearest neighbours are right for {100 * whole['knn']:.1f} % of the "
        f"test images with all terms, for {100 * still['knn']:.1f} % without variance and for "
        f"{100 * alike['knn']:.1f} % without covariance."
    )


CLAIM = Claim(
    name="vicreg",
    paper="Bardes, Ponce, LeCun, VICReg: variance-invariance-covariance regularization, ICLR 2022",
    arxiv="2105.04906",
    says="the variance term prevents the collapse, and the covariance term the redundancy",
    source="table 7, section 4.1",
    experiment="VICReg learns three times: with its loss, without the variance term (mu is 0), and "
    "without the covariance term (nu is 0). The embeddings of "
    f"{IMAGES:,} images, in views that no step has had, are measured after the last step.",
    data=DATA,
    file="selfsame/methods/vicreg.py",
    arms={
        "all terms": Arm(lambda setting: arm((), setting)),
        "no variance": Arm(lambda setting: arm(("method.mu=0.0",), setting), control=True),
        "no covariance": Arm(lambda setting: arm(("method.nu=0.0",), setting), control=True),
    },
    quantities={
        "deviation": Quantity("standard deviation", 3),
        "rank": Quantity(f"effective rank of {WIDTH}", 1),
        "knn": Quantity("kNN, %", 1, 100),
    },
    checks=(
        Check(
            "the deviation is larger than without the variance term",
            lambda n: n["all terms"]["deviation"] - n["no variance"]["deviation"],
            0.16,
            "0.348 and 0.016: 0.33 apart, of three seeds",
        ),
        Check(
            "the rank is larger than without the covariance term",
            lambda n: n["all terms"]["rank"] - n["no covariance"]["rank"],
            14.0,
            "39.7 and 10.9: 29 apart (27, 28, 31)",
        ),
        Check(
            "neighbours are right more often than without the variance term, points",
            lambda n: 100 * (n["all terms"]["knn"] - n["no variance"]["knn"]),
            2.2,
            "28.0 % and 23.6 %: 4.4 points apart (5.6, 5.3, 2.5)",
        ),
    ),
    steps={"fast": 150, "full": 2000},
    panels=(
        Curves("deviation", "standard deviation, at most 1", {"what the term asks for": 1.0}),
        Bars("rank", f"effective rank of {WIDTH}", 1),
        Bars("knn", "kNN, % right", 1, 100, {"chance": 10.0}),
    ),
    seen=seen,
    reason="few steps, and a small network whose features have few dimensions to begin with",
    deviations=(f"an expander {WIDTH} wide, in the place of 8192",),
)
