"""From the bytes of one image file, or an array, to uint8 pixels that fit in a square canvas.

The whole picture is kept, its shape is kept, and it is only ever scaled down. What each kind of
picture becomes:

- EXIF (or XMP) orientation is applied.
- Transparent pixels are laid over white, as on a page.
- Palettes, CMYK, YCbCr, HSV and LAB become RGB; RGB becomes gray by ITU-R 601-2 luma when one
  channel is asked for.
- Integers of more than 8 bits: the full 16-bit range 0..65535 maps to 0..255. A picture with any
  value outside that range has its own minimum..maximum mapped to 0..255.
- Floats: a picture within 0..1 maps 0..1 to 0..255; any other has its own minimum..maximum mapped.
  NaN or infinity make it unreadable.
- Animations give their first frame.
"""

from __future__ import annotations

import re
import threading
import warnings
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from selfsame.errors import SelfsameError

MAX_PIXELS = 178_956_970  # a quarter of a gigabyte as 24-bit RGB, times two: Pillow's own limit

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
    b"II*\0",
    b"MM\0*",
    b"RIFF",
    b"\0\0\0\x0c",
)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112

_FROM_16_BIT = np.rint(np.arange(65536) * 255 / 65535).astype(np.uint8)


class Unreadable(SelfsameError):  # noqa: N818
    """One picture that cannot be decoded; the message is a short reason."""


def decode(data: bytes | np.ndarray, *, canvas: int, channels: int = 3) -> np.ndarray:
    """Decode one picture so that it fits in a square canvas.

    Args:
        data: An encoded image file, or pixels [H, W] or [H, W, C] (8-bit, or scaled as above).
        canvas: Side in pixels. A larger picture is scaled down, antialiased, until its longer
            side is the canvas; a smaller one is left as it is.
        channels: 3 for RGB, 1 for gray. Arrays may have any other number, taken as they are.

    Returns:
        uint8 [channels, h, w] with max(h, w) <= canvas; not always contiguous.

    Raises:
        Unreadable: The picture is damaged, empty, too large, or not a picture.
    """
    if isinstance(data, np.ndarray):
        planes = _planes(data, channels)
        if planes is not None:
            size = _fitting(planes[0].size, canvas)
            return np.stack([np.asarray(_resize(plane, size)) for plane in planes])
        image, orientation = _from_array(data, channels), 1
        size = _fitting(image.size, canvas)
    elif channels not in (1, 3):
        raise Unreadable(f"an image file gives 1 or 3 channels, not {channels}")
    else:
        image, size, orientation = _load(data, canvas)
    image = _resize(image, size).convert("RGB" if channels == 3 else "L")
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def picture_size(data: bytes | np.ndarray) -> tuple[int, int]:
    """Height and width in pixels, from the header alone (before any orientation is applied).

    Raises:
        Unreadable: The header is not that of a picture, or says that it is too large.
    """
    if isinstance(data, np.ndarray):
        return data.shape[0], data.shape[1]
    width, height = _open(data).size
    return height, width


def flatten(image: Image.Image) -> Image.Image:
    """Turn a Pillow image of any mode into 8-bit gray ("L") or "RGB", by the rules above."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bit(np.asarray(image)))
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


def _open(data: bytes) -> Image.Image:
    """Read the header only; refuse what is too large before any pixel is decoded."""
    _ignore_pillow_warnings()
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except Exception as error:
        raise Unreadable(_reason(error, data)) from None
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise Unreadable(f"image size ({pixels} pixels) exceeds limit of {MAX_PIXELS} pixels")
    return image


def _load(data: bytes, canvas: int) -> tuple[Image.Image, tuple[int, int], int]:
    """Decode to gray or RGB; the size to scale it to, width first; and its EXIF orientation."""
    image = _open(data)
    size = _fitting(image.size, canvas)
    try:
        if max(image.size) >= 2 * canvas:
            # Of JPEG, decode 1/2, 1/4 or 1/8 of the size, never less than what is kept.
            image.draft(None, size)
        image.load()
        # TIFF turns itself upright while loading; PNG may have its EXIF after its pixels.
        orientation = _orientation(image)
        return flatten(image), size, orientation
    except Unreadable:
        raise
    except Exception as error:  # a damaged file can make a decoder raise anything at all
        raise Unreadable(_reason(error, data)) from None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF says nothing about the pixels
        return 1


def _fitting(size: tuple[int, int], canvas: int) -> tuple[int, int]:
    """Width and height of a picture scaled down to fit in the canvas, in pixels."""
    longer = max(canvas, *size)
    return max(1, round(size[0] * canvas / longer)), max(1, round(size[1] * canvas / longer))


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def _planes(array: np.ndarray, channels: int) -> list[Image.Image] | None:
    """Channels as separate images, where they are not gray or RGB and need no conversion."""
    if channels in (1, 3) or array.ndim != 3 or array.shape[2] != channels or array.size == 0:
        return None
    pixels = _to_8_bit(array)
    return [Image.fromarray(np.ascontiguousarray(pixels[..., c])) for c in range(channels)]


def _from_array(array: np.ndarray, channels: int) -> Image.Image:
    if array.size == 0:
        raise Unreadable("zero size")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if channels not in (1, 3) or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] < 5)):
        raise Unreadable(f"an array of shape {array.shape} does not give {channels} channels")
    return flatten(Image.fromarray(np.ascontiguousarray(_to_8_bit(array))))


def _to_8_bit(array: np.ndarray) -> np.ndarray:
    """Scale pixels of any type to uint8 by the rules at the top of this file."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "u" and array.itemsize == 2:
        return np.take(_FROM_16_BIT, array)
    if array.dtype.kind not in "uif":
        raise Unreadable(f"pixels of type {array.dtype} are not numbers")
    if not np.isfinite(array).all():
        raise Unreadable("holds NaN or infinity")
    low, high = float(array.min()), float(array.max())
    natural = 1.0 if array.dtype.kind == "f" else 65535.0
    if low >= 0 and high <= natural:
        low, high = 0.0, natural
    span = (high - low) or 1.0
    scaled: np.ndarray = np.rint((array.astype(np.float64) - low) * 255 / span).astype(np.uint8)
    return scaled


def _reason(error: Exception, data: bytes) -> str:
    """Say in a few words why a file could not be read."""
    if not data:
        return "empty file (0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        start = re.sub(r"[^ -~]", "?", data[:12].decode("latin-1"))
        if data[4:8] == b"ftyp":
            return f"HEIC, or another format that is not supported (starts with '{start}')"
        known = data.startswith(_SIGNATURES)
        return f"{'damaged header' if known else 'not an image'} (starts with '{start}')"
    if isinstance(error, Image.DecompressionBombError):
        return str(error).split(",")[0].replace("Image", "image", 1)
    if "truncated" in str(error).lower() or isinstance(error, EOFError):
        return "truncated"
    first = str(error).split("\n")[0][:100]
    return first or type(error).__name__


_QUIET = re.compile(r"PIL\.")
_quiet_lock = threading.Lock()


def _ignore_pillow_warnings() -> None:
    """Add one filter for warnings raised inside Pillow, where it is not there yet.

    ``warnings.catch_warnings`` swaps the filters of the whole process and is not safe in threads.
    """
    with _quiet_lock:
        if not any(item[3] == _QUIET for item in warnings.filters):
            warnings.filterwarnings("ignore", module=_QUIET.pattern)
