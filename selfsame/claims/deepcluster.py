"""DeepCluster's claim: clustering features and classifying into the clusters bootstraps them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from selfsame.claims.claim import Arm, Bars, Check, Claim, Curves, Found, Numbers, Quantity, Setting
from selfsame.claims.training import DATA, RESNET, images, learn, neighbours, small
from selfsame.evals.cluster import contingency, nmi
from selfsame.methods.deepcluster import DeepCluster, Settings
from selfsame.plan import Plan
from selfsame.types import Backbone, Output, Progress

CLUSTERS = 100  # ten for each class


class Watched(DeepCluster):
    """DeepCluster that compares its clusters with those before, and with the classes."""

    agreement: Tensor
    classes: Tensor

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.register_buffer("agreement", torch.zeros(()))
        self.register_buffer("classes", torch.zeros(()))

    def before_epoch(
        self, t: Progress, images: Iterator[tuple[Tensor, Tensor]]
    ) -> list[nn.Parameter]:
        """As the method, but for what the class says."""
        before = self.label.clone()
        drawn = super().before_epoch(t, images)
        self.agreement.fill_(shared(before, self.label))
        self.classes.fill_(shared(self.label, truth()))
        return drawn

    def forward(self, views: Mapping[str, Tensor], t: Progress) -> Output:
        """As the method, but for what the class says."""
        out = super().forward(views, t)
        found = {"agreement": self.agreement.clone(), "classes": self.classes.clone()}
        return out._replace(metrics={**out.metrics, **found})


class ClusteredOnce(Watched):
    """DeepCluster that keeps the clusters of the random network."""

    def before_epoch(
        self, t: Progress, images: Iterator[tuple[Tensor, Tensor]]
    ) -> list[nn.Parameter]:
        """As the method, before the first epoch alone."""
        return super().before_epoch(t, images) if t.step == 0 else []


class Arbitrary(Watched):
    """DeepCluster without clusters: an image's label depends on its position alone."""

    def before_epoch(
        self, t: Progress, images: Iterator[tuple[Tensor, Tensor]]
    ) -> list[nn.Parameter]:
        """Nothing: the arbitrary labels stay."""
        return []


def shared(first: Tensor, second: Tensor) -> float:
    """Normalised mutual information of two labellings, int64 [N] each."""
    sizes = (int(first.max()) + 1, int(second.max()) + 1)
    return nmi(contingency(first.cpu(), second.cpu(), *sizes))


def truth() -> Tensor:
    """The classes of the training images, int64 [N], which no method sees."""
    return torch.as_tensor(images().train.labels)


def clustered(method: Watched, plan: Plan) -> Watched:
    """The method after its features were clustered once more."""
    torch.manual_seed(plan.recipe.seed)
    Watched.before_epoch(method, plan.progress(plan.total), plan.sweep(method))
    return method


def arm(method: str, setting: Setting) -> Found:
    """Train; the clusters of the features before and after, and nearest neighbours."""
    name = f"{__name__}:{method}"
    learnt = learn(small(name, RESNET, f"method.clusters={CLUSTERS}", like="deepcluster"), setting)
    start, end = learnt.plan.build(), learnt.method()
    assert isinstance(start, Watched)
    assert isinstance(end, Watched)
    numbers = {
        "before": float(clustered(start, learnt.plan).classes),
        "after": float(clustered(end, learnt.plan).classes),
        "last": float(end.agreement),
        "knn": neighbours(learnt.result.encoder),
    }
    curves = {"loss": learnt.curve("loss")}
    if method == "Watched":
        curves |= {key: learnt.curve(key) for key in ("agreement", "classes")}
        later = [v for step, v in curves["agreement"] if step > learnt.plan.steps_per_epoch]
        numbers["first"] = later[0]  # what the first epoch was compared with is arbitrary
    return Found(numbers, curves)


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    turn, once, arbitrary = mean["in turn"], mean["clustered once"], mean["arbitrary labels"]
    return (
        f"The clusters of the random network share {turn['before']:.3f} of their information with "
        f"the ten classes, those after {turn['after']:.3f}: to be told apart, clusters that mean "
        "little need features that mean more. Clusters of successive epochs agree more and more "
        f"(from {turn['first']:.2f} after the first to {turn['last']:.2f} in the end): the process "
        "settles. It is not the learning as such: of arbitrary labels of the same number comes "
        f"{arbitrary['after']:.3f}. Most of the gain is already there with the clusters of the "
        f"random network alone ({once['after']:.3f}), and clustering anew adds little in "
        f"so few epochs. Nearest neighbours are right for {100 * turn['knn']:.1f} %, "
        f"{100 * once['knn']:.1f} % (clustered once) and {100 * arbitrary['knn']:.1f} % (arbitrary "
        "labels) of the test images."
    )


CLAIM = Claim(
    name="deepcluster",
    paper="Caron et al., Deep clustering for unsupervised learning of visual features, ECCV 2018",
    arxiv="1807.05520",
    says="clustering and classifying in turn bootstraps features, and the clusters settle",
    source="figures 2a and 2b",
    experiment=f"DeepCluster with {CLUSTERS} clusters learns for four epochs, and two controls "
    "learn as long to tell labels apart that stay: the clusters of the random network, and labels "
    "that have nothing to do with the images. All images are clustered before and after. Watched "
    "are the normalised mutual information of the clusters with the ten classes, which no run "
    "sees, and with the clusters of the epoch before.",
    data=DATA,
    file="selfsame/methods/deepcluster.py",
    arms={
        "in turn": Arm(lambda setting: arm("Watched", setting)),
        "clustered once": Arm(lambda setting: arm("ClusteredOnce", setting), control=True),
        "arbitrary labels": Arm(lambda setting: arm("Arbitrary", setting), control=True),
    },
    quantities={
        "before": Quantity("NMI with classes, before", 3),
        "after": Quantity("after", 3),
        "first": Quantity("NMI of successive clusters, first", 3),
        "last": Quantity("last", 3),
        "knn": Quantity("kNN, %", 1, 100),
    },
    checks=(
        Check(
            "clusters share more with the classes than those of the random network",
            lambda n: n["in turn"]["after"] - n["in turn"]["before"],
            0.027,
            "0.120 and 0.066: 0.054 apart, of three seeds",
        ),
        Check(
            "clusters share more with the classes than after arbitrary labels",
            lambda n: n["in turn"]["after"] - n["arbitrary labels"]["after"],
            0.025,
            "0.120 and 0.070: 0.050 apart (0.054, 0.052, 0.045)",
        ),
        Check(
            "clusters share more with the classes than where they were clustered once",
            lambda n: n["in turn"]["after"] - n["clustered once"]["after"],
            0.004,
            "0.120 and 0.112: 0.008 apart (0.010, 0.009, 0.006)",
        ),
        Check(
            "successive clusters agree more in the end than in the beginning",
            lambda n: n["in turn"]["last"] - n["in turn"]["first"],
            0.14,
            "0.37 and 0.65: 0.27 apart",
        ),
    ),
    steps={"fast": 500, "full": 6000},
    panels=(
        Curves("agreement", "NMI of clusters with those before"),
        Curves("classes", "NMI of clusters with the ten classes"),
        Bars("after", "NMI with the classes after training", 3),
    ),
    seen=seen,
    reason="few epochs, and a network too small for clusters that mean much",
    deviations=("images weighted in the place of sampling uniformly over clusters",),
)
