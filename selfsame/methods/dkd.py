"""DKD: decoupled knowledge distillation.

Zhao, Cui, Song, Qiu, Liang, CVPR 2022, arXiv 2203.08679. Authors' code: megvii-research/mdistiller.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from selfsame.nn.precision import wide
from selfsame.nn.taught import Taught, TaughtConfig, Weight, student_recipe
from selfsame.recipe import Recipe, Scale
from selfsame.types import Output, Progress

WARMUP_SHARE = 1 / 12  # of a run, at most: the paper's 20 of 240 epochs


def target_loss(student: Tensor, teacher: Tensor, label: Tensor, temperature: float) -> Tensor:
    """TCKD, ``T^2 KL(b_T || b_S)``: is it the target class or another? Equation 7.

    Args:
        student: [n, K] logits, float32 or wider.
        teacher: [n, K].
        label: int64 [n], the target class.
        temperature: T.
    """
    p, q = (log_binary(z / temperature, label) for z in (teacher, student))  # [n, 2]
    return temperature**2 * F.kl_div(q, p, reduction="batchmean", log_target=True)


def other_loss(student: Tensor, teacher: Tensor, label: Tensor, temperature: float) -> Tensor:
    """NCKD, ``T^2 KL(p^_T || p^_S)`` of the classes that are not the target. Equation 7."""
    p, q = (log_others(z / temperature, label) for z in (teacher, student))  # [n, K - 1]
    return temperature**2 * F.kl_div(q, p, reduction="batchmean", log_target=True)


def log_binary(z: Tensor, label: Tensor) -> Tensor:
    """Logarithms of the target's probability and of all others', [n, 2], of logits [n, K]."""
    log_p = z.log_softmax(1)
    target = log_p.gather(1, label[:, None])
    hit = F.one_hot(label, z.shape[1]).bool()
    rest = log_p.masked_fill(hit, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([target, rest], dim=1)


def log_others(z: Tensor, label: Tensor) -> Tensor:
    """Log-probabilities among the other classes, [n, K - 1], of logits [n, K]."""
    others = ~F.one_hot(label, z.shape[1]).bool()
    return z[others].reshape(len(z), -1).log_softmax(1)


class Settings(TaughtConfig):
    """Hyper-parameters; the defaults are those of resnet32x4 to resnet8x4 on CIFAR-100."""

    name: str = "dkd"
    target: Weight = 1.0  # of TCKD, the paper's alpha
    others: Weight = 8.0  # of NCKD, the paper's beta
    warmup: Annotated[float, Field(ge=0)] = 20.0  # epochs, of both; at most `WARMUP_SHARE`


class DKD(Taught):
    """A student of the teacher's probabilities, the target class apart from the others.

    Without labels the target is what the teacher takes for it.
    """

    Config = Settings
    config: Settings
    asks: ClassVar[frozenset[str]] = frozenset({"logits"})

    def own_loss(self, e: Mapping[str, Tensor], t: Progress) -> Output:
        """``min(epoch / warmup, 1) (target TCKD + others NCKD)``: equation 8 and the code."""
        config, s, teacher = self.config, wide(e["s_logits"]), e["t_logits"]
        label = e["label"] if self.labelled else teacher.argmax(1)
        tckd = target_loss(s, teacher, label, config.temperature)
        nckd = other_loss(s, teacher, label, config.temperature)
        # as the code counts: the first epoch is number one
        length = min(config.warmup * t.per_epoch, WARMUP_SHARE * t.total)
        grown = min((t.step + 1) / max(length, 1.0), 1.0)
        loss = grown * (config.target * tckd + config.others * nckd)
        return Output(loss, {"target": tckd, "others": nckd}, {})


def recipe(scale: Scale, size: int) -> Recipe:
    """ImageNet from ResNet-34 to ResNet-18, and one for small data."""
    at_imagenet = Settings(others=0.5, temperature=1.0, warmup=1.0)
    return student_recipe(
        at_imagenet if scale == "paper" else Settings(),
        scale,
        size,
        source="arXiv 2203.08679, table 7; megvii-research/mdistiller"
        if scale == "paper"
        else "arXiv 2203.08679; megvii-research/mdistiller, CIFAR-100",
        deviations=("the warm-up grows by step; the code's by epoch",),
        paper=("batch 256 at 0.1 in place of 512 at 0.2",),
    )
