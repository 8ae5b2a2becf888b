"""AT: paying more attention to attention.

Zagoruyko, Komodakis, ICLR 2017, arXiv 1612.03928. Authors' code: szagoruyko/attention-transfer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from selfsame.errors import UsageError
from selfsame.nn.precision import wide
from selfsame.nn.taught import (
    Taught,
    TaughtConfig,
    Weight,
    as_small,
    pairs,
    stages_of,
    student_recipe,
    student_stages,
)
from selfsame.recipe import Recipe, Scale
from selfsame.types import Output, Progress


def attention(x: Tensor, p: float = 2.0) -> Tensor:
    """Where a map is active: ``mean_c |x|^p`` at unit length, [n, h * w] of [n, C, h, w].

    Section 3.1; the paper sums over channels, which the length cancels. A map of zeros stays zero.
    """
    return F.normalize(wide(x).abs().pow(p).mean(1).flatten(1), dim=1)


def attention_loss(student: Tensor, teacher: Tensor, p: float = 2.0) -> Tensor:
    """The mean squared difference of two attention maps: the code's form of equation 2.

    Args:
        student: [n, C, h, w].
        teacher: [n, C', h', w']; the larger of the two is pooled to the smaller's size.
        p: The power.
    """
    a, b = as_small(student, teacher)
    return (attention(a, p) - attention(b, p)).square().mean()


class Settings(TaughtConfig):
    """Hyper-parameters; the defaults are those of the authors."""

    name: str = "attention_transfer"
    beta: Weight = 1000.0  # of the attention maps
    groups: Annotated[int, Field(ge=1)] = 3  # stages that are compared, the last ones
    power: Annotated[float, Field(gt=0)] = 2.0  # p


class AttentionTransfer(Taught):
    """A student that is active where the teacher is, at the end of each stage."""

    Config = Settings
    config: Settings
    needs = frozenset({"stages"})
    asks: ClassVar[frozenset[str]] = frozenset({"stages"})

    def look(self, x: Tensor) -> dict[str, Tensor]:
        """Pooled features and the maps of the stages."""
        return student_stages(self.backbone, x)

    def own_loss(self, e: Mapping[str, Tensor], t: Progress) -> Output:
        """``beta`` times the sum over stages; ``similarity``: cosine of the last attention maps.

        Raises:
            UsageError: all maps are of a single place.
        """
        both = pairs(stages_of(e, "s_"), stages_of(e, "t_"))[-self.config.groups :]
        both = [as_small(*each) for each in both]
        if all(a.shape[-2:] == (1, 1) for a, _ in both):
            raise UsageError(
                "the maps that are compared have one place each: there is no attention to transfer",
                tip="larger views (--size), --student vit_tiny, or --loss kd",
            )
        losses = torch.stack([attention_loss(*each, self.config.power) for each in both])
        with torch.no_grad():
            a, b = (attention(x, self.config.power) for x in both[-1])
            similarity = (a * b).sum(1).mean()
        loss = losses.sum()
        return Output(self.config.beta * loss, {"attention": loss, "similarity": similarity}, {})


def recipe(scale: Scale, size: int) -> Recipe:
    """ImageNet from ResNet-34 to ResNet-18, and one for small data."""
    return student_recipe(
        Settings(),
        scale,
        size,
        source="arXiv 1612.03928, section 4; szagoruyko/attention-transfer",
    )
