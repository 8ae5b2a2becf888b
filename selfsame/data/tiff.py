"""TIFF files that Pillow cannot read or would misread: many channels, deep pixels, planes.

They are read with tifffile, which is optional.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFile

from selfsame.data.picture import MAX_PIXELS, Picture, picture
from selfsame.errors import Unreadable

if TYPE_CHECKING:
    from tifffile import TiffPage

_BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION = 258, 259, 262, 274
_SAMPLES, _PLANAR, _FORMAT = 277, 284, 339
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _INKS = 0, 1, 2, 5
_GRAY = (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
_PREMULTIPLIED, _OPACITY = 1, 2  # kinds of extra samples
_UNSIGNED = 1
# Start of a JPEG's frame: marker, length, 8 bits, height, width.
_FRAME = re.compile(rb"\xff[\xc0-\xc3]\0[\x08-\x14]\x08(..)(..)", re.DOTALL)
_TIP = "pip install 'selfsame[tiff]'"


def better_here(image: Image.Image, channels: int) -> bool:
    """Whether Pillow, which opened this image, would drop channels or give wrong values."""
    if image.format != "TIFF":
        return False
    return channels not in (1, 3) or many_channels(image) is not None or _misread(image)


def many_channels(image: Image.Image) -> int | None:
    """Channels of a TIFF file that Pillow opened, where they are not gray, RGB, inks or alpha.

    Pillow drops what follows the first one or three.
    """
    if image.format != "TIFF" or image.mode in ("LA", "La", "PA"):
        return None
    tags = _tags(image)
    samples, meaning = int(tags.get(_SAMPLES, 1)), tags.get(_PHOTOMETRIC)
    return None if samples in _plain(meaning) or meaning == _INKS else samples


def require_strips(image: Image.Image) -> None:
    """Check that the strips or tiles of an image that was opened cover all of it.

    Pillow leaves the rest black.

    Raises:
        Unreadable: Some are missing.
    """
    assert isinstance(image, ImageFile.ImageFile)
    boxes = [tile.extents for tile in image.tile if tile.extents]
    covered = sum((right - left) * (lower - upper) for left, upper, right, lower in boxes)
    planes = len(image.getbands()) if len(boxes) > 1 and _tags(image).get(_PLANAR) == 2 else 1
    if covered < image.width * image.height * planes:
        raise Unreadable("strips are missing")


def refuse_large_strips(data: bytes, compression: str) -> None:
    """Refuse a TIFF file whose strips are JPEGs that claim more pixels than there may be.

    A strip has a header of its own, which readers believe.

    Raises:
        Unreadable: There is one.
    """
    if "jpeg" in compression.lower():
        for frame in _FRAME.finditer(data):
            pixels = int.from_bytes(frame[1], "big") * int.from_bytes(frame[2], "big")
            if pixels > MAX_PIXELS:
                raise Unreadable(f"a strip of {pixels} pixels exceeds limit of {MAX_PIXELS} pixels")


def meant(image: Image.Image) -> np.ndarray:
    """Values of a loaded image of more than 8 bits and one channel.

    Of TIFF, Pillow gives unsigned integers of 32 bits as signed ones, and does not invert 16-bit
    gray whose white is zero.
    """
    values, tags = np.asarray(image), _tags(image)
    if image.format == "TIFF":
        if values.dtype == np.int32 and set(tags.get(_FORMAT, (_UNSIGNED,))) == {_UNSIGNED}:
            values = values.view(np.uint32)
        if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO and values.dtype.kind == "u":
            values = np.invert(values)
    return values


def shape_of(data: bytes) -> tuple[int, int, int | None]:
    """Height, width and ``many_channels`` of the first page, from the header alone.

    Raises:
        Unreadable: As ``read_tiff``.
    """
    with _page(data) as page:
        planes, _, height, width, samples = page.shaped
        own = planes * samples
        ordinary = own in _plain(page.photometric) or (own in (2, 4) and _has_alpha(page))
        return height, width, None if ordinary else own


def read_tiff(data: bytes, channels: int) -> Picture:
    """Read the first page of a TIFF file.

    Raises:
        Unreadable: The page is damaged or too large, or is neither gray, RGB nor plain channels,
            or not as many as asked for; or tifffile is not installed.
    """
    with _page(data) as page:
        _require_segments(page, data)
        values = page.asarray(squeeze=False, maxworkers=1)[:, 0]
        values = values[0] if len(values) == 1 else np.moveaxis(values[..., 0], 0, -1)
        if page.photometric == _WHITE_IS_ZERO and values.dtype.kind in "ub":
            values = np.invert(values)
        tag = page.tags.get(_ORIENTATION)
        orientation = int(tag.value) if tag is not None and tag.value in range(1, 9) else 1
        alpha = _has_alpha(page)
        if alpha and page.extrasamples[-1] == _PREMULTIPLIED and values.shape[2] != channels:
            raise Unreadable("deep pixels that are multiplied with their opacity")
        if page.photometric == _RGB and channels in (1, 3) and values.shape[2] == 4 and not alpha:
            values = values[..., :3]  # the fourth is unspecified, as in most RGB with filling
        return picture(values, channels, alpha=alpha, orientation=orientation)


def _require_segments(page: TiffPage, data: bytes) -> None:
    """Check that strips or tiles are there, as tifffile leaves the rest black."""
    ends, sizes = np.add(page.dataoffsets, page.databytecounts), page.databytecounts
    if len(ends) < max(1, int(np.prod(page.chunked))) or min(sizes) == 0:
        raise Unreadable("strips are missing")
    bits = np.prod(page.shaped, dtype=np.int64) * page.bitspersample
    if max(ends) > len(data) or (page.compression == 1 and sum(sizes) * 8 < bits):
        raise Unreadable("truncated")


@contextmanager
def _page(data: bytes) -> Iterator[TiffPage]:
    """Open the first page with tifffile; whatever it raises becomes ``Unreadable``."""
    try:
        import tifffile
    except ImportError:
        raise Unreadable(f"a TIFF that Pillow cannot read; {_TIP} reads it") from None
    try:
        with tifffile.TiffFile(BytesIO(data)) as file:
            page = file.pages.first
            _, depth, height, width, samples = page.shaped
            if page.photometric not in (*_GRAY, _RGB) or depth != 1:
                raise Unreadable("a TIFF of a kind that is not supported")
            if height * width * samples == 0:
                raise Unreadable("zero size")
            if height * width > MAX_PIXELS or page.nbytes > 4 * MAX_PIXELS:
                raise Unreadable(f"image size ({page.nbytes} bytes) exceeds the limit")
            refuse_large_strips(data, repr(page.compression))
            yield page
    except Unreadable:
        raise
    except Exception as error:
        first = str(error).split("\n")[0][:80] or type(error).__name__
        tip = f"; {_TIP} reads it" if "imagecodecs" in first else ""
        raise Unreadable(first + tip) from None


def _plain(photometric: int | None) -> tuple[int, ...]:
    """Numbers of samples that are gray or RGB, the latter with opacity or filling."""
    return (1, 3) if photometric in _GRAY else (1, 3, 4)


def _has_alpha(page: TiffPage) -> bool:
    return bool(page.extrasamples) and page.extrasamples[-1] in (_PREMULTIPLIED, _OPACITY)


def _misread(image: Image.Image) -> bool:
    """Whether Pillow (13.0) gives wrong values for a TIFF file.

    It takes uncompressed planes of 16 bits for 8, drops planes after the first of gray, and swaps
    the bytes of compressed big-endian integers of 32 bits, signed ones and floats.
    """
    tags = _tags(image)
    if tags.get(_PLANAR) == 2 and tags.get(_SAMPLES, 1) > 1:
        return tags.get(_PHOTOMETRIC) in _GRAY or max(tags.get(_BITS, (1,))) > 8
    compressed = tags.get(_COMPRESSION, 1) != 1
    return compressed and tags.prefix == b"MM" and image.mode in ("I", "F")


def _tags(image: Image.Image) -> Any:
    return getattr(image, "tag_v2", {})
