"""KD: distilling the knowledge in a neural network.

Hinton, Vinyals, Dean, NIPS 2014 workshop, arXiv 1503.02531. There is no official code; the form of
the loss is that of HobbitLong/RepDistiller, whose weights for CIFAR-100 are the defaults.
"""

from __future__ import annotations

from typing import ClassVar

from selfsame.nn.taught import Taught, TaughtConfig, Weight, soft_targets, student_recipe
from selfsame.recipe import Recipe, Scale

__all__ = ["KD", "Settings", "recipe", "soft_targets"]


class Settings(TaughtConfig):
    """Hyper-parameters: ``alpha T^2 KL(teacher || student) + (1 - alpha) CE(labels)``."""

    name: str = "kd"
    alpha: Weight = 0.9

    def labels_weight(self) -> float:
        """What the soft targets leave."""
        return max(0.0, 1.0 - self.alpha)


class KD(Taught):
    """A student that learns the teacher's probabilities at a temperature (section 2)."""

    Config = Settings
    asks: ClassVar[frozenset[str]] = frozenset({"logits"})


def recipe(scale: Scale, size: int) -> Recipe:
    """ImageNet from ResNet-34 to ResNet-18 as in mdistiller, and one for small data."""
    at_imagenet = Settings(alpha=0.5, temperature=1.0)
    return student_recipe(
        at_imagenet if scale == "paper" else Settings(),
        scale,
        size,
        source="arXiv 1503.02531, section 2; megvii-research/mdistiller, ImageNet R34 to R18"
        if scale == "paper"
        else "arXiv 1503.02531, section 2; HobbitLong/RepDistiller, CIFAR-100",
        paper=("batch 256 at 0.1 in place of 512 at 0.2",),
    )
