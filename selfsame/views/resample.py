"""Cut out boxes, resize them with antialiasing and mirror them; the result has 8 bits, too.

Resizing is linear and separable: each row of the result is a weighted sum of a few neighbouring
rows of the image, and likewise for columns. There are three ways to the same pixels, each where it
is the quickest:

- large images on a CPU go one by one through PyTorch's kernels for 8-bit images (``native.c``,
  where it is compiled, does the same to the last bit);
- small images are each multiplied from both sides with a dense matrix, a batch at a time;
- large images on a GPU as products of banded matrices: a strip of ``STRIP`` rows reads a window
  that is little higher than itself, so the windows of all strips are gathered and multiplied with
  small dense matrices. ``mix_rows`` does this for the vertical axis and swaps the axes; doing it
  twice resizes both and restores their order.

Mirroring only reverses the weights.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Interpolation = Literal["bilinear", "bicubic"]

DENSE = 64  # pixels: images and results of at most this side are resized by dense matrices
STRIP = 32  # rows of a result that share a window

# A BLAS splits long sums as it likes. Sums of at most this many numbers it adds in order, so that
# a larger window, which adds zeros because of another sample, leaves the result bit for bit.
_BLOCK = 256


def resized_crop(
    images: Tensor,
    box: Tensor,
    size: int,
    interpolation: Interpolation,
    mirror: Tensor,
) -> Tensor:
    """Crop, resize with antialiasing and mirror, each sample in its own way.

    Source: ``torchvision.transforms.functional.resized_crop`` and ``hflip`` on uint8 images: the
    result is rounded to 8 bits, as in Pillow and in the pipelines of the papers.

    Args:
        images: uint8 [B, C, H, W]; on a CPU, channels last is the quicker memory format.
        box: int64 [B, 4], top, left, height and width of each crop in pixels, on the CPU.
        size: Side of the result in pixels.
        interpolation: The filter. Bicubic overshoots, so its result is clamped.
        mirror: bool [B], on the CPU: which samples to flip horizontally.

    Returns:
        [B, C, size, size] of whole numbers in 0..255, on the device of ``images``: float32, or
        uint8 from a CPU's kernels, then of one image in its own memory format.
    """
    if small(images, size):
        result = _dense(images, box, size, interpolation, mirror)
    elif images.device.type == "cpu" and size > 1:  # of one pixel, PyTorch's kernel fails
        return _one_by_one(images, box, size, interpolation, mirror)
    else:
        result = _strips(images, box, size, interpolation, mirror)
    return result.round_().clamp_(0.0, 255.0)


def small(images: Tensor, size: int) -> bool:
    """Whether images [B, C, H, W] and results of ``size`` pixels are small."""
    return max(images.shape[2], images.shape[3], size) <= DENSE


def _one_by_one(
    images: Tensor, box: Tensor, size: int, interpolation: Interpolation, mirror: Tensor
) -> Tensor:
    """``resized_crop`` through ``torch.nn.functional.interpolate``."""
    result = []
    for image, place, flip in zip(images, box.tolist(), mirror.tolist(), strict=True):
        top, left, height, width = place
        crop = image[None, :, top : top + height, left : left + width]
        crop = crop.contiguous(memory_format=torch.channels_last)  # rows, as they lie
        view = F.interpolate(crop, (size, size), mode=interpolation, antialias=True)
        result.append(view.flip(-1) if flip else view)
    return result[0] if len(result) == 1 else torch.cat(result)


def _dense(
    images: Tensor, box: Tensor, size: int, interpolation: Interpolation, mirror: Tensor
) -> Tensor:
    """``resized_crop`` before rounding: [B, C, size, size], values of 0 to 255 and around."""
    b, c, height, width = images.shape
    top, left, rows, columns = box.to(images.device, non_blocking=True).unbind(1)
    vertical = dense_weights(top, rows, height, size, interpolation)
    horizontal = dense_weights(left, columns, width, size, interpolation, mirror)
    x = torch.empty(images.shape, device=images.device).copy_(images)  # planes, in either format
    x = torch.bmm(x.view(b, c * height, width), horizontal.mT).view(b, c, height, size)
    return vertical[:, None] @ x


def dense_weights(
    start: Tensor,
    length: Tensor,
    extent: int,
    size: int,
    interpolation: Interpolation,
    mirror: Tensor | None = None,
) -> Tensor:
    """Weights of every pixel of a short axis for every pixel of the result.

    Args:
        start: int64 [B], first pixel of each interval.
        length: int64 [B], pixels in each interval.
        extent: Pixels along the axis of the image.
        size: Pixels along the axis of the result.
        interpolation: The filter.
        mirror: bool [B], which samples to reverse.

    Returns:
        float32 [B, size, extent]. As in ``resize_weights``, nothing outside the interval counts.
    """
    kernel = _hat if interpolation == "bilinear" else _keys
    device = start.device
    scale = length / size
    # the place of a result's pixel within its interval: forwards, or backwards where mirrored
    step, first = scale, torch.full_like(scale, 0.5)
    if mirror is not None:
        step = torch.where(mirror.to(device), -scale, scale)
        first = torch.where(mirror.to(device), size - 0.5, 0.5)
    offset, stretch = start + first * scale - 0.5, scale.clamp(min=1.0)
    steps = torch.arange(size, device=device) * (step / stretch)[:, None]
    centre = (offset / stretch)[:, None] + steps
    pixel = torch.arange(extent, device=device)
    inside = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])
    weights = kernel((pixel / stretch[:, None])[:, None] - centre[..., None])
    weights *= inside[:, None]
    return weights.div_(weights.sum(-1, keepdim=True))


def _strips(
    images: Tensor, box: Tensor, size: int, interpolation: Interpolation, mirror: Tensor
) -> Tensor:
    """``resized_crop`` before rounding, by products of banded matrices."""
    top, left, height, width = box.unbind(1)
    rows = resize_weights(top, height, size, interpolation, None, images.device)
    columns = resize_weights(left, width, size, interpolation, mirror, images.device)
    return mix_rows(mix_rows(images, *rows, size), *columns, size)


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
    # Each piece is 0 at its own ends but for the value of 1 at 0, so the clamped pieces add up.
    x = x.abs()
    near, far = x.clamp(max=1.0), x.clamp_(1.0, 2.0)
    far = far.mul(-0.5).add_(2.5).mul_(far).sub_(4.0).mul_(far).add_(3.0)
    return near.mul(1.5).sub_(2.5).mul_(near).mul_(near).add_(far)
