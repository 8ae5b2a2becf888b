"""What the readers of files hand to ``decode``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from selfsame.data.levels import to_8_bit
from selfsame.errors import Unreadable

MAX_PIXELS = 178_956_970  # a quarter of a gigabyte as 24-bit RGB, times two: Pillow's own limit

_STRIP = 2**20  # pixels


class Picture(NamedTuple):
    """One picture before scaling."""

    values: np.ndarray  # [H, W] or [H, W, C], of any type: gray, RGB, or the channels asked for
    alpha: np.ndarray | None  # uint8 [H, W], where it is not yet laid over white
    size: tuple[int, int]  # full height and width; a JPEG may be reduced already
    orientation: int = 1  # of EXIF, 1 to 8; not yet applied


def picture(values: np.ndarray, channels: int, *, alpha: bool, orientation: int = 1) -> Picture:
    """Take the channels that are asked for from pixels [H, W] or [H, W, C].

    Args:
        values: As stored.
        channels: All of them, or 1 or 3: then they are gray or RGB, and with ``alpha`` the last
            of two or four is opacity.
        alpha: Whether there may be opacity.
        orientation: Of EXIF.

    Raises:
        Unreadable: There are others.
    """
    if values.size == 0:
        raise Unreadable("zero size")
    shape, opacity = values.shape, None
    own = shape[2] if len(shape) == 3 else 1
    if alpha and own in (2, 4) and own != channels:
        values, opacity = values[..., :-1], to_8_bit(values[..., -1])
        own -= 1
    if own != channels and not (channels in (1, 3) and own in (1, 3)):
        raise Unreadable(f"an image of shape {shape} does not give {channels} channels")
    if values.ndim == 3 and own == 1:
        values = values[..., 0]
    return Picture(values, opacity, values.shape[:2], orientation)


def fitting(size: tuple[int, int], canvas: int) -> tuple[int, int]:
    """Height and width of a picture scaled down to fit in the canvas, in pixels."""
    longer = max(canvas, *size)
    return max(1, round(size[0] * canvas / longer)), max(1, round(size[1] * canvas / longer))


def strips(height: int, width: int) -> Iterator[slice]:
    """Rows in parts of about a million pixels, so that copies of a large picture stay small."""
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))
