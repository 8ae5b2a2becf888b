"""From the bytes of one image file, or an array, to uint8 pixels that fit in a square canvas.

The whole picture is kept, its shape is kept, and it is only ever scaled down. What each kind of
picture becomes:

- EXIF (or XMP) orientation is applied.
- Transparent pixels are laid over white, as on a page.
- Palettes, CMYK, YCbCr, HSV and LAB become RGB; RGB becomes gray by ITU-R 601-2 luma when one
  channel is asked for.
- More than 8 bits are scaled as ``levels`` says (``levels.py``); where it says nothing, the full
  range of 16 bits, or 0..1 of floats, becomes 0..255.
- Animations give their first frame, TIFF files their first page.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import interpolate

from selfsame.data import pillow, tiff
from selfsame.data.jpeg import is_jpeg, read_jpeg
from selfsame.data.levels import Levels, to_8_bit
from selfsame.data.picture import Picture, fitting, picture, strips
from selfsame.data.pillow import flatten
from selfsame.errors import Unreadable

__all__ = [
    "Levels",
    "Unreadable",
    "decode",
    "flatten",
    "own_channels",
    "picture_size",
    "raw_values",
]

_LUMA = np.array([19595, 38470, 7471], np.uint32)  # ITU-R 601-2 in 65536ths, as Pillow rounds it


def decode(
    data: bytes | np.ndarray, *, canvas: int, channels: int = 3, levels: Levels | None = None
) -> np.ndarray:
    """Decode one picture so that it fits in a square canvas.

    Args:
        data: An encoded image file, or pixels [H, W] or [H, W, C] of any type of number.
        canvas: Side in pixels. A larger picture is scaled down, antialiased, until its longer
            side is the canvas; a smaller one is left as it is.
        channels: 3 for RGB, 1 for gray. Any other number is taken as it is, from an array or a
            file that has just so many.
        levels: Raw values that become 0 and 255 in pictures of more than 8 bits. A picture with
            values outside has its own minimum..maximum mapped: nothing is clipped.

    Returns:
        uint8 [channels, h, w] with max(h, w) <= canvas; not always contiguous, and a view of
        ``data`` where nothing had to be changed.

    Raises:
        Unreadable: The picture is damaged, empty, too large, or not a picture.
    """
    values, alpha, size, orientation = _read(data, canvas, channels)
    pixels = to_8_bit(values, levels)
    if alpha is not None:
        pixels = _over_white(pixels, alpha)
    pixels = _resize(pixels, fitting(size, canvas))
    if channels == 1 and pixels.ndim == 3:
        pixels = ((pixels @ _LUMA + np.uint32(32768)) >> np.uint32(16)).astype(np.uint8)
    if orientation != 1:
        pixels = _upright(pixels, orientation)
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return np.broadcast_to(planes, (channels, *planes.shape[1:]))  # gray is repeated


def picture_size(data: bytes | np.ndarray) -> tuple[int, int]:
    """Height and width in pixels, from the header alone (before any orientation is applied).

    Raises:
        Unreadable: The header is not that of a picture, or says that it is too large.
    """
    if isinstance(data, np.ndarray):
        return data.shape[0], data.shape[1]
    image = pillow.open_image(data)
    return tiff.shape_of(data)[:2] if image is None else (image.height, image.width)


def own_channels(data: bytes | np.ndarray) -> int | None:
    """Channels of an array or TIFF file that are neither gray nor RGB, nor either with alpha.

    Raises:
        Unreadable: As ``picture_size``.
    """
    if isinstance(data, np.ndarray):
        return data.shape[2] if data.ndim == 3 and data.shape[2] not in (1, 3, 4) else None
    image = pillow.open_image(data)
    return tiff.shape_of(data)[2] if image is None else tiff.many_channels(image)


def raw_values(data: bytes | np.ndarray) -> np.ndarray | None:
    """Values of a picture of more than 8 bits, as they are before scaling; None for 8 bits.

    Raises:
        Unreadable: As ``decode``.
    """
    if not isinstance(data, np.ndarray):
        if is_jpeg(data):
            return None
        image = pillow.open_image(data)
        if image is not None and not pillow.deep(image):
            return None
    values = _read(data, max(picture_size(data)), own_channels(data) or 3).values
    return None if values.dtype in (np.uint8, np.bool_) else values


def _read(data: bytes | np.ndarray, canvas: int, channels: int) -> Picture:
    if isinstance(data, np.ndarray):
        if data.ndim not in (2, 3):
            raise Unreadable(f"an array of shape {data.shape} is not an image")
        return picture(data, channels, alpha=True)
    if channels in (1, 3):
        jpeg = read_jpeg(data, canvas)
        if jpeg is not None:
            return jpeg
    image = pillow.open_image(data)
    if image is None or tiff.better_here(image, channels):
        return tiff.read_tiff(data, channels)
    return pillow.read_image(data, image, canvas, channels)


def _over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    page = np.empty_like(pixels)
    opacity = alpha.reshape(*alpha.shape, *[1] * (pixels.ndim - 2))
    for rows in strips(*alpha.shape):
        a = opacity[rows].astype(np.uint16)
        page[rows] = (pixels[rows] * a + 255 * (255 - a) + 127) // 255
    return page


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation of 2 to 8."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale [H, W] or [H, W, C] down with PyTorch's antialiased bicubic filter for uint8.

    It is Pillow's filter with weights of 16 bits: one level apart in 0.4 % of the values of
    photos, hardly ever two; a fifth of the time.
    """
    if pixels.shape[:2] == size:
        return pixels
    rgb = pixels.ndim == 3 and pixels.shape[2] == 3  # the rest goes plane by plane, which is faster
    planes = pixels[None] if rgb else np.moveaxis(np.atleast_3d(pixels), 2, 0)[..., None]
    # PyTorch warns of arrays that cannot be written.
    batch = torch.from_numpy(np.require(planes, requirements=("C", "W"))).permute(0, 3, 1, 2)
    scaled: np.ndarray = interpolate(batch, size=size, mode="bicubic", antialias=True).numpy()
    shape = (*size, *pixels.shape[2:])
    return np.moveaxis(scaled[0] if rgb else scaled[:, 0], 0, -1).reshape(shape)
