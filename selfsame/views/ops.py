"""Operations on pixels, each sample with its own strength.

Images are float32 [B, C, S, S] in [0, 1], with one number for each sample. Source: the operation of
that name (``hue`` is ``adjust_hue``, ``grayscale`` is ``rgb_to_grayscale``) in
``torchvision.transforms.functional``, on float images. A sample gets the same bits whatever batch
it comes in.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import one_hot

from selfsame.types import Norm
from selfsame.views.draw import BRIGHTNESS, CONTRAST, HUE, SATURATION
from selfsame.views.resample import DENSE, STRIP, mix_rows

_STRIP = 16  # rows or columns that a blur on a CPU makes at a time
_REACH = 4.5  # standard deviations
LUMA = (0.2989, 0.587, 0.114)  # weights of red, green and blue in torchvision's grayscale
# What a quarter turn of hue adds to the gray of a pixel, for the luma and chroma axes of YIQ.
_QUARTER_TURN = (
    (-0.16772, -0.32930, 0.49702),
    (0.32811, -0.03555, -0.29256),
    (-1.24975, 1.04648, 0.20327),
)


def hue(x: Tensor, turns: Tensor) -> Tensor:
    """``adjust_hue``: rotate the hue of the HSV hexcone by a share of a full turn.

    Between conversion and back, value and saturation stay, so the channels keep their minimum and
    maximum and each is a piecewise linear function of the hue between the two.
    """
    r, g, b = x.unbind(1)
    high = torch.maximum(r, g).maximum(b)
    low = torch.minimum(r, g).minimum(b)
    chroma = high - low
    # Sixths of a turn, chosen by the highest channel: red before green before blue. ``lerp`` with a
    # weight of 0 or 1 is exact and ten times as fast as ``where`` on a CPU.
    sector = (
        (b - r).add_(chroma, alpha=2.0).lerp_((r - g).add_(chroma, alpha=4.0), (high - g).sign_())
    )
    sector = torch.lerp(g - b, sector, (high - r).sign_())
    sector /= chroma.clamp(min=1e-12)  # where chroma is 0, any finite hue will do
    sector += 6.0 * turns.view(-1, 1, 1)
    sector -= (sector * (1 / 6)).floor_().mul_(6.0)  # now in [0, 6]
    out = torch.empty_like(x)
    waves = (
        (sector - 3.0).abs_().sub_(1.0),
        (sector - 2.0).abs_().neg_().add_(2.0),
        (sector - 4.0).abs_().neg_().add_(2.0),
    )
    for channel, wave in enumerate(waves):
        torch.addcmul(low, chroma, wave.clamp_(0.0, 1.0), out=out[:, channel])
    return out


def grayscale(x: Tensor) -> Tensor:
    """``rgb_to_grayscale`` with three equal channels."""
    return luma(x).expand_as(x)


def luma(x: Tensor) -> Tensor:
    """The gray of each pixel, [B, 3, S, S] to [B, 1, S, S]."""
    r, g, b = (x[:, i : i + 1] * LUMA[i] for i in range(3))
    return r.add_(g).add_(b)


def mean_gray(x: Tensor) -> Tensor:
    """Mean gray of each image, [B, C, S, S] to [B, 1, 1]; other than of RGB, of each channel."""
    # Two means, row by row: one over all pixels of a lone image would be split among threads.
    mean = x.mean(-1).mean(-1)
    return (
        mean[..., None] if x.shape[1] != 3 else (mean * mean.new_tensor(LUMA)).sum(1).view(-1, 1, 1)
    )


def color_steps(order: Tensor, on: Tensor, factors: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Brightness, contrast and saturation as affine maps of colours, one for each slot.

    Args:
        order: int64 [B, 4], the four operations, first to last.
        on: bool [B], whether they run at all.
        factors: float32 [B, 4].
        channels: C; saturation leaves images without three channels as they are.

    Returns:
        float32 [B, 4, C, C] and [B, 4, 1, 1]: slot s maps x to ``linear @ x + lift * mean_gray``,
        clamped. Hue, which is no such map, has the identity.
    """
    eye = torch.eye(channels)
    factor = factors.gather(1, order)[..., None, None]  # by slot
    slot = torch.where(on[:, None], order, HUE)[..., None, None]
    scaled = ((slot == BRIGHTNESS) | (slot == CONTRAST)) * (factor - 1.0) * eye
    linear = eye + scaled
    if channels == 3:
        to_gray = torch.tensor(LUMA).expand(3, 3)
        linear = linear + (slot == SATURATION) * (factor - 1.0) * (eye - to_gray)
    lift = (slot == CONTRAST) * (1.0 - factor)
    return linear, lift


