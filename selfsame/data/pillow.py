"""Pillow, made strict and exact: every format but the common JPEG."""

from __future__ import annotations

import logging
import re
import sys
import threading
import warnings
from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError

from selfsame.data import exif, tiff
from selfsame.data.jpeg import is_jpeg
from selfsame.data.levels import to_8_bit
from selfsame.data.picture import MAX_PIXELS, Picture, fitting, picture, strips
from selfsame.errors import Unreadable

# Pillow's other formats are left out: EPS starts another program, the rest are not photographs.
# TGA has no signature, so it comes last.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000"),
    *("ICO", "PSD", "QOI", "PCX", "SGI", "TGA"),
)

_SIGNATURES = (
    b"\xff\xd8\xff",
    b"\x89PNG",
    b"GIF8",
    b"BM",
    *exif.MAGIC,
    b"RIFF",
    b"\0\0\0\x0c",
)

_FEW_BITS = {"L;2": 85, "L;4": 17}  # the largest gray of 2 and 4 bits, times this, is 255
_SEVERAL_16_BIT = re.compile(r"(LA|RGB|RGBA|RGBX);16[BLN]")
_SWAPPED = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}

for _name in ("PIL", "tifffile"):  # what they log about damaged files is in our reasons
    logging.getLogger(_name).addHandler(logging.NullHandler())


def open_image(data: bytes) -> Image.Image | None:
    """Read the header only; None for a TIFF file of a kind that Pillow does not know.

    Raises:
        Unreadable: The header is not that of a picture, or says that it is too large.
    """
    ignore_warnings()
    # Pillow reads these directories, value by value, while it opens a file.
    if exif.overlong(data, anywhere=is_jpeg(data) or data[4:8] == b"ftyp"):
        raise Unreadable("its tags claim far more than the file holds")
    if data[8:16] == b"WEBPVP8X":  # Pillow before 13.0 takes the memory first
        _limit(*(1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27)))
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except Exception as error:
        if isinstance(error, UnidentifiedImageError) and data.startswith(exif.MAGIC):
            return None
        raise Unreadable(_reason(error, data)) from None
    _limit(image.width, image.height)
    if image.format == "TIFF":
        tiff.refuse_large_strips(data, str(image.info.get("compression")))
    return image


