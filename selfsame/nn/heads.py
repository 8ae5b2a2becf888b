"""Projection heads."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.nn.precision import unit, wide


def mlp(
    widths: tuple[int, ...],
    *,
    norm: bool = True,
    activation: Literal["relu", "gelu"] = "relu",
    last_norm: bool = False,
    last_affine: bool = True,
    last_bias: bool = True,
) -> nn.Sequential:
    """A multilayer perceptron: Linear, BatchNorm, ReLU, ..., Linear.

    Args:
        widths: input, hidden and output widths; ``(512, 2048, 128)`` has two linear layers.
        norm: whether a BatchNorm follows the hidden layers.
        activation: after hidden layers; "gelu" is the exact one.
        last_norm: end with a BatchNorm.
        last_affine: whether that last BatchNorm has a scale and a shift.
        last_bias: whether the last linear layer has a bias where no BatchNorm follows it.

    A linear layer that a BatchNorm follows has no bias: the norm would cancel it.
    """
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        normed = last_norm if last else norm
        layers.append(nn.Linear(inputs, outputs, bias=not normed and (last_bias or not last)))
        if normed:
            layers.append(nn.BatchNorm1d(outputs, affine=not last or last_affine))
        if not last:
            layers.append(nn.ReLU(inplace=True) if activation == "relu" else nn.GELU())
    return nn.Sequential(*layers)


class DINOHead(nn.Module):
    """The head of DINO (arXiv 2104.14294, section 3.1 and appendix C), iBOT and DINOv2.

    A perceptron to a narrow bottleneck, whose output is brought to unit length and compared with
    ``outputs`` prototypes.

    Args:
        inputs: width of the features.
        outputs: number of prototypes, the paper's K.
        hidden: width of the hidden layers.
        bottleneck: width of what is brought to unit length.
        layers: linear layers of the perceptron; 1 has no hidden layer.
        norm: whether BatchNorm follows the hidden layers (for convolutional networks).
        fixed_scale: keep every prototype at unit length, so that the outputs are cosines; False
            learns the lengths (the code's ``norm_last_layer=False``).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        hidden: int = 2048,
        bottleneck: int = 256,
        layers: int = 3,
        norm: bool = False,
        fixed_scale: bool = True,
    ) -> None:
        super().__init__()
        widths = (inputs, *[hidden] * (layers - 1), bottleneck)
        self.mlp = mlp(widths, norm=norm, activation="gelu")
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.last_layer = Prototypes(bottleneck, outputs, fixed_scale=fixed_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [..., outputs] of features [..., inputs]."""
        return self.last_layer(self.embed(x))  # type: ignore[no-any-return]

    def embed(self, x: Tensor) -> Tensor:
        """Unit vectors [..., bottleneck], what the last layer gets."""
        return unit(self.mlp(x))


class Prototypes(nn.Module):
    """A linear layer without bias, weight-normalised: row k is ``weight_g[k]`` long.

    Computed in float32 whatever the autocast: its outputs are near 1 and go into softmaxes of
    temperature 0.04, where the eight bits of bfloat16 are too few.
    """

    def __init__(self, inputs: int, outputs: int, *, fixed_scale: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(outputs, 1), requires_grad=not fixed_scale)
        bound = inputs**-0.5  # as nn.Linear starts; the length counts for the rate of learning only
        self.weight_v = nn.Parameter(torch.empty(outputs, inputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        with torch.autocast(x.device.type, enabled=False):
            # fused: 65,536 prototypes are as large as the network, and norms are bound by memory
            weight = torch._weight_norm(self.weight_v, self.weight_g, 0)
            return F.linear(wide(x), weight)
