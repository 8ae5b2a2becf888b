"""SwAV: unsupervised learning of visual features by contrasting cluster assignments.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin, NeurIPS 2020, arXiv 2006.09882.
Authors' code: facebookresearch/swav.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from selfsame import dist
from selfsame.backbones import SMALL_IMAGE
from selfsame.nn.crops import check_views, pooled
from selfsame.nn.heads import mlp
from selfsame.nn.precision import unit
from selfsame.nn.sinkhorn import sinkhorn
from selfsame.optim import Optim
from selfsame.recipe import SMALL_OPTIM, BackboneConfig, MethodConfig, Recipe, Scale
from selfsame.types import Backbone, Method, Output, Progress
from selfsame.views.presets import local_size, small_scale
from selfsame.views.spec import View


def embed(backbone: Backbone, head: nn.Module, views: Mapping[str, Tensor]) -> Tensor:
    """Embeddings z of all crops, the global ones first: [V, B, D] of unit length.

    As in the authors' code the backbone's BatchNorms see the crops of one size, the head's all.
    """
    features = pooled(backbone, views)
    z = unit(head(features.flatten(0, 1)))
    return z.reshape(*features.shape[:2], -1)


def scores(z: Tensor, prototypes: Tensor) -> Tensor:
    """Inner products with the prototypes, [..., D] and [K, D] -> [..., K], outside of autocast."""
    with torch.autocast(z.device.type, enabled=False):
        return z @ prototypes.to(z.dtype).T


def codes(s: Tensor, queued: Tensor | None, epsilon: float, iterations: int) -> Tensor:
    """Soft codes of the crops that give them (section 3.1, "computing codes online").

    Each crop is assigned on its own, together with the queue of its view. No gradient.

    Args:
        s: [A, B, K] scores of A crops of each image.
        queued: [A, Q, K] scores of earlier images' embeddings, or None.
        epsilon: The paper's smoothness.
        iterations: Of Sinkhorn-Knopp.

    Returns:
        [A, B, K], the codes of this batch, each summing to one.
    """
    with_queue = s.detach() if queued is None else torch.cat([queued, s.detach()], dim=1)
    found = [sinkhorn(view, epsilon, iterations)[-s.shape[1] :] for view in with_queue]
    return torch.stack(found)


def swapped_prediction(s: Tensor, q: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the codes with what every other crop predicts (equations 1, 2 and 6).

    The mean over the crops that give codes, of the mean over all other crops, as in the authors'
    code; the paper writes sums. The loss of a collapsed network is ``ln(K)``.

    Args:
        s: [V, B, K] scores of all crops; those that give codes come first.
        q: [A, B, K] codes.
        temperature: The paper's tau.
    """
    log_p = F.log_softmax(s / temperature, dim=-1)
    losses = torch.stack([-(code * log_p).sum(-1).mean(-1) for code in q])  # l(z_v, q_a), [A, V]
    losses = losses.masked_fill(torch.eye(*losses.shape, dtype=torch.bool, device=s.device), 0.0)
    return losses.sum() / (len(q) * (len(s) - 1))


def enqueue(queue: Tensor, z: Tensor) -> Tensor:
    """The queues [A, Q, D] after the embeddings [A, B, D] came in at the front."""
    return torch.cat([z, queue], dim=1)[:, : queue.shape[1]]


def is_full(queue: Tensor) -> bool:
    """Whether the last place of the queues [A, Q, D] was reached; empty places are zero."""
    return bool(queue[:, -1].any())


class Settings(MethodConfig):
    """Hyper-parameters of SwAV; the defaults are those of the paper's ImageNet runs."""

    name: str = "swav"
    prototypes: Annotated[int, Field(ge=2)] = 3000  # K
    temperature: Annotated[float, Field(gt=0)] = 0.1
    epsilon: Annotated[float, Field(gt=0)] = 0.05  # of Sinkhorn-Knopp; 0.03 where training stalls
    iterations: Annotated[int, Field(ge=1)] = 3  # of Sinkhorn-Knopp
    hidden: Annotated[int, Field(ge=1)] = 2048  # width of the head's hidden layer
    output: Annotated[int, Field(ge=1)] = 128  # width of an embedding
    freeze: Annotated[float, Field(ge=0)] = 1.0  # epochs that the prototypes rest at the start
    queue: Annotated[int, Field(ge=0)] = 0  # past images in it, over all ranks (paper: 3840 at 256)
    queue_start: Annotated[float, Field(ge=0)] = 15.0  # epoch from which the queue is filled
    codes: Annotated[int, Field(ge=1)] = 2  # global crops that give codes, the first ones


