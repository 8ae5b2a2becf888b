"""RKD: relational knowledge distillation.

Park, Kim, Lu, Cho, CVPR 2019, arXiv 1904.05068. Authors' code: lenscloth/RKD.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsame import dist
from selfsame.nn.precision import wide
from selfsame.nn.taught import Taught, TaughtConfig, Weight, student_recipe
from selfsame.recipe import Recipe, Scale
from selfsame.types import Output, Progress

EPS = 1e-12  # the least squared distance: the root's gradient is not finite at 0


def distances(e: Tensor) -> Tensor:
    """Distances psi of every two embeddings over their mean, equations 5 and 6.

    Args:
        e: [n, D]; n at least 2.

    Returns:
        [n, n], the diagonal 0; the mean is over pairs whose distance is not.
    """
    square = e.square().sum(1)
    d = (square[:, None] + square - 2 * e @ e.T).clamp(min=EPS).sqrt()
    d = d * (1 - torch.eye(len(e), dtype=e.dtype, device=e.device))
    mean: Tensor = d.sum() / (d > EPS**0.5).sum().clamp(min=1)
    return d / mean


def angles(e: Tensor) -> Tensor:
    """Cosines of the angle at j between i and k, [n (j), n (i), n (k)]: equation 8."""
    towards = F.normalize(e[None] - e[:, None], dim=-1)  # [j, i, D]
    cosines: Tensor = towards @ towards.transpose(1, 2)
    return cosines


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber's loss of the distances of student [n, D] and teacher [n, D']: equation 7."""
    return F.smooth_l1_loss(distances(student), distances(teacher))


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber's loss of the angles of every three: equation 9."""
    return F.smooth_l1_loss(angles(student), angles(teacher))


class Settings(TaughtConfig):
    """Hyper-parameters; the weights are the customary ones for classification."""

    name: str = "rkd"
    distance: Weight = 25.0
    angle: Weight = 50.0


class RKD(Taught):
    """A student whose embeddings lie to each other as the teacher's do.

    The student's are not normalised, as in the paper. Three of n images make n^3 angles: batches of
    more than 128 are slow.
    """

    Config = Settings
    config: Settings
    batch_coupled = True
    asks: ClassVar[frozenset[str]] = frozenset({"pooled"})

    def own_loss(self, e: Mapping[str, Tensor], t: Progress) -> Output:
        """``distance L_D + angle L_A`` of the images of all ranks."""
        with torch.autocast(e["s_pooled"].device.type, enabled=False):
            s, teacher = dist.gather(wide(e["s_pooled"])), dist.gather(e["t_pooled"])
            d, a = distance_loss(s, teacher), angle_loss(s, teacher)
            with torch.no_grad():
                n = len(s)
                off = ~torch.eye(n, dtype=torch.bool, device=s.device)
                both = torch.stack([distances(s)[off], distances(teacher)[off]])
                correlation = torch.corrcoef(both)[0, 1]
        metrics = {"distance": d, "angle": a, "correlation": correlation}
        return Output(self.config.distance * d + self.config.angle * a, metrics, {})


def recipe(scale: Scale, size: int) -> Recipe:
    """Classification as in RepDistiller, at both scales."""
    return student_recipe(
        Settings(),
        scale,
        size,
        source="arXiv 1904.05068, sections 3.2 and 4.2; HobbitLong/RepDistiller",
        deviations=("features before the classifier, as in RepDistiller",),
        paper=("the paper has no ImageNet: weights of CIFAR-100",),
    )
