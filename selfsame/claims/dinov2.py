"""DINOv2's claim: KoLeo spreads the features of a batch over the sphere."""

from __future__ import annotations

from selfsame.claims.claim import Arm, Bars, Check, Claim, Curves, Found, Numbers, Quantity, Setting
from selfsame.claims.training import DATA, VIT, images, learn, small
from selfsame.evals.health import uniform
from selfsame.evals.subject import Subject
from selfsame.methods.dinov2 import nearest
from selfsame.nn.precision import unit

WEIGHT = 0.1  # of KoLeo: the paper's


def arm(weight: float, setting: Setting) -> Found:
    """Train; how the teacher's features of the 2,000 test images lie on the sphere."""
    recipe = small("dinov2", VIT, "batch_size=32", f"method.koleo_weight={weight}")
    recipe = recipe.model_copy(update={"views": recipe.views[:2]})
    learnt = learn(recipe, setting)
    features, label = Subject(learnt.result.encoder).labelled_part(images().test)
    x = unit(features)
    other = nearest(x)
    numbers = {
        "distance": float((x - x[other]).norm(dim=1).mean()),
        "uniformity": float(uniform(x)),
        "koleo": learnt.late("koleo"),
        "right": float((label == label[other]).float().mean()),
    }
    return Found(numbers, {"koleo": learnt.curve("koleo")})


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    on, off = mean["KoLeo"], mean["no KoLeo"]
    return (
        f"With KoLeo a test image's nearest neighbour is {on['distance']:.3f} away on the unit "
        f"sphere, without it {off['distance']:.3f}: {on['distance'] / off['distance']:.2f} times "
        f"as far. Over all pairs the features lie more evenly as well (uniformity "
        f"{on['uniformity']:.2f} in the place of {off['uniformity']:.2f}; lower is more even). In "
        f"training, where two views of a batch are looked at, the regulariser itself is at "
        f"{on['koleo']:.2f} with it and at {off['koleo']:.2f} without. The room is not paid for "
        f"with what the features mean: the nearest neighbour is of the image's class for "
        f"{100 * on['right']:.1f} % of the images with it and for {100 * off['right']:.1f} % "
        "without."
    )


CLAIM = Claim(
    name="dinov2",
    paper="Oquab, Darcet, Moutakanni et al., DINOv2: learning robust visual features without "
    "supervision, TMLR 2024",
    arxiv="2304.07193",
    says="KoLeo spreads the features of a batch over the sphere, so that neighbours can be told "
    "apart",
    source="section 4, table 3a (retrieval with and without KoLeo)",
    experiment="DINOv2 learns twice from the same images: with KoLeo at the paper's weight of "
    f"{WEIGHT}, and without it. Measured are the teacher's features of 2,000 test images, at unit "
    "length: the distance to the nearest neighbour, and the uniformity log E exp(-2 d^2) over all "
    "pairs.",
    data=DATA,
    file="selfsame/methods/dinov2.py",
    arms={
        "KoLeo": Arm(lambda setting: arm(WEIGHT, setting)),
        "no KoLeo": Arm(lambda setting: arm(0.0, setting), control=True),
    },
    quantities={
        "distance": Quantity("distance to the nearest", 3),
        "uniformity": Quantity("uniformity", 2),
        "koleo": Quantity("KoLeo in training", 2),
        "right": Quantity("nearest of the same class, %", 1, 100),
    },
    checks=(
        Check(
            "the nearest neighbour is farther with KoLeo, ratio",
            lambda n: n["KoLeo"]["distance"] / n["no KoLeo"]["distance"],
            1.17,
            "0.308 and 0.231: 1.34 times as far (1.29, 1.35, 1.37)",
        ),
        Check(
            "uniformity, lower than without by",
            lambda n: n["no KoLeo"]["uniformity"] - n["KoLeo"]["uniformity"],
            0.14,
            "-2.19 and -1.91: 0.28 apart (0.25, 0.27, 0.31)",
        ),
        Check(
            "neighbours of the same class, fewer than without, points",
            lambda n: 100 * (n["no KoLeo"]["right"] - n["KoLeo"]["right"]),
            1.0,
            "22.8 % and 22.2 %: not fewer but 0.6 points more (0.1, 0.7, 1.0)",
            above=False,
        ),
    ),
    steps={"fast": 60, "full": 2000},
    panels=(
        Bars("distance", "distance to the nearest neighbour", 3),
        Bars("uniformity", "uniformity (lower: more even)", 2),
        Curves("koleo", "KoLeo of a batch, two views"),
    ),
    seen=seen,
    reason="few steps, and a batch of 32 images, whose nearest neighbours are far anyway",
    deviations=(
        "a ViT of 4 blocks 96 wide, batch 32, two global crops and no local ones",
        "classes of neighbours in the place of instance retrieval",
    ),
)
