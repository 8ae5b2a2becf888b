"""Cut out boxes and resize them, a batch at a time, as products of banded matrices.

Antialiased resizing is linear and separable: each row of the result is a weighted sum of a few
neighbouring rows of the image, and likewise for columns. A strip of ``STRIP`` rows reads a window
that is little higher than itself, so the windows of all strips are gathered and multiplied with
small dense matrices. ``mix_rows`` does this for the vertical axis and swaps the axes; doing it
twice resizes both and restores their order. Mirroring only reverses the weights.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Interpolation = Literal["bilinear", "bicubic"]

STRIP = 32  # rows of a result that share a window

# A BLAS splits long sums as it likes. Sums of at most this many numbers it adds in order, so that
# a larger window, which adds zeros because of another sample, leaves the result bit for bit.
_BLOCK = 256


def resized_crop(
    images: Tensor,
    box: Tensor,
    size: int,
    interpolation: Interpolation,
    mirror: Tensor | None = None,
) -> Tensor:
    """Crop, resize with antialiasing and mirror, each sample in its own way.

    Source: ``torchvision.transforms.functional.resized_crop`` and ``hflip`` on float images.

    Args:
        images: uint8 [B, C, H, W].
        box: int64 [B, 4], top, left, height and width of each crop in pixels, on the CPU.
        size: Side of the result in pixels.
        interpolation: The filter. Bicubic overshoots, so its result is clamped to [0, 1].
        mirror: bool [B], which samples to flip horizontally.

    Returns:
        float32 [B, C, size, size] in [0, 1], on the device of ``images``.
    """
    top, left, height, width = box.unbind(1)
    rows = resize_weights(top, height, size, interpolation, None, images.device)
    columns = resize_weights(left, width, size, interpolation, mirror, images.device)
    result = mix_rows(mix_rows(images, *rows, size), *columns, size)
    return result.mul_(1 / 255).clamp_(0.0, 1.0)


def resize_weights(
    start: Tensor,
    length: Tensor,
    size: int,
    interpolation: Interpolation,
    mirror: Tensor | None = None,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """Windows and weights that resize one interval for each sample along one axis.

    Source: ``_upsample_bilinear2d_aa`` and ``_upsample_bicubic2d_aa`` of PyTorch. Nothing outside
    the interval has a weight, so what lies around a crop never bleeds in. Computed in float64,
    since a float32 position several hundred pixels into an image is off by 1e-5 pixels.

    Args:
        start: int64 [B], first pixel of each interval.
        length: int64 [B], pixels in each interval, on the CPU: its maximum is read.
        size: Pixels along the axis of the result.
        interpolation: The filter.
        mirror: bool [B], which samples to reverse.
        device: Where to compute.

    Returns:
        int64 [B, N], where the window of each strip of the result begins, and float32
        [B, N, K, STRIP], the weights of its K pixels; N strips cover ``size``.
    """
    kernel, reach = (_hat, 1.0) if interpolation == "bilinear" else (_keys, 2.0)
    longest = int(length.max()) / size
    taps = torch.arange(2 * math.ceil(reach * max(1.0, longest)) + 1, device=device)
    window = math.ceil((STRIP - 1) * longest) + 1 + len(taps)
    start, length = (x.to(device, non_blocking=True)[:, None, None] for x in (start, length))

    scale = length.double() / size
    stretch = scale.clamp(min=1.0)  # a smaller result needs a wider filter: this is antialiasing
    strips = math.ceil(size / STRIP)
    out = torch.arange(strips * STRIP, device=device).clamp_(max=size - 1)[None, :, None]
    if mirror is not None:
        out = torch.where(mirror.to(device)[:, None, None], size - 1 - out, out)
    centre = (out + 0.5) * scale
    first = (centre - reach * stretch + 0.5).long().clamp_(min=0)  # [B, N * STRIP, 1]
    last = torch.minimum((centre + reach * stretch + 0.5).long(), length)
    source = first + taps  # [B, N * STRIP, taps]
    weights = kernel((source - centre + 0.5) / stretch) * (source < last)
    weights /= weights.sum(-1, keepdim=True)

    begin = first.view(-1, strips, STRIP).amin(-1)
    place = source.view(len(begin), strips, STRIP, -1) - begin[:, :, None, None]
    matrix = torch.zeros(len(begin), strips, STRIP, window, device=device)
    matrix.scatter_(3, place, weights.float().view_as(place))
    return begin + start[:, 0], matrix.mT


def mix_rows(images: Tensor, begin: Tensor, weights: Tensor, size: int) -> Tensor:
    """Replace the rows of each image by weighted sums of its rows, then swap the axes.

    Args:
        images: [B, C, H, W], any real type.
        begin: int64 [B, N], first row of the window of each strip.
        weights: float32 [B, N, K, STRIP], weight of each row of a window for each new row. Rows
            beyond the image must weigh nothing.
        size: Number of new rows S, at most N * STRIP.

    Returns:
        float32 [B, C, W, S].
    """
    b, c, h, w = images.shape
    n, k = weights.shape[1:3]
    rows = begin[:, :, None] + torch.arange(k, device=images.device)
    rows = rows.clamp_(max=h - 1).view(b, n, k, 1)
    plane = torch.arange(b * c, device=images.device).view(b, 1, 1, c)
    # One flat list of rows: copying whole rows is far cheaper than indexing pixels.
    windows = images.reshape(b * c * h, w).index_select(0, (plane * h + rows).flatten())
    windows = windows.view(b * n, k, c * w).float()
    mixed = _product(windows.mT, weights.flatten(0, 1)).view(b, n, c * w, STRIP)
    return mixed.transpose(1, 2).reshape(b, c, w, n * STRIP)[..., :size]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``torch.bmm``, added up block by block."""
    total = torch.bmm(a[..., :_BLOCK], b[:, :_BLOCK])
    for i in range(_BLOCK, a.shape[2], _BLOCK):
        total += torch.bmm(a[..., i : i + _BLOCK], b[:, i : i + _BLOCK])
    return total


def _hat(x: Tensor) -> Tensor:
    return (1.0 - x.abs()).clamp_(min=0.0)


def _keys(x: Tensor) -> Tensor:
    """Cubic convolution with a = -1/2 (Keys, "Cubic convolution interpolation", 1981)."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, 0.0))
