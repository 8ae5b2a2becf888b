"""Convolutions by Winograd's filtering are convolutions, and as exact as they are said to be."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import run_fresh
from torch import Tensor

from selfsame.backbones.resnet import ResNet
from selfsame.nn import convolution, winograd
from selfsame.nn.convolution import Conv3x3

LAST = torch.channels_last

# batch, inputs, outputs, height, width: odd sides, one pixel, less than a tile, channels that are
# no whole panels, more tiles than a block, more channels than are summed at once
SHAPES = [
    (3, 32, 48, 7, 6),
    (1, 32, 32, 1, 1),
    (1, 48, 208, 3, 2),
    (2, 64, 64, 12, 12),
    (5, 144, 80, 9, 14),
    (40, 32, 32, 12, 11),
    (2, 256, 272, 4, 4),
]


def supported() -> list[torch.dtype]:
    x, weight = maps(8, 32, 8, 8), torch.zeros(32, 32, 3, 3)
    return [dtype for dtype in (torch.float32, torch.bfloat16) if winograd.fits(x, weight, dtype)]


def maps(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=LAST)


def error(ours: Tensor, exact: Tensor) -> float:
    return float((ours.detach().double() - exact.detach()).norm() / exact.detach().norm())


needs_it = pytest.mark.skipif(not supported(), reason="no compiler, or no AVX2")


@needs_it
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_output_and_gradients_are_a_convolutions(
    shape: tuple[int, ...], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    batch, inputs, outputs, height, width = shape
    weight = torch.randn(outputs, inputs, 3, 3, requires_grad=True)
    for dtype in supported():
        x = maps(batch, inputs, height, width).to(dtype).requires_grad_()
        upstream = maps(batch, outputs, height, width).to(dtype)
        y = winograd.convolve(x, weight)
        exact_x, exact_w = x.detach().double().requires_grad_(), weight.detach().double()
        exact = F.conv2d(exact_x, exact_w.requires_grad_(), padding=1)
        assert y.dtype == dtype
        assert y.is_contiguous(memory_format=LAST)
        ours = y, *torch.autograd.grad(y, (x, weight), upstream)
        theirs = exact, *torch.autograd.grad(exact, (exact_x, exact_w), upstream.double())
        assert ours[2].dtype == torch.float32
        bound = 2e-6 if dtype == torch.float32 else 7e-3  # at most 1.1e-6 and 4.9e-3 were seen
        for one, other in zip(ours, theirs, strict=True):
            assert error(one, other) < bound


@needs_it
def test_it_is_as_exact_as_the_docstring_says() -> None:
    torch.manual_seed(0)
    x, weight = maps(8, 128, 16, 16), torch.randn(128, 128, 3, 3) / 34
    errors = {}
    for dtype in supported():
        rounded = x.to(dtype)
        exact = F.conv2d(rounded.double(), weight.double(), padding=1)
        direct = F.conv2d(rounded, weight.to(dtype), padding=1)
        ours = winograd.convolve(rounded, weight)
        errors[dtype] = error(ours, exact), error(direct, exact)
    ours32, direct32 = errors[torch.float32]
    assert ours32 < 2 * direct32
    if torch.bfloat16 in errors:
        ours16, direct16 = errors[torch.bfloat16]
        assert (
            4.2e-3 < ours16 < 4.5e-3
        )  # 4.33e-3 to 4.37e-3 with three seeds and 32 to 512 channels
        assert ours16 < 2 * direct16


@needs_it
def test_threads_change_no_output_and_runs_repeat() -> None:
    torch.manual_seed(1)
    x, weight = maps(6, 64, 9, 9), torch.randn(96, 64, 3, 3)
    upstream = maps(6, 96, 9, 9)

    def once() -> tuple[Tensor, ...]:
        ins = x.clone(memory_format=torch.preserve_format).requires_grad_(), weight.clone()
        y = winograd.convolve(ins[0], ins[1].requires_grad_())
        return y.detach(), *torch.autograd.grad(y, ins, upstream)

    first, again = once(), once()
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 4)
        many = once()
    assert torch.equal(first[0], many[0])
    assert torch.equal(first[1], many[1])
    assert error(first[2], many[2].double()) < 1e-6  # sums over tiles are cut otherwise


@needs_it
def test_only_what_is_asked_for_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    call = winograd._call

    def noted(name: str, *args: object, **more: object) -> None:
        called.append(name)
        call(name, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(winograd, "_call", noted)
    x, weight = maps(2, 32, 4, 4), torch.randn(32, 32, 3, 3, requires_grad=True)
    winograd.convolve(x, weight).sum().backward()  # the first layer: nobody needs x's
    assert called == ["spread_kernels", "convolve", "convolve_grad"]
    called.clear()
    winograd.convolve(x.requires_grad_(), weight.detach()).sum().backward()  # a frozen one
    assert called == ["spread_kernels", "convolve"] * 2


@needs_it
def test_the_layer_takes_it_in_training_on_maps_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        seen.append((x.shape[1], len(weight), x.shape[-1]))
        return winograd.convolve(x, weight)

    fake = SimpleNamespace(fits=winograd.fits, convolve=convolve)
    monkeypatch.setattr(convolution, "winograd", fake)
    network = ResNet("resnet8", width=32, stem="cifar").to(memory_format=LAST)
    x = torch.randn(16, 3, 16, 16).to(memory_format=LAST)
    network(x).pooled.sum().backward()
    # not the stem, nor what has stride 2
    assert seen == [(32, 32, 16), (32, 32, 16), (64, 64, 8), (128, 128, 4)]
    seen.clear()
    with torch.no_grad():
        network.eval()(x)
    assert [side for _, _, side in seen] == [16, 16, 8]  # the last has 64 tiles alone
    seen.clear()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        network(x)  # twice as coarse would be worse
    with torch.no_grad():
        network(x[:1])  # too few tiles
        torch.export.export(network, (x,))
        torch.fx.symbolic_trace(Conv3x3(32, 32))(maps(16, 32, 16, 16))
        network.double()(x.double())
        ResNet("resnet8", width=16)(x)  # too few channels
    assert seen == []


@needs_it
def test_a_network_learns_as_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients() -> list[Tensor]:
        torch.manual_seed(0)
        network = ResNet("resnet8", width=32, stem="cifar").to(memory_format=LAST)
        x = torch.randn(8, 3, 16, 16).to(memory_format=LAST)
        network(x).pooled.square().sum().backward()
        return [p.grad for p in network.parameters() if p.grad is not None]

    ours = gradients()
    monkeypatch.setattr(winograd, "fits", lambda *_: False)
    for a, b in zip(ours, gradients(), strict=True):
        assert a.stride() == b.stride()
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)


def test_autocast_decides_what_it_computes_in() -> None:
    layer = Conv3x3(32, 32).to(memory_format=LAST)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(maps(8, 32, 8, 8))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    assert layer.weight.grad.stride() == layer.weight.stride()
    assert layer(maps(8, 32, 8, 8)).dtype == torch.float32


def test_without_a_compiler_it_is_pytorchs() -> None:
    run_fresh(
        """