def color_matrix(order: Tensor, factors: Tensor, gray: Tensor) -> Tensor:
    """Jitter and grayscale as one affine map of colours: the ``fast`` mode.

    Without the clamps between them, brightness, contrast, saturation and a rotation of the hue in
    the YIQ plane are affine. Contrast needs the mean gray of what comes before it, which is itself
    an affine map of the mean colour of the image: so the whole is a map of both.

    Args:
        order: int64 [B, 4], the four operations, first to last.
        factors: float32 [B, 4], brightness, contrast, saturation, and hue in turns.
        gray: bool [B], which samples end up gray.

    Returns:
        float64 [B, 3, 7]: applies to (red, green, blue, mean red, mean green, mean blue, 1).
    """
    # float64, since float32 rounds sines and sums in a way that depends on their place in a batch.
    factors = factors.double()
    eye = torch.eye(3).to(factors)
    weights = torch.tensor(LUMA).to(factors)
    to_gray = weights.expand(3, 3)
    quarter_turn = torch.tensor(_QUARTER_TURN).to(factors)
    light, sharp, vivid, turns = factors.view(-1, 4, 1, 1).unbind(1)
    angle = 2 * math.pi * turns
    linear = torch.stack(  # [B, 4, 3, 3]
        [
            light * eye,
            sharp * eye,
            vivid * eye + (1.0 - vivid) * to_gray,
            to_gray + angle.cos() * (eye - to_gray) + angle.sin() * quarter_turn,
        ],
        dim=1,
    )
    sample = torch.arange(len(factors), device=factors.device)
    result = torch.eye(3, 7).to(factors).expand(len(factors), 3, 7)
    for operation in order.unbind(1):
        so_far = weights @ result  # the gray of a pixel, [B, 7]
        result = linear[sample, operation] @ result
        # where it is contrast, a share of that gray at the mean colour is added to each channel
        lift = so_far * ((1.0 - sharp[:, 0]) * (operation == CONTRAST)[:, None])
        result[:, :, 3:6] += (lift[:, :3] + lift[:, 3:6])[:, None]
        result[:, :, 6] += lift[:, 6:]
    return torch.where(gray[:, None, None], to_gray @ result, result)


def fast_colors(order: Tensor, on: Tensor, factors: Tensor, gray: Tensor, units: Norm) -> Tensor:
    """``color_matrix`` for pixels of 0 to 1, with results normalised by ``units``.

    Args:
        order: int64 [B, 4], the four operations, first to last.
        on: bool [B], whether they run at all.
        factors: float32 [B, 4].
        gray: bool [B], which samples end up gray.
        units: Mean and standard deviation of each channel, or one of each for all.

    Returns:
        float32 [B, 3, 7].
    """
    still = factors.new_tensor([1.0, 1.0, 1.0, 0.0])
    matrix = color_matrix(order, torch.where(on[:, None], factors, still), gray)
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in units)
    matrix[:, :, 6] -= mean
    return (matrix / std.view(-1, 1)).float()


def scaled(level: float, norm: Norm) -> Tensor:
    """Where a level of 0 to 1 lies in normalised images: float32 [C, 1, 1]."""
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in norm)
    return ((level - mean) / std).float()


