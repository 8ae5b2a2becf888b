"""CRD: contrastive representation distillation.

Tian, Krishnan, Isola, ICLR 2020, arXiv 1910.10699. Authors' code: HobbitLong/RepDistiller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from selfsame import dist
from selfsame.errors import UsageError
from selfsame.nn.precision import unit
from selfsame.nn.taught import Taught, TaughtConfig, Weight, student_recipe
from selfsame.nn.teacher import Teacher
from selfsame.recipe import Recipe, Scale
from selfsame.rng import uniforms
from selfsame.types import Backbone, Output, Progress

OP_NEGATIVES = 255  # ``op`` of ``rng.uniforms``
EPS = 1e-7


def similarities(anchor: Tensor, bank: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """``exp(anchor . bank[rows] / temperature)``, before it is divided by Z: [n, 1 + K].

    Args:
        anchor: [n, D], unit length.
        bank: [M, D].
        rows: int64 [n, 1 + K], each anchor's own row first.
        temperature: tau.
    """
    return (bank[rows] @ anchor[..., None]).squeeze(-1).div(temperature).exp()


def nce_loss(p: Tensor, images: int) -> Tensor:
    """Noise-contrastive estimation, equations 11 to 18 and ``ContrastLoss`` of the code.

    ``-(log h(pos) + sum_k log(1 - h(neg_k)))`` with ``h = p / (p + K / M)``, mean over anchors.

    Args:
        p: [n, 1 + K], similarities over Z, the positive first.
        images: M, the size of the data set.
    """
    negatives = p.shape[1] - 1
    noise = negatives / images
    positive = p[:, 0] / (p[:, 0] + noise + EPS)
    negative = noise / (p[:, 1:] + noise + EPS)
    return -(positive.log() + negative.log().sum(1)).mean()


class Settings(TaughtConfig):
    """Hyper-parameters; the defaults are those of CIFAR-100."""

    name: str = "crd"
    beta: Weight = 0.8  # of the contrastive loss
    output: Annotated[int, Field(ge=1)] = 128  # width of what is compared
    negatives: Annotated[int, Field(ge=1, le=16384)] = 16384  # of each image, K
    nce_temperature: Annotated[float, Field(gt=0)] = 0.07
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.5  # of the banks
    images: Annotated[int, Field(ge=0)] = 0  # M, filled in from the data

    def for_data(self, images: int, classes: Sequence[str] | None) -> TaughtConfig:
        """With a bank for the data."""
        found = super().for_data(images, classes)
        return found.model_copy(update={"images": self.images or images})


class CRD(Taught):
    """A student whose embedding tells the teacher's embedding of its image from those of others.

    Both are linear maps of features to ``output`` numbers at unit length. Banks keep one of each
    for every image: a negative is a random row. Z, the mean similarity of the first step times M,
    is found once.

    Raises:
        UsageError: the number of images is not known.
    """

    Config = Settings
    config: Settings
    batch_coupled = True  # Z is the mean over the first batch
    asks: ClassVar[frozenset[str]] = frozenset({"pooled"})

    student_bank: Tensor
    teacher_bank: Tensor
    z: Tensor

    def __init__(self, config: Settings, backbone: Backbone, teacher: Teacher) -> None:
        super().__init__(config, backbone, teacher)
        if not config.images:
            raise UsageError(
                "crd does not know how many images there are",
                tip="set method.images, or config.for_data(images, None)",
            )
        self.student_head = nn.Linear(backbone.dim, config.output)
        self.teacher_head = nn.Linear(teacher.dim, config.output)
        bound = (3 / config.output) ** 0.5
        for name in ("student_bank", "teacher_bank"):
            rows = torch.empty(config.images, config.output).uniform_(-bound, bound)
            self.register_buffer(name, rows)
        self.register_buffer("z", torch.zeros(2))  # of student and teacher as anchor; 0: not yet

    def draw(
        self, views: Mapping[str, Tensor], index: Tensor, *, seed: int, epoch: int
    ) -> Mapping[str, Tensor]:
        """``index``, int64 [B], and ``rows``, [B, K]: other images, drawn for each."""
        others = self.config.images - 1
        u = uniforms(seed, epoch, index.cpu(), 0, OP_NEGATIVES, min(self.config.negatives, others))
        rows = (u * others).long().clamp(max=others - 1)
        return {"index": index, "rows": rows + (rows >= index.cpu()[:, None])}  # all but its own

    def embed(self, views: Mapping[str, Tensor], t: Progress) -> Mapping[str, Tensor]:
        """With ``rows``, int64 [V, B, 1 + K] of the banks, each image's own first."""
        found = super().embed(views, t)
        rows = torch.cat([views["index"][:, None], views["rows"]], dim=1)
        return {**found, "rows": rows.expand(len(views["global"]), -1, -1)}

    def own_loss(self, e: Mapping[str, Tensor], t: Progress) -> Output:
        """``beta`` times the sum of both directions: equation 18, with either as the anchor."""
        config = self.config
        s, teacher = unit(self.student_head(e["s_pooled"])), unit(self.teacher_head(e["t_pooled"]))
        with torch.autocast(s.device.type, enabled=False):
            both = [
                similarities(s, self.teacher_bank.to(s.dtype), e["rows"], config.nce_temperature),
                similarities(
                    teacher, self.student_bank.to(s.dtype), e["rows"], config.nce_temperature
                ),
            ]
            first = torch.stack([each.detach().mean() for each in both]) * config.images
            z = torch.where(self.z > 0, self.z.to(first.dtype), dist.mean(first))
            loss = sum(
                (nce_loss(each / z[i], config.images) for i, each in enumerate(both)),
                start=s.new_zeros(()),
            )
        accuracy = (both[0].argmax(1) == 0).float().mean()
        carry = {"z": z, "index": e["index"], "s": s.detach(), "t": teacher.detach()}
        return Output(config.beta * loss, {"contrast": loss, "positive": accuracy}, carry)

    @torch.no_grad()
    def after_step(self, t: Progress, carry: Sequence[Mapping[str, Tensor]]) -> None:
        """Keep Z, and move the banks' rows of these images towards their embeddings."""
        self.z.copy_(torch.stack([part["z"] for part in carry]).mean(0))
        index = dist.gather(torch.cat([part["index"] for part in carry]))
        for bank, name in ((self.student_bank, "s"), (self.teacher_bank, "t")):
            new = dist.gather(torch.cat([part[name] for part in carry])).to(bank.dtype)
            moved = bank[index].lerp(new, 1.0 - self.config.momentum)
            bank[index] = F.normalize(moved, dim=1)


def recipe(scale: Scale, size: int) -> Recipe:
    """CIFAR-100's weights at both scales; fewer negatives for small data."""
    return student_recipe(
        Settings() if scale == "paper" else Settings(negatives=1024),
        scale,
        size,
        source="arXiv 1910.10699, section 4; HobbitLong/RepDistiller",
        deviations=(
            "negatives are any other image; the code's are of another class",
            "an embedding of several views moves the bank once for each",
        ),
        paper=("the weights are those of CIFAR-100",),
    )
