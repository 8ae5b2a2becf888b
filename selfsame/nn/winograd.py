"""Convolutions of 3x3 on a CPU by Winograd's minimal filtering F(2x2, 3x3): ``winograd.c``.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308. Of float32
the result is as exact as that of a direct convolution. Of bfloat16, pixels and kernels are rounded
again after they were transformed: the error is 1.9 times that of a direct convolution, which rounds
its result (4.4e-3 and 2.3e-3 of the norm, normal numbers; sums are float32 in both).
"""

from __future__ import annotations

import ctypes
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from selfsame.native import library

_KINDS = {torch.float32: 0, torch.bfloat16: 1}  # ``enum kind``
_CHANNELS = 16  # the widest vectors
# what it takes for the transforms of pixels and of kernels to cost less than products save
_LEAST_CHANNELS = 32
_LEAST_TILES = {True: 64, False: 128}  # with gradients, and without


class _Job(ctypes.Structure):
    """``struct job``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("kind", "batch", "height", "width")),
        *((name, ctypes.c_int64) for name in ("inputs", "outputs", "threads", "turned")),
        *((name, ctypes.c_void_p) for name in ("x", "grad", "kernel", "spread", "y")),
        *((name, ctypes.c_void_p) for name in ("sums", "kernel_grad", "start")),
        ("own", ctypes.c_int64 * 16),
    )


def fits(x: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether `convolve` does this convolution, and faster than PyTorch.

    Args:
        x: Maps [B, inputs, H, W].
        weight: Kernels [outputs, inputs, 3, 3].
        dtype: To compute in.

    It takes 64 tiles of 2x2 pixels in the batch, 128 without gradients: fewer do not pay for the
    transform of the kernels.
    """
    outputs, inputs = weight.shape[:2]
    least = _LEAST_TILES[torch.is_grad_enabled()]
    return (
        x.device.type == weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and dtype in _KINDS
        and min(inputs, outputs) >= _LEAST_CHANNELS
        and inputs % _CHANNELS == outputs % _CHANNELS == 0
        and len(x) * -(x.shape[2] // -2) * -(x.shape[3] // -2) >= least
        and x.is_contiguous(memory_format=torch.channels_last)
        and _supports(_KINDS[dtype])
    )


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """The convolution of stride 1 with a border of zeros; differentiable once.

    Args:
        x: Maps [B, inputs, H, W], channels last, that `fits` says yes to.
        weight: Kernels [outputs, inputs, 3, 3] in float32, whatever the maps are.

    Returns:
        Maps [B, outputs, H, W] of ``x``'s type, channels last.

    Raises:
        MemoryError: There is none for what is transformed.
    """
    y: Tensor = _Convolution.apply(x, weight)
    return y


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolved(x, weight, turned=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grad.to(x.dtype).contiguous(memory_format=torch.channels_last)
        of_x = _convolved(grad, weight, turned=True) if ctx.needs_input_grad[0] else None
        of_weight = _kernel_grad(x, grad) if ctx.needs_input_grad[1] else None
        return of_x, of_weight


def _convolved(x: Tensor, weight: Tensor, *, turned: bool) -> Tensor:
    """[B, I, H, W] -> [B, O, H, W]; turned, the gradient at the one from that at the other."""
    kernel = weight.detach().contiguous(memory_format=torch.channels_last)
    outputs, inputs = weight.shape[:2]
    spread = torch.empty(16 * outputs * inputs, dtype=x.dtype)
    kernels = {"kernel": kernel, "spread": spread}
    _call("spread_kernels", x, inputs, outputs, kernels, turned=turned)
    if turned:
        inputs, outputs = outputs, inputs
    size = (len(x), outputs, *x.shape[2:])
    y = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
    _call("convolve", x, inputs, outputs, {"x": x, "spread": spread, "y": y})
    return y


def _kernel_grad(x: Tensor, grad: Tensor) -> Tensor:
    """[B, I, H, W], [B, O, H, W] -> [O, I, 3, 3] in float32."""
    inputs, outputs = x.shape[1], grad.shape[1]
    sums = torch.empty(torch.get_num_threads(), 16, outputs, inputs)
    found = torch.empty(outputs, inputs, 3, 3, memory_format=torch.channels_last)
    tensors = {"x": x, "grad": grad, "sums": sums, "kernel_grad": found}
    _call("convolve_grad", x, inputs, outputs, tensors)
    return found


def _call(
    name: str,
    maps: Tensor,
    inputs: int,
    outputs: int,
    tensors: dict[str, Tensor],
    *,
    turned: bool = False,
) -> None:
    batch, _, height, width = maps.shape
    job = _Job(
        kind=_KINDS[maps.dtype],
        batch=batch,
        height=height,
        width=width,
        inputs=inputs,
        outputs=outputs,
        threads=torch.get_num_threads(),
        turned=turned,
        start=_start_threads(),
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
    )
    compiled = _compiled()
    assert compiled is not None
    if getattr(compiled, name)(ctypes.byref(job)):  # meanwhile, other threads run
        raise MemoryError("no memory for a convolution")


def _compiled() -> ctypes.CDLL | None:
    return library(Path(__file__).with_suffix(".c"), "-ffp-contract=fast")


@cache
def _supports(kind: int) -> bool:
    compiled = _compiled()
    return compiled is not None and bool(compiled.supports(ctypes.c_int64(kind)))


@lru_cache(maxsize=1)
def _start_threads() -> int | None:
    """The address of ``GOMP_parallel`` in the OpenMP that PyTorch's own threads are of.

    Another library's threads would wait for a core that PyTorch's, while they wait for work, keep.
    """
    for path in (Path(torch.__file__).parent / "lib").glob("lib*omp*"):
        try:
            return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None
