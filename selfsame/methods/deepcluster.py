"""DeepCluster: deep clustering for unsupervised learning of visual features.

Caron, Bojanowski, Joulin, Douze, ECCV 2018, arXiv 1807.05520.
Authors' code: facebookresearch/deepcluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from selfsame.backbones import SMALL_IMAGE
from selfsame.errors import UsageError
from selfsame.nn.kmeans import collect, embed_all, kmeans, own_rows, pca_whiten
from selfsame.nn.precision import wide
from selfsame.optim import Optim
from selfsame.recipe import SMALL_OPTIM, BackboneConfig, MethodConfig, Recipe, Scale
from selfsame.types import Backbone, Method, Output, Progress
from selfsame.views.presets import small_scale
from selfsame.views.spec import View


def pseudo_labels(assignment: Tensor) -> Tensor:
    """Clusters renumbered without the empty ones: int64 [N] of 0 to K' - 1, in the same order."""
    labels: Tensor = torch.unique(assignment, return_inverse=True)[1]
    return labels


def balanced_indices(assignment: Tensor, count: int, rng: np.random.RandomState) -> Tensor:
    """Images drawn uniformly over their clusters (paragraph "Trivial parametrization").

    Each of the K' clusters that are not empty gives ``count // K' + 1`` images, with replacement
    where it has no more than that; all are shuffled and the first ``count`` taken. For loops that
    sample so; `weighted_loss` has the same effect in ours, whose order is not the method's.

    Args:
        assignment: int64 [N], the cluster of each image.
        count: Images to draw.
        rng: NumPy's generator of the legacy kind, which gives the authors' draws.

    Returns:
        int64 [count], positions of images.
    """
    labels = pseudo_labels(assignment).numpy(force=True)
    clusters = int(labels.max()) + 1
    draws = count // clusters + 1
    drawn = []
    for cluster in range(clusters):
        members = np.flatnonzero(labels == cluster)
        drawn.append(rng.choice(members, draws, replace=len(members) <= draws))
    order = np.concatenate(drawn)
    rng.shuffle(order)
    return torch.from_numpy(order[:count])


def weighted_loss(logits: Tensor, label: Tensor, sizes: Tensor) -> Tensor:
    """Cross-entropy with each image weighted by the inverse of its cluster's size.

    Equal in expectation to uniform sampling over clusters, as the paper says ("Trivial
    parametrization"). The weights, ``N / (K' * size)``, are 1 on average over the data set.

    Args:
        logits: [B, K].
        label: int64 [B], pseudo-labels.
        sizes: int64 [K], images in each cluster; K' of them are not empty.
    """
    weight = sizes.sum() / ((sizes > 0).sum() * sizes[label])
    return (weight * F.cross_entropy(logits, label, reduction="none")).mean()


class Settings(MethodConfig):
    """Hyper-parameters of DeepCluster; the defaults are those of the paper's ImageNet runs."""

    name: str = "deepcluster"
    images: Annotated[int, Field(ge=0)] = 0  # of the data set; 0: taken from the data
    clusters: Annotated[int, Field(ge=2)] = 10_000  # K; about ten times the classes one expects
    components: Annotated[int, Field(ge=1)] = 256  # principal ones, whitened; at most the width
    iterations: Annotated[int, Field(ge=1)] = 20  # of k-means
    uniform: bool = True  # clusters count alike, not images

    @model_validator(mode="after")
    def _enough_images(self) -> Settings:
        if self.images and self.clusters > self.images:
            raise ValueError(f"{self.clusters} clusters are more than the {self.images} images")
        return self

    def for_data(self, images: int, classes: Sequence[str] | None) -> Settings:
        """One pseudo-label for each image, and no more clusters than images."""
        most = min(self.clusters, images)
        return self.model_copy(update={"images": images, "clusters": most})


