"""SEED: self-supervised distillation for visual representation.

Fang, Wang, Wang, Zhang, Yang, Liu, ICLR 2021, arXiv 2101.04731.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from selfsame import dist
from selfsame.nn.heads import mlp
from selfsame.nn.precision import unit
from selfsame.nn.queue import Queue
from selfsame.nn.taught import Taught, TaughtConfig, student_recipe
from selfsame.nn.teacher import Teacher
from selfsame.recipe import Recipe, Scale
from selfsame.types import Backbone, Output, Progress
from selfsame.views.presets import mocov2_view


def seed_loss(
    student: Tensor, teacher: Tensor, queue: Tensor, student_t: float, teacher_t: float
) -> Tensor:
    """Cross-entropy of similarity distributions over a queue, equations 1 to 4.

    The teacher's own embedding of the image stands in front of the queue, so that a student that
    equals the teacher sees itself there.

    Args:
        student: [n, D], unit length.
        teacher: [n, D], unit length.
        queue: [K, D], embeddings of the teacher.
        student_t: tau^S.
        teacher_t: tau^T.
    """

    def scores(z: Tensor) -> Tensor:
        return torch.cat([(z * teacher).sum(1, keepdim=True), z @ queue.T], dim=1)  # [n, 1 + K]

    p = F.softmax(scores(teacher) / teacher_t, dim=1)
    return -(p * F.log_softmax(scores(student) / student_t, dim=1)).sum(1).mean()


class Settings(TaughtConfig):
    """Hyper-parameters; the defaults are the paper's."""

    name: str = "seed"
    queue: Annotated[int, Field(ge=1)] = 65536  # K
    student_temperature: Annotated[float, Field(gt=0)] = 0.2
    teacher_temperature: Annotated[float, Field(gt=0)] = 0.01
    hidden: Annotated[int, Field(ge=0)] = 0  # width of the projector's hidden layer; 0: the
    # student's

    def labels_weight(self) -> float:
        """Labels are not looked at unless they are asked for."""
        return 0.0


class SEED(Taught):
    """A student to which an image is as near to others as it is to the teacher."""

    Config = Settings
    config: Settings
    asks: ClassVar[frozenset[str]] = frozenset({"pooled"})

    def __init__(self, config: Settings, backbone: Backbone, teacher: Teacher) -> None:
        super().__init__(config, backbone, teacher)
        hidden = config.hidden or backbone.dim
        self.projector = mlp((backbone.dim, hidden, teacher.dim), norm=False)
        self.queue = Queue(config.queue, teacher.dim)

    def own_loss(self, e: Mapping[str, Tensor], t: Progress) -> Output:
        """Equation 4 of this rank's images."""
        config = self.config
        s, teacher = unit(self.projector(e["s_pooled"])), unit(e["t_pooled"])
        with torch.autocast(s.device.type, enabled=False):
            temperatures = config.student_temperature, config.teacher_temperature
            loss = seed_loss(s, teacher, self.queue.keys.to(s.dtype), *temperatures)
        cosine = (s * teacher).sum(1).mean()
        return Output(loss, {"cosine": cosine}, {"keys": teacher.detach()})

    def after_step(self, t: Progress, carry: Sequence[Mapping[str, Tensor]]) -> None:
        """Let the teacher's embeddings of all ranks take the oldest's place."""
        self.queue.enqueue(dist.gather(torch.cat([part["keys"] for part in carry])))


def recipe(scale: Scale, size: int) -> Recipe:
    """The paper's ImageNet recipe, nearly, and one for small data."""
    settings = Settings() if scale == "paper" else Settings(queue=4096, teacher_temperature=0.05)
    deviations = () if scale == "paper" else ("4,096 embeddings and a softer teacher",)
    return student_recipe(
        settings,
        scale,
        size,
        source="arXiv 2101.04731, section 3.2 and appendix A",
        deviations=deviations,
        paper=("the schedule and the batch are those of the supervised students",),
        view=mocov2_view(size).model_copy(update={"count": 1}),
    )
