"""Convolutions of 3x3, on a CPU in the forms that are faster there."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from selfsame.nn import winograd

SMALL = 2  # pixels: every output then sees every input, and the convolution is a dense layer


class Conv3x3(nn.Conv2d):
    """A convolution of 3x3 with a border of zeros and no bias: ``nn.Conv2d`` with its parameters.

    On a CPU it has two other forms, which agree with it to rounding (``LOG.md``: what they gain):

    - Maps of `SMALL` pixels a side or less, such as a ResNet-18 with the ImageNet stem ends with on
      32 px, go through one matrix product in training: there only some of the nine taps meet a
      pixel, and oneDNN takes two to five times as long.
    - Larger ones of stride 1 are convolved by `selfsame.nn.winograd`, with 16 products in the place
      of 36: in training, and in float32, where it is as exact, in evaluations as well.

    Elsewhere, and in what is traced, exported or compiled, it is the convolution itself.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        if type(x) is not Tensor or x.device.type != "cpu" or _is_recorded():
            return super().forward(x)
        height, width = x.shape[-2:]
        if self.training and height == width <= SMALL:
            return self._dense(x)
        mixed = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if mixed else x.dtype
        exact = self.training or dtype == torch.float32
        if exact and self.stride == (1, 1) and winograd.fits(x, self.weight, dtype):
            return winograd.convolve(x.to(dtype), self.weight)
        return super().forward(x)

    def _dense(self, x: Tensor) -> Tensor:
        height, stride = x.shape[-2], self.stride[0]
        weight: Tensor = _Dense.apply(self.weight.to(x.dtype), height, stride)
        y = F.linear(x.permute(0, 2, 3, 1).flatten(1), weight)
        side = 1 + (height - 1) // stride
        return y.view(len(x), side, side, -1).permute(0, 3, 1, 2)


def _is_recorded() -> bool:
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return tracing or torch.compiler.is_compiling()


class _Dense(torch.autograd.Function):
    """Kernels [O, I, 3, 3] as the matrix [outputs * O, inputs * I] of maps of a small side.

    With its own gradient: that of nine slices would write nine matrices.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, side: int, stride: int) -> Tensor:
        ctx.side, ctx.stride = side, stride
        kernels = weight.permute(0, 2, 3, 1)  # [O, 3, 3, I], contiguous where weights are so
        parts = [kernels[:, rows, columns] for rows, columns in _seen(side, stride)]
        return torch.stack(parts).flatten(2).flatten(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        seen = _seen(ctx.side, ctx.stride)
        parts = grad.view(len(seen), len(grad) // len(seen), ctx.side, ctx.side, -1)
        kernels = grad.new_zeros(parts.shape[1], 3, 3, parts.shape[-1])
        for part, (rows, columns) in zip(parts, seen, strict=True):
            kernels[:, rows, columns] += part
        return kernels.permute(0, 3, 1, 2), None, None


def _seen(side: int, stride: int) -> list[tuple[slice, slice]]:
    """Rows and columns of the kernel that lie on the map, for each output, row by row."""
    reach = [slice(1 - i, 1 - i + side) for i in range(0, side, stride)]
    return [(rows, columns) for rows in reach for columns in reach]
