"""Files that are really written: a small picture in every format and mode that decode knows."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import tifffile
from PIL import Image


def file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def photo(width: int = 60, height: int = 40) -> Image.Image:
    """A smooth picture, which lossy formats keep well."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = [x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)]
    return Image.fromarray(np.stack(pixels, -1).astype(np.uint8))


def png(
    pixels: np.ndarray, bits: int, colour: int, *chunks: tuple[bytes, bytes], width: int = 0
) -> bytes:
    """Write a PNG of any depth and colour type: 0 gray, 2 RGB, 3 palette, 4 gray and 6 RGB alpha.

    ``pixels`` is [H, ...]; of less than 8 bits its rows are packed already, ``width`` pixels wide.
    """
    rows = pixels.reshape(len(pixels), -1).astype(">u2" if bits == 16 else np.uint8)
    width = width or pixels.shape[1]
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, len(pixels), bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
        for kind, part in ((b"IHDR", header), *chunks, (b"IDAT", body), (b"IEND", b""))
    )


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, **{"metadata": None, "photometric": "minisblack", **options})
    return out.getvalue()


def every_format() -> dict[str, bytes]:
    """Files by name; all hold ``photo(24, 16)`` or something of its size."""
    image = photo(24, 16)
    gray, palette, rgba = image.convert("L"), image.quantize(16), image.convert("RGBA")
    rgba.putalpha(gray)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    frames = [image, image.transpose(Image.Transpose.ROTATE_180)]
    animated: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    deep = np.asarray(image).astype(np.uint16) * 257
    files = {
        "baseline.jpg": file(image, "JPEG"),
        "exif.jpg": file(image, "JPEG", exif=exif),
        "gray.jpg": file(gray, "JPEG"),
        "progressive.jpg": file(image, "JPEG", progressive=True),
        "restart.jpg": file(image, "JPEG", restart_marker_blocks=1),
        "cmyk.jpg": file(image.convert("CMYK"), "JPEG"),
        "rgb.png": file(image),
        "rgba.png": file(rgba, exif=exif),
        "palette.png": file(palette, transparency=3),
        "1bit.png": file(image.convert("1")),
        "gray16.png": file(Image.fromarray(deep[..., 0])),
        "rgb16.png": png(deep, 16, 2),
        "la16.png": png(deep[..., :2], 16, 4),
        "animated.png": file(image, "PNG", **animated),
        "lossy.webp": file(image, "WEBP"),
        "lossless.webp": file(rgba, "WEBP", lossless=True, exif=exif),
        "animated.webp": file(image, "WEBP", **animated),
        "plain.avif": file(image, "AVIF", speed=10),
        "alpha.avif": file(rgba, "AVIF", speed=10, exif=exif),
        "plain.gif": file(palette, "GIF", transparency=2),
        "animated.gif": file(palette, "GIF", **animated),
        "rgb.bmp": file(image, "BMP"),
        "palette.bmp": file(palette, "BMP"),
        "raw.tif": file(image, "TIFF", exif=exif),
        "gray16.tif": file(Image.fromarray(deep[..., 0]), "TIFF"),
        "lab.tif": file(Image.frombytes("LAB", (24, 16), image.tobytes()), "TIFF"),
        "rgb.ppm": file(image, "PPM"),
        "float.pfm": file(Image.fromarray(deep[..., 0].astype(np.float32)), "PPM"),
        "plain.jp2": file(image, "JPEG2000"),
        "plain.ico": file(image, "ICO", sizes=[(16, 16)]),
        "plain.qoi": file(image, "QOI"),
        "plain.pcx": file(image, "PCX"),
        "plain.sgi": file(image, "SGI"),
        "rle.tga": file(image, "TGA", compression="tga_rle"),
        "rgb16.tif": tiff(deep, photometric="rgb"),
        "planes.tif": tiff(np.moveaxis(deep, -1, 0), planarconfig="separate"),
        "five.tif": tiff(np.repeat(deep, 2, 2)[..., :5], planarconfig="contig", compression="zlib"),
        "double.tif": tiff(deep / 65535, photometric="rgb", byteorder=">"),
        "big.tif": tiff(deep[..., :2], planarconfig="contig", bigtiff=True),
    }
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        files[f"{compression}.tif"] = file(image, "TIFF", compression=compression)
    files["group4.tif"] = file(image.convert("1"), "TIFF", compression="group4")
    return files
