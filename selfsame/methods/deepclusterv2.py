"""DeepCluster-v2: clustering the embeddings of the epoch before, and classifying into clusters.

Defined in the SwAV paper: Caron, Misra, Mairal, Goyal, Bojanowski, Joulin, "Unsupervised Learning
of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020, arXiv 2006.09882.
Authors' code: facebookresearch/swav, main_deepclusterv2.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from selfsame import dist
from selfsame.backbones import SMALL_IMAGE
from selfsame.errors import UsageError
from selfsame.methods.swav import (
    PAPER_OPTIM,
    embed,
    multicrop,
    scores,
    small_multicrop,
)
from selfsame.nn.crops import check_views
from selfsame.nn.heads import mlp
from selfsame.nn.kmeans import IGNORE, collect, embed_all, kmeans, own_rows
from selfsame.nn.precision import unit
from selfsame.recipe import SMALL_OPTIM, BackboneConfig, MethodConfig, Recipe, Scale
from selfsame.types import Backbone, Method, Output, Progress


def cluster_memory(
    memory: Tensor, index: Tensor, count: int, starts: Sequence[Tensor], iterations: int
) -> tuple[list[Tensor], Tensor]:
    """Spherical k-means of the memory for each head; head h clusters bank h mod M.

    Args:
        memory: [M, n, D] embeddings of unit length, this rank's rows.
        index: int64 [n], which image each row is, on no other rank.
        count: N, images in the data set.
        starts: for each head, [K, D]: rows of its bank, the same on every rank.
        iterations: updates of the centroids.

    Returns:
        For each head the centroids, [K, D]; and the assignments of all ranks, int64 [heads, N],
        -100 where no rank has the image.
    """
    centroids, assignments = [], []
    for head, start in enumerate(starts):
        found = kmeans(memory[head % len(memory)], start, iterations, spherical=True)
        centroids.append(found.centroids)
        assignments.append(collect(index, found.assignment, count))
    return centroids, torch.stack(assignments)


def cluster_prediction(s: Sequence[Tensor], targets: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of every crop with the cluster of its image, averaged over heads.

    Args:
        s: for each head, [V, B, K] scores of all crops.
        targets: int64 [heads, B], clusters; images with -100 do not count.
        temperature: tau, as in SwAV.
    """
    losses = []
    for head, target in zip(s, targets, strict=True):
        target = target.repeat(len(head))
        total = F.cross_entropy(
            head.flatten(0, 1) / temperature, target, ignore_index=IGNORE, reduction="sum"
        )
        losses.append(total / (target != IGNORE).sum().clamp(min=1))
    return torch.stack(losses).mean()


Clusters = Annotated[int, Field(ge=2)]


class Settings(MethodConfig):
    """Hyper-parameters of DeepCluster-v2; the defaults are those of the ImageNet runs."""

    name: str = "deepclusterv2"
    images: Annotated[int, Field(ge=0)] = 0  # of the data set; 0: taken from the data
    prototypes: Annotated[tuple[Clusters, ...], Field(min_length=1)] = (3000, 3000, 3000)  # K, each
    banks: Annotated[int, Field(ge=1)] = 2  # global crops whose embeddings are kept, the first ones
    iterations: Annotated[int, Field(ge=1)] = 10  # of k-means
    temperature: Annotated[float, Field(gt=0)] = 0.1
    hidden: Annotated[int, Field(ge=1)] = 2048  # width of the head's hidden layer
    output: Annotated[int, Field(ge=1)] = 128  # width of an embedding

    @model_validator(mode="after")
    def _enough_images(self) -> Settings:
        if self.images and max(self.prototypes) > self.images:
            raise ValueError(f"{max(self.prototypes)} prototypes are more than the images")
        return self

    def for_data(self, images: int, classes: Sequence[str] | None) -> Settings:
        """One place in the memory for each image, and no more clusters than images."""
        most = tuple(min(count, images) for count in self.prototypes)
        return self.model_copy(update={"images": images, "prototypes": most})


