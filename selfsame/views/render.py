"""Make the pixels of views, a batch at a time, on the device that holds the images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from selfsame.types import Batch, Norm
from selfsame.views import ops
from selfsame.views.draw import BRIGHTNESS, CONTRAST, HUE, SATURATION, Params, draw
from selfsame.views.resample import resized_crop
from selfsame.views.spec import View

Color = Literal["exact", "fast"]

_CACHE = 1 << 21  # bytes: on a CPU, float images are worked on in parts of about this size


def render(
    images: Tensor,
    params: Params,
    view: View,
    norm: Norm,
    *,
    color: Color = "exact",
    out: Tensor | None = None,
) -> Tensor:
    """Make one view of each image.

    In order: crop, antialiased resize, flip, colour jitter in each sample's own order, grayscale,
    blur, solarise, normalise. Images without three channels skip colour jitter and grayscale.
    Everything runs in float32, whatever autocast and the precision of matrix products are set to.

    Args:
        images: uint8 [B, C, H, W], canvases.
        params: What to do with each, on the CPU; boxes lie inside the valid part of the canvas.
        view: What ``params`` was drawn from.
        norm: Mean and standard deviation of each channel, or one of each for all.
        color: "exact" runs jitter and grayscale one after the other with torchvision's clamps.
            "fast" composes them into one matrix for each sample: hue turns in the YIQ plane and
            only the result is clamped.
        out: float32 [B, C, S, S] to write to.

    Returns:
        float32 [B, C, S, S] with S = ``view.size``, on the device of ``images``.
    """
    b, c, h, w = images.shape
    if out is None:
        out = torch.empty(b, c, view.size, view.size, device=images.device)
    part = b
    if images.device.type == "cpu":
        parts = math.ceil(4 * b * c * max(h * w, view.size**2) / _CACHE)
        part = math.ceil(b / max(1, min(parts, b)))
    with torch.no_grad(), _float32(images.device):
        for i in range(0, b, max(1, part)):
            some = Params(*(p[i : i + part] for p in params))
            x = resized_crop(
                images[i : i + part], some.box, view.size, view.interpolation, some.flip
            )
            if c == 3:
                (_color_exact if color == "exact" else _color_fast)(x, some, view)
            _change(x, some.blur, ops.gaussian_blur, some.sigma, blur_side(view))
            _change(x, some.solarize, ops.solarize, view.solarize_threshold)
            _normalize(x, norm, out[i : i + part])
    return out


def eval_view(images: Tensor, sizes: Tensor, size: int, norm: Norm, crop: float = 0.875) -> Tensor:
    """The deterministic view for evaluation: a centred square, resized with bicubic filtering.

    Args:
        images: uint8 [B, C, H, W], canvases.
        sizes: integer [B, 2], valid height and width.
        size: Side of the result in pixels.
        norm: Mean and standard deviation of each channel.
        crop: Side of the square over the shorter side of the image. 1.0 suits small images, whose
            borders are part of the object.

    Returns:
        float32 [B, C, size, size], on the device of ``images``.
    """
    sizes = sizes.cpu().double()
    side = (sizes.amin(1, keepdim=True) * crop).round().clamp_(min=1).expand(-1, 2)
    box = torch.cat([((sizes - side) / 2).round(), side], dim=1).long()
    off = torch.zeros(len(box), dtype=torch.bool)
    nothing = torch.zeros(len(box), 4)
    plain = View(size=size, interpolation="bicubic")
    params = Params(box, off, off, nothing.long(), nothing, off, off, nothing[:, 0], off)
    return render(images, params, plain, norm)


def make_views(
    views: Sequence[View],
    batch: Batch,
    *,
    seed: int,
    epoch: int,
    norm: Norm,
    device: torch.device | str,
    color: Color = "exact",
) -> dict[str, Tensor]:
    """Every view of a recipe for a batch.

    Args:
        views: The recipe's views.
        batch: Decoded images; pixels travel to ``device`` once, as uint8.
        seed: Seed of the run.
        epoch: Pass over the data set.
        norm: What the backbone expects.
        device: Where to make the pixels.
        color: As in ``render``.

    Returns:
        For each name float32 [V, B, C, S, S], V views in the order of the recipe.

    Raises:
        ValueError: If views of one name differ in size.
    """
    images = batch.images.to(device, non_blocking=True)
    b, c = images.shape[:2]
    every = [view for view in views for _ in range(view.count)]
    result: dict[str, Tensor] = {}
    for name in dict.fromkeys(view.name for view in every):
        same = {i: view for i, view in enumerate(every) if view.name == name}
        sides = {view.size for view in same.values()}
        if len(sides) > 1:
            raise ValueError(f"views named {name!r} are stacked: give them one size, not {sides}")
        side = sides.pop()
        result[name] = torch.empty(len(same), b, c, side, side, device=device)
        for out, (which, view) in zip(result[name], same.items(), strict=True):
            params = draw(
                view, seed=seed, epoch=epoch, index=batch.index, which=which, sizes=batch.sizes
            )
            render(images, params, view, norm, color=color, out=out)
    return result


def blur_side(view: View) -> int:
    """Side of the blur's kernel: ``blur_kernel * size`` rounded down, then up to an odd number.

    SimCLR's own rule (``random_blur`` in its ``data_util.py``): 23 at 224, 9 at 96, 3 at 32.
    """
    return max(3, int(view.blur_kernel * view.size) | 1)


@contextmanager
def _float32(device: torch.device) -> Iterator[None]:
    """Neither autocast nor products in TF32 or bfloat16: pixels would move by a hundredth."""
    # The stubs of torch do not know ``mkldnn.matmul``.
    settings = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision


def _change(x: Tensor, which: Tensor, change: Callable[..., Tensor], *args: Any) -> None:
    """Change the samples of ``x`` that ``which`` (bool [B], CPU) marks, in place."""
    if which.any():
        chosen = which.nonzero().squeeze(1)
        args = tuple(a[chosen].to(x.device) if isinstance(a, Tensor) else a for a in args)
        chosen = chosen.to(x.device, non_blocking=True)
        x.index_copy_(0, chosen, change(x.index_select(0, chosen), *args))


def _color_exact(x: Tensor, params: Params, view: View) -> None:
    """Colour jitter and grayscale of [B, 3, S, S], in place, operation by operation."""
    operations = (
        (BRIGHTNESS, ops.brightness, view.brightness),
        (CONTRAST, ops.contrast, view.contrast),
        (SATURATION, ops.saturation, view.saturation),
        (HUE, ops.hue, view.hue),
    )
    for slot in params.order.unbind(1):
        for number, operation, strength in operations:
            if strength:
                which = params.jitter & (slot == number)
                _change(x, which, operation, params.factors[:, number])
    _change(x, params.grayscale, ops.grayscale)


def _color_fast(x: Tensor, params: Params, view: View) -> None:
    """The same as one affine map of colours for each sample, clamped once, in place."""
    jitter, order, factors, gray = (
        p.to(x.device, non_blocking=True)
        for p in (params.jitter, params.order, params.factors, params.grayscale)
    )
    factors = torch.where(jitter[:, None], factors, factors.new_tensor([1.0, 1.0, 1.0, 0.0]))
    matrix = ops.color_matrix(x.mean(-1).mean(-1), order, factors, gray)
    flat = x.flatten(2)
    flat.copy_(torch.baddbmm(matrix[..., 3:], matrix[..., :3], flat).clamp_(0.0, 1.0))


def _normalize(x: Tensor, norm: Norm, out: Tensor) -> None:
    """Write ``(x - mean) / std`` to ``out``."""
    mean, std = (torch.tensor(v, device=x.device).view(-1, 1, 1) for v in norm)
    torch.addcmul(-mean / std, x, 1 / std, out=out)
