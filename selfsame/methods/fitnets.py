"""FitNets: hints for thin deep nets.

Romero, Ballas, Kahou, Chassang, Gatta, Bengio, ICLR 2015, arXiv 1412.6550. The regressor and the
joint form are those of HobbitLong/RepDistiller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

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
from selfsame.nn.teacher import Teacher
from selfsame.recipe import Recipe, Scale
from selfsame.types import Backbone, Output, Progress


def hint_loss(guided: Tensor, hint: Tensor) -> Tensor:
    """The mean squared difference of the regressed guided layer and the hint, [n, C, h, w] both.

    Equation 3 writes half the sum over a map; RepDistiller, whose weight of 100 is meant for it,
    the mean.
    """
    return F.mse_loss(wide(guided), wide(hint))


class Settings(TaughtConfig):
    """Hyper-parameters; the defaults are those of RepDistiller."""

    name: str = "fitnets"
    beta: Weight = 100.0  # of the hint
    layer: Annotated[int, Field(le=-1)] = -2  # the stage that is compared, from the last
    hints: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of the run that has the hint alone,
    # after which it has none: the paper's two stages. 0: all terms together, as in RepDistiller

    def for_data(self, images: int, classes: Sequence[str] | None) -> TaughtConfig:
        """Soft targets train what lies behind the hint where there are no labels."""
        found = super().for_data(images, classes)
        return found if found.labels or found.alpha else found.model_copy(update={"alpha": 1.0})


class FitNets(Taught):
    """A student whose middle stage, regressed, is that of the teacher."""

    Config = Settings
    config: Settings
    needs = frozenset({"stages"})
    asks: ClassVar[frozenset[str]] = frozenset({"stages"})

    def __init__(self, config: Settings, backbone: Backbone, teacher: Teacher) -> None:
        super().__init__(config, backbone, teacher)
        side = teacher.student_size
        x = torch.zeros(1, len(backbone.norm.mean), side, side)
        backbone.eval()
        with torch.no_grad():
            guided = stages_of(student_stages(backbone, x), "")
            hint = stages_of(teacher(x, backbone.norm, {"stages"}), "")
        backbone.train()
        both = pairs(guided, hint)
        if len(both) < -config.layer:
            raise UsageError(
                f"there is no stage {config.layer}: student and teacher share {len(both)}",
                tip=f"--set method.layer={-len(both)} is the first of them",
            )
        student, theirs = both[config.layer]
        self.regressor = nn.Sequential(
            nn.Conv2d(student.shape[1], theirs.shape[1], 1, bias=False),
            nn.BatchNorm2d(theirs.shape[1]),
            nn.ReLU(inplace=True),
        )

    def look(self, x: Tensor) -> dict[str, Tensor]:
        """Pooled features and the maps of the stages; the regressor is a part of `own_loss`."""
        return student_stages(self.backbone, x)

    def own_loss(self, e: Mapping[str, Tensor], t: Progress) -> Output:
        """``beta`` times the hint's loss (equation 3)."""
        student, hint = pairs(stages_of(e, "s_"), stages_of(e, "t_"))[self.config.layer]
        loss = hint_loss(*as_small(self.regressor(student), hint))
        return Output(self.config.beta * loss, {"hint": loss}, {})

    def balance(self, t: Progress) -> tuple[float, float]:
        """All terms, or in two stages the hint first and the others then."""
        if not self.config.hints:
            return 1.0, 1.0
        first = t.fraction < self.config.hints
        return float(first), float(not first)


def recipe(scale: Scale, size: int) -> Recipe:
    """Joint training as in RepDistiller, at both scales."""
    return student_recipe(
        Settings(),
        scale,
        size,
        source="arXiv 1412.6550, section 2.2; HobbitLong/RepDistiller",
        deviations=(
            "the regressor is a 1x1 convolution; where maps differ in size, the larger is pooled",
        ),
        paper=("the paper has no ImageNet: weights of CIFAR-100",),
    )