class DeepCluster(Method):
    """An encoder and a classifier of its clusters, which are found anew before each epoch.

    The state beside the weights: ``label``, [N], the pseudo-label of each image, arbitrary until
    the first clustering, and ``sizes``, [K], how many images have it.

    Args:
        config: the hyper-parameters.
        backbone: the encoder, which is kept.

    Raises:
        UsageError: the number of images is not known.
    """

    Config = Settings
    label: Tensor
    sizes: Tensor

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__()
        if config.images == 0:
            raise UsageError(
                "deepcluster labels every image and needs their number",
                tip="set method.images, or config.for_data(images, None)",
            )
        self.config = config
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.dim, config.clusters)
        arbitrary = torch.arange(config.images) % config.clusters
        self.register_buffer("label", arbitrary)
        self.register_buffer("sizes", arbitrary.bincount(minlength=config.clusters))
        self._draw_classifier()

    def draw(
        self, views: Mapping[str, Tensor], index: Tensor, *, seed: int, epoch: int
    ) -> Mapping[str, Tensor]:
        """The images' positions, by which pseudo-labels are found."""
        return {"index": index}

    @torch.no_grad()
    def before_epoch(
        self, t: Progress, images: Iterator[tuple[Tensor, Tensor]]
    ) -> list[nn.Parameter]:
        """Cluster the features of all images, and begin with a new classifier."""
        config = self.config
        features = embed_all(self, lambda x: self.backbone(x).pooled, images, config.images)
        x = pca_whiten(features, config.components).to(self.label.device)
        start = x[torch.randperm(len(x))[: config.clusters]]
        found = kmeans(x[own_rows()], start, config.iterations, spherical=False)
        index = torch.arange(len(x), device=x.device)[own_rows()]
        self.label.copy_(pseudo_labels(collect(index, found.assignment, len(x))))
        self.sizes.copy_(self.label.bincount(minlength=config.clusters))
        self._draw_classifier()  # the old one knows other clusters by these numbers
        return list(self.classifier.parameters())

    def forward(self, views: Mapping[str, Tensor], t: Progress) -> Output:
        """Cross-entropy of ``views["global"]``, [V, B, C, S, S], with ``views["index"]``, [B]."""
        x, label = views["global"], self.label[views["index"]].repeat(len(views["global"]))
        logits = wide(self.classifier(self.backbone(x.flatten(0, 1)).pooled))
        if self.config.uniform:
            loss = weighted_loss(logits, label, self.sizes)
        else:
            loss = F.cross_entropy(logits, label)
        metrics = {
            "accuracy": (logits.detach().argmax(1) == label).float().mean(),
            "largest": self.sizes.max() / self.sizes.sum(),  # share of the images in one cluster
        }
        return Output(loss, metrics, {})

    def encoder(self) -> Backbone:
        """The backbone without the classifier."""
        return self.backbone

    @torch.no_grad()
    def _draw_classifier(self) -> None:
        weight = self.classifier.weight
        weight.copy_(0.01 * torch.randn(weight.shape))
        self.classifier.bias.zero_()


def recipe(scale: Scale, size: int) -> Recipe:
    """The paper's ImageNet recipe with VGG-16, and one for tens of thousands of small images."""
    view = View(size=size, interpolation="bilinear", jitter=0.0, grayscale=0.0, blur=0.0)
    common = (
        "images weighted by the inverse of their cluster's size, not sampled uniformly over "
        "clusters: the paper says that both are equivalent",
        "the classifier has the optimiser of the network, with momentum and its state forgotten",
        "colour images, without a fixed Sobel filter in front",
        "clusters from the features that the classifier gets, after their last ReLU",
    )
    if scale == "paper":
        return Recipe(
            source="arXiv 1807.05520 and the authors' code: VGG-16 with BatchNorm",
            deviations=common,
            batch_size=256,
            epochs=500,
            canvas=None if size <= SMALL_IMAGE else 512,
            method=Settings(),
            backbone=BackboneConfig(name="torchvision/vgg16_bn"),
            optim=Optim(
                name="sgd",
                lr=0.05,
                scaling="none",
                schedule="constant",
                warmup=0,
                weight_decay=1e-5,
                exclude_1d=False,
            ),
            views=(view,),
        )
    strength = 0.5 if size <= SMALL_IMAGE else 1.0
    return Recipe(
        source="arXiv 1807.05520, shortened",
        deviations=(
            "ResNet-18, batch 64 and AdamW: with little data and time, steps count",
            "150 clusters for about ten classes, of 64 principal components",
            "colour jitter and grayscale, so that colour alone does not make the clusters",
            *common,
        ),
        batch_size=64,
        epochs=100,
        method=Settings(clusters=150, components=64),
        backbone=BackboneConfig(name="resnet18"),
        optim=SMALL_OPTIM,
        views=(
            view.model_copy(
                update={
                    "scale": small_scale(size),
                    "jitter": 0.8,
                    "brightness": 0.8 * strength,
                    "contrast": 0.8 * strength,
                    "saturation": 0.8 * strength,
                    "hue": 0.2 * strength,
                    "grayscale": 0.2,
                }
            ),
        ),
    )