class SwAV(Method):
    """An encoder, a projection head, prototypes, and the swapped prediction of codes.

    ``queue`` holds the newest embeddings first, of all ranks; each rank puts its share of them
    into Sinkhorn-Knopp, which sums over ranks. (The authors' ranks keep a queue each.)

    Args:
        config: the hyper-parameters.
        backbone: the encoder, which is kept.
    """

    Config = Settings
    batch_coupled = True
    queue: Tensor

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.head = mlp((backbone.dim, config.hidden, config.output))
        self.prototypes = nn.Linear(config.output, config.prototypes, bias=False)
        self.register_buffer("queue", torch.zeros(config.codes, config.queue, config.output))
        self._normalize_prototypes()

    def embed(self, views: Mapping[str, Tensor], t: Progress) -> dict[str, Tensor]:
        """Embeddings ``z``, [V, B, D]: ``views["global"]``, [2, B, C, S, S], perhaps "local"."""
        check_views(views, self.config.codes)
        return {"z": embed(self.backbone, self.head, views)}

    def loss(self, embedded: Mapping[str, Tensor], t: Progress) -> Output:
        """Swapped prediction."""
        config, z = self.config, embedded["z"]
        s = scores(z, self.prototypes.weight)
        queued = None
        if config.queue and t.epoch >= config.queue_start and is_full(self.queue):
            own = self.queue[:, dist.rank() :: dist.world_size()]
            queued = scores(own, self.prototypes.weight.detach())
        q = codes(s[: config.codes], queued, config.epsilon, config.iterations)
        loss = swapped_prediction(s, q, config.temperature)
        p = F.softmax(s.detach() / config.temperature, dim=-1).mean((0, 1))
        agreement = (s[1].detach().argmax(-1) == q[0].argmax(-1)).float().mean()
        metrics = {"entropy": torch.special.entr(p).sum(), "agreement": agreement}
        return Output(loss, metrics, {"z": z[: config.codes].detach()} if config.queue else {})

    def frozen(self, t: Progress) -> list[nn.Parameter]:
        """The prototypes in the first epoch."""
        return list(self.prototypes.parameters()) if t.epoch < self.config.freeze else []

    @torch.no_grad()
    def after_step(self, t: Progress, carry: Sequence[Mapping[str, Tensor]]) -> None:
        """Bring the prototypes back to unit length; put the step's embeddings in the queue."""
        self._normalize_prototypes()
        if self.config.queue and t.epoch >= self.config.queue_start:
            z = torch.cat([part["z"] for part in carry], dim=1)  # [A, B, D]
            everyone = dist.gather(z.transpose(0, 1)).transpose(0, 1)
            self.queue.copy_(enqueue(self.queue, everyone.to(self.queue.dtype)))

    def encoder(self) -> Backbone:
        """The backbone: the head is thrown away."""
        return self.backbone

    @torch.no_grad()
    def _normalize_prototypes(self) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))


def multicrop(size: int) -> tuple[View, View]:
    """The paper's views, 2 x 224 + 6 x 96 (section 3.2): also DeepCluster-v2's."""
    large = View(count=2, size=size, scale=(0.14, 1.0), interpolation="bilinear")
    local = {"name": "local", "count": 6, "size": local_size(size, 96 / 224), "scale": (0.05, 0.14)}
    return large, large.model_copy(update=local)


def small_multicrop(size: int) -> tuple[View, View]:
    """The same for small images: larger and fewer local crops, and half the colour distortion."""
    change: dict[str, object] = {"scale": small_scale(size)}
    if size <= SMALL_IMAGE:
        change |= {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "blur": 0.0}
    large, local = (view.model_copy(update=change) for view in multicrop(size))
    local_change = {"count": 4, "size": local_size(size, 1 / 2), "scale": (0.1, 0.3)}
    return large, local.model_copy(update=local_change)


# SGD in LARC: 0.3 per 256 images is 4.8 at 4096; warm-up from 0.3; down to a thousandth
PAPER_OPTIM = Optim(
    name="lars",
    lr=0.3,
    weight_decay=1e-6,
    exclude_1d=False,
    ratio="split",
    warmup=10,
    warmup_start=0.3 / 4.8,
    closed_warmup=True,
    final_lr=0.001,
)


def recipe(scale: Scale, size: int) -> Recipe:
    """The paper's ImageNet recipe, and one for tens of thousands of small images."""
    if scale == "paper":
        return Recipe(
            source="arXiv 2006.09882, and the authors' code: 800 epochs, 2x224 + 6x96",
            deviations=(
                "BatchNorm over one rank's crops, not over groups of 8 GPUs",
                "for batches of 256 the authors' code has lr 0.6, no warm-up and a queue of 3840",
            ),
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
            "256 prototypes and a head 512 wide: a batch cannot fill 3000 prototypes",
            "crops of a fifth of the image or more, 4 local ones of half the side",
        ),
        batch_size=64,
        epochs=100,
        method=Settings(prototypes=256, hidden=512, queue=1024, queue_start=5),
        backbone=BackboneConfig(name="resnet18"),
        optim=SMALL_OPTIM,
        views=small_multicrop(size),
    )
