"""Projection heads."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def mlp(
    widths: tuple[int, ...], *, last_norm: bool = False, last_affine: bool = True
) -> nn.Sequential:
    """A multilayer perceptron: Linear, BatchNorm, ReLU, ..., Linear.

    Args:
        widths: input, hidden and output widths; ``(512, 2048, 128)`` has two linear layers.
        last_norm: end with a BatchNorm.
        last_affine: whether that last BatchNorm has a scale and a shift.

    A linear layer that a BatchNorm follows has no bias: the norm would cancel it.
    """
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        norm = not last or last_norm
        layers.append(nn.Linear(inputs, outputs, bias=not norm))
        if norm:
            layers.append(nn.BatchNorm1d(outputs, affine=not last or last_affine))
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
