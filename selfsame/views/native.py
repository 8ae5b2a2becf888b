"""Views in one pass over each image: ``native.c``, for three channels on a CPU.

Where it cannot be compiled (``selfsame.native``), ``render`` does the same with ``ops``. The two
agree to rounding, so a run that is to repeat bit for bit stays with one of them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from selfsame.native import library
from selfsame.types import Norm
from selfsame.views import ops
from selfsame.views.draw import HUE, Params
from selfsame.views.spec import View

Kernel = Callable[[Tensor, Tensor, Tensor], None]  # uint8 images, ``program``, where to write

_SOURCE = Path(__file__).with_suffix(".c")
_AFFINE, _HUE = 1.0, 2.0  # ``enum kind``
_STEPS = 5  # the four slots and grayscale


@lru_cache(maxsize=1)
def kernel() -> Kernel | None:
    """The compiled function, None where there is none."""
    compiled = library(_SOURCE)
    if compiled is None:
        return None
    call = compiled.make_views
    pointer = ctypes.c_void_p
    call.argtypes = [ctypes.c_int, ctypes.c_int, pointer, pointer, pointer, pointer]

    def make_views(pixels: Tensor, samples: Tensor, out: Tensor) -> None:
        count, _, size, _ = out.shape
        assert pixels.shape[:2] == (count, 3)
        assert pixels.dtype == torch.uint8
        assert samples.is_contiguous()
        assert out.is_contiguous()
        strides = (ctypes.c_int64 * 4)(*pixels.stride())
        addresses = pixels.data_ptr(), strides, samples.data_ptr(), out.data_ptr()
        if call(count, size, *addresses):  # meanwhile, other threads run
            raise MemoryError(f"no memory for a view of {size} pixels")

    return make_views


def program(
    params: Params, view: View, units: Norm, norm: Norm, side: int, fast: bool, dense: bool
) -> Tensor:
    """What ``native.c`` does to each sample: its ``struct sample`` as float32 [B, N].

    Args:
        params: Of each sample.
        view: What they were drawn from.
        units: How pixels are scaled while they change: ``norm`` or, for exact colours, 0 to 1.
        norm: Mean and standard deviation of the result.
        side: Of the blur's kernel, pixels.
        fast: Whether colours are one affine map.
        dense: Whether to resize as small images are, in float32, or as PyTorch does 8 bits.
    """
    b = len(params.flip)
    ends = [ops.scaled(level, units).expand(3, 1, 1).flatten() for level in (0.0, 1.0)]
    kind, turns = torch.zeros(b, _STEPS), torch.zeros(b, _STEPS)
    linear, of_mean = torch.zeros(b, _STEPS, 3, 3), torch.zeros(b, _STEPS, 3, 3)
    shift = torch.zeros(b, _STEPS, 3)
    if fast:
        kind[:, 0] = _AFFINE
        matrix = ops.fast_colors(
            params.order, params.jitter, params.factors, params.grayscale, units
        )
        linear[:, 0], of_mean[:, 0], shift[:, 0] = matrix[..., :3], matrix[..., 3:6], matrix[..., 6]
    else:
        luma = torch.tensor(ops.LUMA).expand(3, 3)
        linear[:, :4], lift = ops.color_steps(params.order, params.jitter, params.factors, 3)
        of_mean[:, :4] = lift * luma
        is_hue = params.order == HUE
        kind[:, :4] = params.jitter[:, None] * torch.where(is_hue, _HUE * (view.hue > 0), _AFFINE)
        turns[:, :4] = is_hue * params.factors[:, HUE, None]
        kind[:, 4] = params.grayscale * _AFFINE
        linear[:, 4] = luma
    steps = [
        kind[..., None],
        of_mean.flatten(2).any(-1, keepdim=True),
        linear.flatten(2),
        of_mean.flatten(2),
        shift,
        *(end.expand(b, _STEPS, 3) for end in ends),
        turns[..., None],
    ]
    last = Norm((0.0,), (1.0,)) if units is norm else norm
    filters = {"bilinear": 0.0, "bicubic": 1.0}  # ``enum filter``
    each = [
        torch.tensor([float(dense), filters[view.interpolation]]).expand(b, 2),
        params.box,
        params.flip[:, None],
        torch.cat(steps, dim=2).flatten(1),
        (params.blur * params.sigma)[:, None],
        (params.blur * ops.blur_radius(params.sigma, side))[:, None],
        params.solarize[:, None],
        ops.scaled(view.solarize_threshold, units).flatten().expand(b, 3),
        (ends[0] + ends[1]).expand(b, 3),
        torch.tensor(last.mean).expand(b, 3),
        (1 / torch.tensor(last.std)).expand(b, 3),
    ]
    return torch.cat([part.float() for part in each], dim=1)
