"""Label-free distillation: a student whose features, through a projection, are the teacher's.

For a teacher that was trained without labels. Pooled features, and patch tokens where both networks
have a grid, are compared by cosine or by distance, as in Fang et al., "SEED", arXiv 2101.04731
(table 6's L2), and Oquab et al., DINOv2, arXiv 2304.07193, section 5, which matches both kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from selfsame.errors import UsageError
from selfsame.nn.heads import mlp
from selfsame.nn.precision import wide
from selfsame.nn.taught import Taught, TaughtConfig, Weight, student_recipe
from selfsame.nn.teacher import Teacher
from selfsame.recipe import Recipe, Scale
from selfsame.types import Backbone, Features, Output, Progress
from selfsame.views.presets import mocov2_view

Distance = Literal["cosine", "l2"]


def matching(student: Tensor, teacher: Tensor, distance: Distance) -> Tensor:
    """How far projected features are from the teacher's, [..., D] both: the mean.

    "cosine" is 1 less the cosine; "l2" the mean squared difference from the teacher's features
    after a layer norm without weights, so that its scale does not count.
    """
    s, target = wide(student), wide(teacher)
    if distance == "cosine":
        return 1 - F.cosine_similarity(s, target, dim=-1).mean()
    return F.mse_loss(s, F.layer_norm(target, target.shape[-1:]))


class Settings(TaughtConfig):
    """Hyper-parameters."""

    name: str = "distill"
    distance: Distance = "cosine"
    pooled: Weight = 1.0  # of the pooled features
    tokens: Weight = 0.0  # of the patch tokens
    hidden: Annotated[int, Field(ge=0)] = 0  # width of the projector's hidden layer; 0: linear

    def labels_weight(self) -> float:
        """Labels are not looked at unless they are asked for."""
        return 0.0


class Distill(Taught):
    """A student that predicts what the teacher sees. The projectors are thrown away."""

    Config = Settings
    config: Settings

    def __init__(self, config: Settings, backbone: Backbone, teacher: Teacher) -> None:
        if not config.pooled and not config.tokens:
            raise UsageError(
                "neither pooled features nor tokens count",
                tip="set method.pooled or method.tokens above 0",
            )
        if config.tokens and "tokens" not in backbone.can:
            raise UsageError(
                "the student gives no tokens to compare", tip="leave method.tokens at 0"
            )
        super().__init__(config, backbone, teacher)
        hidden = (config.hidden,) if config.hidden else ()
        widths = (backbone.dim, *hidden, teacher.dim)
        self.project_pooled = mlp(widths) if config.pooled else None
        self.project_tokens = mlp(widths, norm=False) if config.tokens else None

    @classmethod
    def wanted(cls, config: TaughtConfig) -> frozenset[str]:
        """What has a weight."""
        assert isinstance(config, Settings)
        words = {"pooled": config.pooled, "tokens": config.tokens}
        return frozenset(word for word, weight in words.items() if weight)

    def look(self, x: Tensor) -> dict[str, Tensor]:
        """Pooled features, and projections of them and of the tokens at the teacher's grid."""
        features: Features = self.backbone(x)
        found = {"pooled": features.pooled}
        if self.project_pooled is not None:
            found["projected"] = self.project_pooled(features.pooled)
        if self.project_tokens is not None:
            assert features.tokens is not None
            found["tokens"] = self.project_tokens(features.tokens)
        return found

    def own_loss(self, e: Mapping[str, Tensor], t: Progress) -> Output:
        """The weighted sum of both kinds."""
        config = self.config
        loss, metrics = wide(e["s_pooled"]).new_zeros(()), {}
        if config.pooled:
            metrics["pooled"] = matching(e["s_projected"], e["t_pooled"], config.distance)
            loss = loss + config.pooled * metrics["pooled"]
        if config.tokens:
            tokens = on_grid(e["s_tokens"], e["t_tokens"].shape[1])
            metrics["tokens"] = matching(tokens, e["t_tokens"], config.distance)
            loss = loss + config.tokens * metrics["tokens"]
        return Output(loss, metrics, {})


def on_grid(tokens: Tensor, count: int) -> Tensor:
    """Tokens of a square grid, [n, N, D], on another of ``count`` tokens: resized bilinearly.

    Raises:
        UsageError: one of the grids is not square.
    """
    have = tokens.shape[1]
    if have == count:
        return tokens
    old, new = round(have**0.5), round(count**0.5)
    if old * old != have or new * new != count:
        raise UsageError(
            f"{have} tokens of the student cannot be laid over {count} of the teacher",
            tip="networks with square grids; or leave method.tokens at 0",
        )
    maps = wide(tokens).transpose(1, 2).reshape(len(tokens), -1, old, old)
    resized = F.interpolate(maps, (new, new), mode="bilinear", antialias=new < old)
    return resized.flatten(2).transpose(1, 2)


def recipe(scale: Scale, size: int) -> Recipe:
    """A ResNet-18 from any teacher; views are MoCo v2's."""
    return student_recipe(
        Settings(),
        scale,
        size,
        source="arXiv 2304.07193, section 5; arXiv 2101.04731, appendix",
        deviations=("cosine of projected features in place of the teacher's own losses",),
        view=mocov2_view(size).model_copy(update={"count": 1}),
    )
