"""DeepCluster-v2's claim: prototypes that are the centroids know the new clusters at once."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from selfsame.claims.claim import Arm, Bars, Check, Claim, Curves, Found, Numbers, Quantity, Setting
from selfsame.claims.training import DATA, RESNET, fresh_views, learn, neighbours, small
from selfsame.methods.deepclusterv2 import DeepClusterV2, Settings
from selfsame.nn.precision import unit
from selfsame.types import Backbone, Progress

CLUSTERS = 100
GUESS = math.log(CLUSTERS)  # the loss of a classifier to which all clusters are alike
IMAGES = 1024  # that are classified after one more clustering, in views that training has not had


class NewClassifier(DeepClusterV2):
    """DeepCluster-v2 with the classifier of the first version: drawn anew, then trained."""

    prototypes0: Tensor

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        del self.prototypes0
        self.prototypes0 = nn.Parameter(torch.empty(CLUSTERS, config.output))
        self._draw_classifier()

    def before_epoch(  # type: ignore[override]
        self, t: Progress, images: Iterator[tuple[Tensor, Tensor]]
    ) -> list[nn.Parameter]:
        """Cluster as the method does, and forget the centroids."""
        super().before_epoch(t, images)
        self._draw_classifier()
        assert isinstance(self.prototypes0, nn.Parameter)
        return [self.prototypes0]

    @torch.no_grad()
    def _draw_classifier(self) -> None:
        self.prototypes0.copy_(unit(torch.randn(self.prototypes0.shape)))

    def _prototypes(self) -> list[Tensor]:
        return [self.prototypes0]


def arm(method: str, setting: Setting) -> Found:
    """Train, cluster once more, and classify views into the old clusters and into the new ones."""
    recipe = small(method, RESNET, f"method.prototypes=[{CLUSTERS}]", like="deepclusterv2")
    recipe = recipe.model_copy(update={"views": recipe.views[:1]})
    learnt = learn(recipe, setting)
    trained = learnt.method().train()
    end = learnt.plan.progress(setting.steps)
    torch.manual_seed(setting.seed)  # of k-means
    with torch.no_grad():
        views = fresh_views(learnt.plan, trained, IMAGES)
        old = trained(views, end)
        trained.before_epoch(end, iter(()))
        new = trained(views, end)
    numbers = {
        "old": float(old.metrics["accuracy"]),
        "new": float(new.metrics["accuracy"]),
        "loss": float(new.loss),
        "knn": neighbours(learnt.result.encoder),
    }
    return Found(numbers, {key: learnt.curve(key) for key in ("loss", "accuracy")})


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    centroids, drawn = mean["centroids"], mean["new classifier"]
    return (
        f"After one more clustering the centroids put {100 * centroids['new']:.1f} % of the views "
        f"into the right one of {CLUSTERS} new clusters without a step of learning, where they "
        f"had {100 * centroids['old']:.1f} % of the old clusters right: nothing is lost. A "
        f"classifier that was trained had {100 * drawn['old']:.1f} % right and has "
        f"{100 * drawn['new']:.1f} % after it was drawn anew, with a loss of {drawn['loss']:.2f} "
        f"(a guess has {GUESS:.2f}, the centroids {centroids['loss']:.2f}). Every epoch it first "
        "has to learn where its clusters are. Nearest "
        f"neighbours are right for {100 * centroids['knn']:.1f} % and "
        f"{100 * drawn['knn']:.1f} % of the test images."
    )


CLAIM = Claim(
    name="deepclusterv2",
    paper="Caron et al., Unsupervised learning of visual features by contrasting cluster "
    "assignments, NeurIPS 2020",
    arxiv="2006.09882",
    says="centroids as prototypes know the new clusters at once, a new classifier does not",
    source="DeepCluster-v2, in the comparison of clustering methods",
    experiment=f"DeepCluster-v2 with one head of {CLUSTERS} clusters learns for three epochs: with "
    "its centroids, which no gradient moves, as prototypes, and with a classifier that is drawn "
    "anew after each clustering and trained, as in the first version. After the last step "
    f"{IMAGES:,} images, in views that no step has had, are classified into the clusters of the "
    "last epoch and, after one more clustering, into those of the next.",
    data=DATA,
    file="selfsame/methods/deepclusterv2.py",
    arms={
        "centroids": Arm(lambda setting: arm("deepclusterv2", setting)),
        "new classifier": Arm(
            lambda setting: arm(f"{__name__}:NewClassifier", setting), control=True
        ),
    },
    quantities={
        "old": Quantity("old clusters right, %", 1, 100),
        "new": Quantity("new clusters right, %", 1, 100),
        "loss": Quantity("loss on the new", 2),
        "knn": Quantity("kNN, %", 1, 100),
    },
    checks=(
        Check(
            "new clusters right, more than with a new classifier, points",
            lambda n: 100 * (n["centroids"]["new"] - n["new classifier"]["new"]),
            3.7,
            "8.3 % and 0.8 %: 7.5 points apart, of three seeds",
        ),
        Check(
            "the loss on the new clusters is lower than with a new classifier",
            lambda n: n["new classifier"]["loss"] - n["centroids"]["loss"],
            0.5,
            "4.96 and 3.92: 1.03 apart",
        ),
    ),
    steps={"fast": 375, "full": 6000},
    panels=(
        Curves("loss", "loss", {"a guess": GUESS}),
        Curves("accuracy", "share of views in the right cluster"),
        Bars("new", "right after a new clustering, %", 1, 100, {"chance": 100 / CLUSTERS}),
    ),
    seen=seen,
    reason="few epochs, and clusters of features that have hardly been learnt",
    deviations=("one head, two crops and no local ones", f"{CLUSTERS} clusters"),
)
