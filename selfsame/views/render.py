"""Make the pixels of views, a batch at a time, on the device that holds the images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from selfsame.reuse import Memory
from selfsame.types import Batch, Norm
from selfsame.views import ops
from selfsame.views.draw import CONTRAST, HUE, Params, draw
from selfsame.views.native import kernel, program
from selfsame.views.resample import resized_crop, small
from selfsame.views.spec import View
from selfsame.views.threads import spread

Color = Literal["exact", "fast"]
# Changes the colours of a part of the batch: float32 pixels of 0 to 1, the rows of the part.
Colors = Callable[[Tensor, slice], Tensor]

_PLAIN = Norm((0.0,), (1.0,))

# Bytes of float images that a core works on at once. Small ones go together, since to begin an
# operation costs more than to leave the cache; those above an eighth of it go one by one.
_PART = 2 << 20
_FEW = 4  # images for one call of the compiled pass: little work for one core alone at the end

_memory = Memory()  # of views: those of a step are gone when the next are made


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

    fast = color == "fast" and c == 3
    units = norm if fast else _PLAIN  # of the pixels while they change
    with torch.no_grad(), _float32(device):
        native = kernel() if device.type == "cpu" and c == 3 else None
        if native is not None:
            dense = small(images, size) or size == 1  # as ``resized_crop`` has it
            samples = program(params, view, units, norm, blur_side(view), fast, dense)
            part = max(part, min(share, _FEW))  # it goes image by image itself
        else:
            operations = _operations(params, view, units, norm, c, device, fast)

        def make(rows: slice) -> None:
            if native is not None:
                native(images[rows], samples[rows], out[rows])
                return
            box, mirror = params.box[rows], params.flip[rows]
            pixels = resized_crop(images[rows], box, size, view.interpolation, mirror)
            out[rows] = operations(pixels, rows)

        spread(make, [slice(i, i + part) for i in range(0, b, part)])
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
        shape = (len(same), b, c, side, side)
        on_cpu = images.device.type == "cpu"
        result[name] = (
            _memory.empty(shape, torch.float32) if on_cpu else torch.empty(shape, device=device)
        )
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


def _operations(
    params: Params,
    view: View,
    units: Norm,
    norm: Norm,
    channels: int,
    device: torch.device,
    fast: bool,
) -> Callable[[Tensor, slice], Tensor]:
    """What follows the resize, operation by operation: of pixels of 0 to 255, and their rows."""
    colors = (_fast_colors if fast else _exact_colors)(params, view, units, channels, device)
    levels = (view.solarize_threshold, 0.0, 1.0)
    threshold, black, white = (ops.scaled(level, units).to(device) for level in levels)

    def change(pixels: Tensor, rows: slice) -> Tensor:
        x = pixels.to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 255)
        x = colors(x, rows)
        _change(x, params.blur[rows], ops.gaussian_blur, params.sigma[rows], blur_side(view))
        _change(x, params.solarize[rows], lambda y: ops.solarize(y, threshold, ends=black + white))
        return x if units is norm else _normalize(x, norm)

    return change


def _exact_colors(
    params: Params, view: View, units: Norm, channels: int, device: torch.device
) -> Colors:
    """Jitter with torchvision's clamps after each operation, and grayscale.

    Brightness, contrast and saturation are affine maps of the colours, so that a whole batch goes
    through each of the four slots at once, whatever operation each sample has there; hue is not.
    """
    linear, lift = ops.color_steps(params.order, params.jitter, params.factors, channels)
    linear, lift = linear.to(device), lift.to(device)
    jitter = params.jitter[:, None]
    means = jitter & (params.order == CONTRAST)
    hues = jitter & (params.order == HUE) & (view.hue > 0 and channels == 3)
    maps = jitter & (params.order != HUE)

    def change(x: Tensor, rows: slice) -> Tensor:
        for slot in range(4):
            if maps[rows, slot].any():
                shift = lift[rows, slot]
                if means[rows, slot].any():
                    shift = shift * ops.mean_gray(x)
                flat = x.flatten(2)
                torch.clamp(torch.baddbmm(shift, linear[rows, slot], flat), 0.0, 1.0, out=flat)
            _change(x, hues[rows, slot], ops.hue, params.factors[rows, HUE])
        if channels == 3:
            _change(x, params.grayscale[rows], ops.grayscale)
        return x

    return change


def _fast_colors(
    params: Params, view: View, units: Norm, channels: int, device: torch.device
) -> Colors:
    """The same as one affine map of colours for each sample, clamped once, normalised on the way.

    What follows commutes with the normalisation: a blur's weights add up to 1.
    """
    matrix = ops.fast_colors(params.order, params.jitter, params.factors, params.grayscale, units)
    matrix = matrix.to(device)
    linear, of_mean, shift = matrix[:, :, :3], matrix[:, :, 3:6], matrix[:, :, 6:]
    ends = [ops.scaled(level, units).expand(channels, 1, 1).flatten().tolist() for level in (0, 1)]

    def change(x: Tensor, rows: slice) -> Tensor:
        color = x.mean(-1).mean(-1, keepdim=True)  # row by row, as in ``ops.mean_gray``
        color = torch.baddbmm(shift[rows], of_mean[rows], color)
        x = torch.baddbmm(color, linear[rows], x.flatten(2)).view_as(x)
        for plane, low, high in zip(x.unbind(1), *ends, strict=True):
            plane.clamp_(low, high)  # with a number for all it is six times as fast
        return x

    return change


def _normalize(x: Tensor, norm: Norm) -> Tensor:
    """Replace ``x`` by ``(x - mean) / std``, plane by plane: broadcasting is slow on a CPU."""
    ends = (torch.tensor(v).expand(x.shape[1]).tolist() for v in norm)
    for plane, mean, std in zip(x.unbind(1), *ends, strict=True):
        plane.sub_(mean).mul_(1 / std)
    return x
