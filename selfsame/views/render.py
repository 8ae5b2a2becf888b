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
from selfsame.views.draw import CONTRAST, HUE, Params, draw
from selfsame.views.resample import resized_crop
from selfsame.views.spec import View
from selfsame.views.threads import spread

Color = Literal["exact", "fast"]
Colors = Callable[[Tensor, slice], None]  # changes samples in place: their pixels, their rows

# Bytes of float images that a core works on at once. Small ones go together, since to begin an
# operation costs more than to leave the cache; those above an eighth of it go one by one.
_PART = 2 << 20


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
    blur, solarise, normalise. Without three channels, saturation, hue and grayscale are left out.
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
    b, c = images.shape[:2]
    size, device = view.size, images.device
    if out is None:
        out = torch.empty(b, c, size, size, device=device)
    if b == 0:
        return out
    part = b
    if device.type == "cpu":
        each, share = 4 * c * size**2, math.ceil(b / torch.get_num_threads())
        part = min(share, _PART // each) if 8 * each <= _PART else 1
    parts = [slice(i, i + part) for i in range(0, b, part)]

    def resize(rows: slice) -> Tensor:
        box, mirror = params.box[rows], params.flip[rows]
        return resized_crop(images[rows], box, size, view.interpolation, mirror)

    with torch.no_grad(), _float32(device):
        small = spread(resize, parts)
        change_colors = _fast_colors if color == "fast" and c == 3 else _exact_colors
        colors = change_colors(small, params, view)

        def finish(k: int) -> None:
            rows = parts[k]
            x = _floats(small[k])
            colors(x, rows)
            _change(x, params.blur[rows], ops.gaussian_blur, params.sigma[rows], blur_side(view))
            _change(x, params.solarize[rows], ops.solarize, view.solarize_threshold)
            _normalize(x, norm, out[rows])

        spread(finish, range(len(parts)))
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


def _floats(x: Tensor) -> Tensor:
    """Values of 0 to 255 as float32 of 0 to 1; float32 is changed in place."""
    return x.to(torch.float32).mul_(1 / 255)


def _change(x: Tensor, which: Tensor, change: Callable[..., Tensor], *args: Any) -> None:
    """Change the samples of ``x`` that ``which`` (bool [B], CPU) marks, in place."""
    if not which.any():
        return
    if which.all():
        args = tuple(a.to(x.device) if isinstance(a, Tensor) else a for a in args)
        x.copy_(change(x, *args))
    else:
        rows = which.nonzero().squeeze(1)
        args = tuple(a[rows].to(x.device) if isinstance(a, Tensor) else a for a in args)
        rows = rows.to(x.device, non_blocking=True)
        x.index_copy_(0, rows, change(x.index_select(0, rows), *args))


def _exact_colors(small: Sequence[Tensor], params: Params, view: View) -> Colors:
    """Jitter with torchvision's clamps after each operation, and grayscale.

    Brightness, contrast and saturation are affine maps of the colours, so that a whole batch goes
    through each of the four slots at once, whatever operation each sample has there; hue is not.
    """
    channels, device = small[0].shape[1], small[0].device
    linear, lift = ops.color_steps(params.order, params.jitter, params.factors, channels)
    linear, lift = linear.to(device), lift.to(device)
    jitter = params.jitter[:, None]
    means = jitter & (params.order == CONTRAST)
    hues = jitter & (params.order == HUE) & (view.hue > 0 and channels == 3)
    maps = jitter & (params.order != HUE)

    def change(x: Tensor, rows: slice) -> None:
        for slot in range(4):
            if maps[rows, slot].any():
                shift = lift[rows, slot]
                if means[rows, slot].any():
                    shift = shift * ops.mean_gray(x)
                _map_colors(x, linear[rows, slot], shift)
            _change(x, hues[rows, slot], ops.hue, params.factors[rows, HUE])
        if channels == 3:
            _change(x, params.grayscale[rows], ops.grayscale)

    return change


def _fast_colors(small: Sequence[Tensor], params: Params, view: View) -> Colors:
    """The same as one affine map of colours for each sample, clamped once."""
    mean = torch.cat(spread(lambda x: x.to(torch.float32).mean(-1).mean(-1), small)) / 255
    order, factors, gray = (
        p.to(mean.device, non_blocking=True)
        for p in (params.order, params.factors, params.grayscale)
    )
    still = factors.new_tensor([1.0, 1.0, 1.0, 0.0])
    factors = torch.where(params.jitter.to(mean.device)[:, None], factors, still)
    matrix = ops.color_matrix(mean, order, factors, gray)

    def change(x: Tensor, rows: slice) -> None:
        _map_colors(x, matrix[rows, :, :3], matrix[rows, :, 3:])

    return change


def _map_colors(x: Tensor, linear: Tensor, shift: Tensor) -> None:
    """Apply an affine map of colours to each sample of [B, C, S, S], in place, and clamp."""
    flat = x.flatten(2)
    torch.clamp(torch.baddbmm(shift, linear, flat), 0.0, 1.0, out=flat)


def _normalize(x: Tensor, norm: Norm, out: Tensor) -> None:
    """Write ``(x - mean) / std`` to ``out``."""
    mean, std = (torch.tensor(v, device=x.device).view(-1, 1, 1) for v in norm)
    torch.sub(x, mean, out=out).mul_(1 / std)