def _limit(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        size = f"image size ({width * height} pixels)"
        raise Unreadable(f"{size} exceeds limit of {MAX_PIXELS} pixels")


def read_image(data: bytes, image: Image.Image, canvas: int, channels: int) -> Picture:
    """Decode an image that was opened.

    Raises:
        Unreadable: It is damaged, or has no such channels.
    """
    full, raw_mode = (image.height, image.width), _raw_mode(image)
    try:
        if image.format == "TIFF":
            tiff.require_strips(image)
        if _SEVERAL_16_BIT.fullmatch(raw_mode):
            read = picture(_both_bytes(data, image, raw_mode), channels, alpha=True)
        elif channels not in (1, 3) and image.mode in ("LA", "RGBA", "CMYK"):
            read = picture(np.asarray(image), channels, alpha=False)
        else:
            if max(full) >= 2 * canvas:
                # Of JPEG, decode 1/2, 1/4 or 1/8 of the size, never less than what is kept.
                image.draft(None, fitting(full, canvas)[::-1])
            image.load()
            values = tiff.meant(image) if deep(image) else _flat(image, raw_mode)
            read = picture(values, channels, alpha=False)
        if image.format == "PNG" and read.values.dtype == np.uint16:
            read = _keyed(read, image.info.get("transparency"))
        if image.format in ("JPEG", "MPO"):
            read = read._replace(size=full)
        # PNG may have its EXIF after its pixels; TIFF turns itself upright while loading.
        return read if image.format == "TIFF" else read._replace(orientation=_orientation(image))
    except Unreadable:
        raise
    except Exception as error:  # a damaged file can make a decoder raise anything at all
        raise Unreadable(_reason(error, data)) from None


def deep(image: Image.Image) -> bool:
    """Whether an image that was opened has more than 8 bits."""
    return (
        image.mode in ("I", "F")
        or image.mode.startswith("I;16")
        or _SEVERAL_16_BIT.fullmatch(_raw_mode(image)) is not None
        or tiff.better_here(image, channels=3)
    )


def flatten(image: Image.Image) -> Image.Image:
    """Turn a Pillow image of any mode into 8-bit gray ("L") or "RGB", as ``decode`` does."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(to_8_bit(np.asarray(image)))
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        return page.convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # None is for in-place conversion only
        return converted
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _flat(image: Image.Image, raw_mode: str) -> np.ndarray:
    """Pixels of a loaded 8-bit image, uint8 [H, W] or [H, W, 3]."""
    clear = image.info.get("transparency")
    if raw_mode in _FEW_BITS and isinstance(clear, int):
        image.info["transparency"] = clear * _FEW_BITS[raw_mode]  # Pillow scales the pixels only
    return _in_strips(image, flatten)


def _in_strips(
    image: Image.Image, change: Callable[[Image.Image], Image.Image] = lambda part: part
) -> np.ndarray:
    """Pixels of a loaded image after a change that goes pixel by pixel."""
    pixels = None
    for rows in strips(image.height, image.width):
        part = np.asarray(change(image.crop((0, rows.start, image.width, rows.stop))))
        if pixels is None:
            pixels = np.empty((image.height, *part.shape[1:]), part.dtype)
        pixels[rows] = part
    assert pixels is not None  # Pillow opens no image without rows
    return pixels


def _keyed(read: Picture, key: int | tuple[int, ...] | None) -> Picture:
    """Take pixels of the colour ``key`` for transparent, which Pillow does for 8 bits only."""
    if key is None:
        return read
    clear = read.values == np.array(key)
    clear = clear.all(2) if clear.ndim == 3 else clear
    return read._replace(alpha=np.where(clear, 0, 255).astype(np.uint8))


def _both_bytes(data: bytes, image: Image.Image, raw_mode: str) -> np.ndarray:
    """Pixels of 16 bits and several channels, uint16 [H, W, C]; Pillow keeps the high bytes alone.

    Read a second time as if the bytes were swapped, it keeps the low ones.
    """
    if raw_mode.startswith("LA"):
        pairs = _unpacked(image, "RGBA")  # both bytes of gray, both of opacity
        high, low = pairs[..., 0::2], pairs[..., 1::2]
    else:
        again = open_image(data)
        assert again is not None  # as before
        low = _unpacked(again, raw_mode[:-1] + _SWAPPED[raw_mode[-1]])
        high = _unpacked(image, raw_mode)
    both = high.astype(np.uint16)
    both <<= 8
    both |= low
    return both


def _unpacked(image: Image.Image, raw_mode: str) -> np.ndarray:
    """Decode with another of Pillow's ways to take pixels out of bytes."""
    assert isinstance(image, ImageFile.ImageFile)
    tiles = []
    for tile in image.tile:
        rest = tile.args[1:] if isinstance(tile.args, tuple) else None
        tiles.append(tile._replace(args=raw_mode if rest is None else (raw_mode, *rest)))
    image.tile = tiles
    image.load()
    return _in_strips(image)


def _raw_mode(image: Image.Image) -> str:
    """How Pillow takes pixels out of the bytes of a PNG or TIFF file; empty once it is loaded."""
    if not isinstance(image, ImageFile.ImageFile) or image.format not in ("PNG", "TIFF"):
        return ""
    args = image.tile[0].args if image.tile else ""
    return str(args[0] if isinstance(args, tuple) else args)


def _orientation(image: Image.Image) -> int:
    info = image.info
    try:
        profile = info.get("Raw profile type exif", "")  # how ImageMagick wrote it once
        block = info.get("exif") or bytes.fromhex("".join(profile.split("\n")[3:]))
        xmp = info.get("xmp") or info.get("XML:com.adobe.xmp", "").encode()
        return exif.orientation(block, xmp)
    except Exception:  # damaged EXIF says nothing about the pixels
        return 1


def _reason(error: Exception, data: bytes) -> str:
    """Say in a few words why a file could not be read."""
    if not data:
        return "empty file (0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        start = re.sub(r"[^ -~]", "?", data[:12].decode("latin-1"))
        if data[4:8] == b"ftyp" and not data[8:12].startswith(b"avi"):
            return f"HEIC, or another format that is not supported (starts with '{start}')"
        known = data.startswith(_SIGNATURES) or data[4:8] == b"ftyp"
        return f"{'damaged header' if known else 'not an image'} (starts with '{start}')"
    if isinstance(error, Image.DecompressionBombError):
        return str(error).split(",")[0].replace("Image", "image", 1)
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    if str(error) == "cannot load this image":
        return "holds no pixels"
    if "truncated" in str(error).lower() or isinstance(error, EOFError):
        return "truncated"
    first = str(error).split("\n")[0][:100]
    return first or type(error).__name__


_QUIET = re.compile(r"PIL\.")
_quiet_lock = threading.Lock()


def ignore_warnings() -> None:
    """Add one filter for warnings raised inside Pillow, where it is not there yet.

    ``warnings.catch_warnings`` swaps the filters of the whole process and is not safe in threads.
    """
    with _quiet_lock:
        if not any(item[3] == _QUIET for item in warnings.filters):
            warnings.filterwarnings("ignore", module=_QUIET.pattern)