import os
os.environ["SELFSAME_NATIVE"] = "0"
import torch
from selfsame.nn import winograd
from selfsame.nn.convolution import Conv3x3
x = torch.randn(8, 32, 8, 8).contiguous(memory_format=torch.channels_last)
layer = Conv3x3(32, 32)
assert not winograd.fits(x, layer.weight, torch.float32)
assert torch.equal(layer(x), torch.nn.functional.conv2d(x, layer.weight, padding=1))
"""
    )


@needs_it
def test_it_is_right_on_processors_of_other_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(winograd.__file__).with_suffix(".c")
    flags = ["-std=c11", "-O3", "-ffp-contract=fast", "-fPIC", "-shared"]
    for name in ("x86-64", "x86-64-v3"):
        made = tmp_path / f"{name}.so"
        command = ["cc", *flags, f"-march={name}", str(source), "-o", str(made)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip(f"the compiler does not know {name}")
        compiled = ctypes.CDLL(str(made))
        assert bool(compiled.supports(ctypes.c_int64(0))) == (name == "x86-64-v3")
        monkeypatch.setattr(winograd, "_compiled", lambda compiled=compiled: compiled)
        x, weight = maps(3, 48, 7, 6), torch.randn(80, 48, 3, 3, requires_grad=True)
        y = winograd.convolve(x.requires_grad_(), weight)
        exact = F.conv2d(x, weight, padding=1)
        torch.testing.assert_close(y, exact, rtol=1e-4, atol=1e-4)
        upstream = torch.randn_like(y)
        ours, theirs = (torch.autograd.grad(z, (x, weight), upstream) for z in (y, exact))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)