class DeepClusterV2(Method):
    """An encoder, a projection head, a memory of embeddings, and their clusters as targets.

    The state beside the weights: ``memory``, [M, N, D], the newest embedding of each image;
    ``assignments``, [heads, N], arbitrary until the first clustering; and ``prototypes0``,
    ``prototypes1``, ..., [K, D], which are centroids and never trained.

    Args:
        config: the hyper-parameters.
        backbone: the encoder, which is kept.

    Raises:
        UsageError: the number of images is not known.
    """

    Config = Settings
    memory: Tensor
    assignments: Tensor

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__()
        if config.images == 0:
            raise UsageError(
                "deepclusterv2 remembers every image and needs their number",
                tip="set method.images, or config.for_data(images, None)",
            )
        self.config = config
        self.backbone = backbone
        self.head = mlp((backbone.dim, config.hidden, config.output))
        memory = torch.zeros(config.banks, config.images, config.output)
        arbitrary = [torch.arange(config.images) % count for count in config.prototypes]
        self.register_buffer("memory", memory)
        self.register_buffer("assignments", torch.stack(arbitrary))
        for head, count in enumerate(config.prototypes):
            start = unit(torch.randn(count, config.output))
            self.register_buffer(f"prototypes{head}", start)

    def draw(
        self, views: Mapping[str, Tensor], index: Tensor, *, seed: int, epoch: int
    ) -> Mapping[str, Tensor]:
        """The images' positions, by which targets and memory are found."""
        return {"index": index}

    @torch.no_grad()
    def before_epoch(self, t: Progress, images: Iterator[tuple[Tensor, Tensor]]) -> tuple[()]:
        """Cluster the memory; before the first epoch fill it from the images as they are."""
        config = self.config
        if t.step == 0:
            first = embed_all(self, self._embed_plain, images, config.images)
            self.memory.copy_(first.expand_as(self.memory))
        starts = [
            self.memory[head % config.banks, torch.randperm(config.images)[:count]]
            for head, count in enumerate(config.prototypes)
        ]
        own = own_rows()
        index = torch.arange(config.images, device=self.memory.device)[own]
        centroids, assignments = cluster_memory(
            self.memory[:, own], index, config.images, starts, config.iterations
        )
        self.assignments.copy_(assignments)
        for prototypes, found in zip(self._prototypes(), centroids, strict=True):
            prototypes.copy_(found)
        return ()

    def forward(self, views: Mapping[str, Tensor], t: Progress) -> Output:
        """Cross-entropy of all crops: "global", [V, B, C, S, S], "local" and "index", [B]."""
        index = views["index"]
        check_views(views, self.config.banks)
        z = embed(self.backbone, self.head, views)  # [V, B, D]
        s = [scores(z, prototypes) for prototypes in self._prototypes()]
        targets = self.assignments[:, index]
        loss = cluster_prediction(s, targets, self.config.temperature)
        accuracy = (s[0].detach().argmax(-1) == targets[0]).float().mean()
        carry = {"index": index, "z": z[: self.config.banks].detach()}
        return Output(loss, {"accuracy": accuracy}, carry)

    @torch.no_grad()
    def after_step(self, t: Progress, carry: Sequence[Mapping[str, Tensor]]) -> None:
        """Remember the step's embeddings for the next clustering."""
        index = dist.gather(torch.cat([part["index"] for part in carry]))
        z = torch.cat([part["z"] for part in carry], dim=1)  # [M, B, D]
        everyone = dist.gather(z.transpose(0, 1)).transpose(0, 1)
        self.memory[:, index] = everyone.to(self.memory.dtype)

    def encoder(self) -> Backbone:
        """The backbone: the head is thrown away."""
        return self.backbone

    def _embed_plain(self, x: Tensor) -> Tensor:
        """Embeddings of one view of each image, [B, C, S, S] -> [B, D]."""
        return embed(self.backbone, self.head, {"global": x[None]})[0]

    def _prototypes(self) -> list[Tensor]:
        return [self.get_buffer(f"prototypes{head}") for head in range(len(self.config.prototypes))]


def recipe(scale: Scale, size: int) -> Recipe:
    """The ImageNet recipe of the authors' code, and one for tens of thousands of small images."""
    common = (
        "before the first epoch the memory holds images without augmentation, the network in "
        "evaluation mode",
        "k-means starts from rows of the whole memory, not of the first rank's",
        "an image that an epoch leaves out keeps its older embedding, and so a target",
    )
    if scale == "paper":
        return Recipe(
            source="arXiv 2006.09882 and the authors' code: 800 epochs, 2x224 + 6x96",
            deviations=("BatchNorm over one rank's crops, not over groups of 8 GPUs", *common),
            batch_size=4096,
            epochs=800,
            canvas=None if size <= SMALL_IMAGE else 512,
            method=Settings(),
            backbone=BackboneConfig(name="resnet50"),
            optim=PAPER_OPTIM,
            views=multicrop(size),
        )
    return Recipe(
        source="arXiv 2006.09882, shortened",
        deviations=(
            "ResNet-18, batch 64 and AdamW: with little data and time, steps count",
            "3 x 200 clusters and a head 512 wide, for about ten classes",
            "crops of a fifth of the image or more, 4 local ones of half the side",
            *common,
        ),
        batch_size=64,
        epochs=100,
        method=Settings(prototypes=(200, 200, 200), hidden=512),
        backbone=BackboneConfig(name="resnet18"),
        optim=SMALL_OPTIM,
        views=small_multicrop(size),
    )
