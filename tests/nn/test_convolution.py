"""Convolutions of 3x3 on the smallest maps are those of PyTorch, as one matrix product."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from selfsame.nn.convolution import Conv3x3


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [1, 2, 3])
def test_output_and_gradients_are_those_of_a_convolution(side: int, stride: int) -> None:
    torch.manual_seed(0)
    layer = Conv3x3(5, 7, stride).double().to(memory_format=torch.channels_last)
    x = torch.randn(4, 5, side, side, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    expected = F.conv2d(x, layer.weight, None, stride, 1)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(y)
    ours, theirs = (torch.autograd.grad(z, (x, layer.weight), upstream) for z in (y, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_small_square_maps_alone_are_products_and_in_training_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, ...]] = []

    def forward(self: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        asked.append(tuple(x.shape[-2:]))
        return x

    monkeypatch.setattr(nn.Conv2d, "forward", forward)
    layer = Conv3x3(3, 4)
    for side in ((1, 1), (2, 2), (3, 3), (1, 2)):
        layer(torch.zeros(2, 3, *side))
    assert asked == [(3, 3), (1, 2)]
    layer.eval()(torch.zeros(2, 3, 1, 1))
    assert asked == [(3, 3), (1, 2), (1, 1)]


def test_autocast_and_memory_format_are_a_convolutions() -> None:
    layer = Conv3x3(8, 8).to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 2, 2).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    assert layer.weight.grad.stride() == layer.weight.stride()