def blur_radius(sigma: Tensor, side: int) -> Tensor:
    """Pixels that a blur reaches, at most half of ``side``: what is beyond adds up to 7e-6."""
    return (_REACH * sigma).ceil().clamp(max=side // 2)


def gaussian_blur(x: Tensor, sigma: Tensor, side: int) -> Tensor:
    """``gaussian_blur`` with a kernel of ``side`` by ``side`` pixels and reflected borders.

    Args:
        x: float32 [B, C, S, S].
        sigma: [B], standard deviations in pixels.
        side: Odd; the borders can reflect at most ``S - 1`` pixels.
    """
    size, radius = x.shape[-1], side // 2
    if x.device.type == "cpu" and size > DENSE:
        result = torch.empty_like(x, memory_format=torch.contiguous_format)
        reach = blur_radius(sigma, side).int().tolist()
        for image, deviation, r, out in zip(x, sigma.tolist(), reach, result, strict=True):
            _blur_alone(image, deviation, r, out)
        return result
    # float64, since float32 ``exp`` rounds in another way at the end of a vector.
    distance = torch.arange(-radius, radius + 1, device=x.device, dtype=torch.float64)
    weights = (-0.5 * (distance / sigma[:, None].to(x.device)) ** 2).exp_()
    weights /= weights.sum(1, keepdim=True)
    weights *= weights > 1e-9  # far tails are subnormal in float32: products a hundred times slower
    begin, reads = _reflected(size, radius, x.device)
    matrix = (weights.float() @ reads.flatten(1)).view(-1, *reads.shape[1:])
    begin = begin.expand(len(x), -1)
    return mix_rows(mix_rows(x, begin, matrix, size), begin, matrix, size)


def _blur_alone(x: Tensor, sigma: float, radius: int, out: Tensor) -> None:
    """``gaussian_blur`` of one image, [C, S, S]: strips of it times one small banded matrix.

    Both products read a picture along its columns and write rows, so the second puts back in order
    what the first has transposed.
    """
    c, size, _ = x.shape
    distance = torch.arange(-radius, radius + 1, dtype=torch.float64)
    taps = (-0.5 * (distance / sigma) ** 2).exp_()
    # Row i weighs pixels i to i + 2 * radius of a window: each row of a table that is wider by one
    # begins one place later when it is read with the right width.
    window, count = _STRIP + 2 * radius, -(-size // _STRIP)
    table = torch.zeros(_STRIP, window + 1)
    table[:, : 2 * radius + 1] = taps / taps.sum()
    band = table.view(-1)[: _STRIP * window].view(1, _STRIP, window).expand(count, -1, -1)

    x = F.pad(x, (radius,) * 4, mode="reflect")
    beyond = count * _STRIP - size  # the last strip may be longer than what is left
    x = F.pad(x, (0, beyond, 0, beyond)) if beyond else x
    side = x.shape[-1]
    strips = x.as_strided((count, window, c * side), (_STRIP, 1, side))
    x = torch.bmm(band, strips)  # [columns, C, rows with the frame]
    for plane, result in enumerate(out):
        strips = x.as_strided((count, window, size), (_STRIP, 1, c * side), plane * side)
        if beyond:
            result.copy_(torch.bmm(band, strips).view(-1, size)[:size])
        else:
            torch.bmm(band, strips, out=result.view(count, _STRIP, size))


def solarize(x: Tensor, threshold: float | Tensor, ends: float | Tensor = 1.0) -> Tensor:
    """``solarize``: invert the values at or above the threshold; ``ends`` is black plus white."""
    return torch.where(x >= threshold, ends - x, x)


@lru_cache(maxsize=8)
def _reflected(size: int, radius: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Windows for ``mix_rows``, and which of their pixels each tap of a kernel reads.

    Returns:
        int64 [N], and float32 [2 * radius + 1, N, K, STRIP] of zeros and ones.
    """
    last = size - 1
    out = torch.arange(math.ceil(size / STRIP) * STRIP).clamp_(max=last)
    read = torch.arange(-radius, radius + 1)[:, None] + out
    read = (last - (last - read.abs()).abs()).clamp_(min=0)
    read = read.view(2 * radius + 1, -1, STRIP)
    begin = read.amin((0, 2))
    reads = one_hot(read - begin[:, None]).mT.float()
    return begin.to(device), reads.to(device)
