from __future__ import annotations

import csv
import io
import os
import struct
import tarfile
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selfsame.data.decode import MAX_PIXELS, Unreadable, decode, picture_size

RNG = np.random.default_rng(0)


def file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def photo(width: int = 60, height: int = 40) -> Image.Image:
    """A smooth picture, which JPEG keeps well."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(
        np.stack(
            [x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1
        ).astype(np.uint8)
    )


def hwc(data: bytes | np.ndarray, canvas: int = 64, channels: int = 3) -> np.ndarray:
    return decode(data, canvas=canvas, channels=channels).transpose(1, 2, 0)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("WEBP", {"lossless": True}),
        ("PPM", {}),
        ("TGA", {}),
        ("QOI", {}),
        ("JPEG2000", {}),
    ],
)
def test_lossless_formats_keep_every_pixel(kind: str, options: dict[str, Any]) -> None:
    image = photo()
    np.testing.assert_array_equal(hwc(file(image, kind, **options)), np.asarray(image))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_lossy_formats(kind: str) -> None:
    image = photo()
    got = hwc(file(image, kind, quality=95)).astype(int)
    assert np.abs(got - np.asarray(image)).mean() < 3


def test_gray_and_rgb_convert_into_each_other() -> None:
    gray = RNG.integers(0, 256, (9, 7), np.uint8)
    three = decode(file(Image.fromarray(gray)), canvas=16)
    assert three.shape == (3, 9, 7)
    assert (three == gray).all()
    rgb = np.zeros((1, 3, 3), np.uint8)
    rgb[0, [0, 1, 2], [0, 1, 2]] = 255
    assert decode(file(Image.fromarray(rgb)), canvas=16, channels=1).tolist() == [[[76, 150, 29]]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_exif_orientation(kind: str, orientation: int) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12] = 255  # only the top left is white
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],  # shown after a quarter turn clockwise
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file(Image.fromarray(np.ascontiguousarray(turned)), kind, exif=exif)
    got = hwc(data).astype(int)
    assert got.shape == upright.shape
    assert np.abs(got - upright).mean() < 6


def test_orientation_of_a_reduced_jpeg() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = file(photo(640, 320), "JPEG", exif=exif)
    assert decode(data, canvas=64).shape == (3, 64, 32)


def test_damaged_exif_is_no_reason_to_refuse() -> None:
    data = file(photo(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(data, canvas=64).shape == (3, 40, 60)


def test_16_bit_maps_its_full_range() -> None:
    ramp = np.arange(0, 65536, 257, dtype=np.uint16)[None].repeat(4, 0)  # 0, 257, ..., 65535
    for kind in ("PNG", "TIFF", "PPM"):
        got = decode(file(Image.fromarray(ramp), kind), canvas=256, channels=1)
        np.testing.assert_array_equal(got[0], np.arange(256)[None].repeat(4, 0), err_msg=kind)


def test_16_bit_big_endian_tiff() -> None:
    image = Image.frombytes("I;16B", (3, 1), struct.pack(">3H", 0, 32768, 65535))
    assert decode(file(image, "TIFF"), canvas=8, channels=1).tolist() == [[[0, 128, 255]]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 257, 65535], [0, 1, 255]),  # 16-bit values in a 32-bit file
        ([0, 500_000, 1_000_000], [0, 128, 255]),  # its own range
        ([-100, 0, 100], [0, 128, 255]),
        ([1_000_000, 1_000_000, 1_000_000], [0, 0, 0]),
    ],
)
def test_32_bit_integers(values: list[int], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], np.int32))
    assert decode(file(image, "TIFF"), canvas=8, channels=1).tolist() == [[expected]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 0.5, 1], [0, 128, 255]), ([0.2, 0.2, 0.2], [51] * 3), ([-1, 0, 3], [0, 64, 255])],
)
def test_floats(values: list[float], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], np.float32))
    assert decode(file(image, "TIFF"), canvas=8, channels=1).tolist() == [[expected]]


def test_float_nan_is_refused() -> None:
    image = Image.fromarray(np.array([[0, np.nan]], np.float32))
    with pytest.raises(Unreadable, match="holds NaN or infinity"):
        decode(file(image, "TIFF"), canvas=8)


def test_cmyk() -> None:
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255]]], np.uint8)
    got = hwc(file(Image.frombytes("CMYK", (4, 1), inks.tobytes()), "TIFF"))
    assert got.tolist() == [[[255] * 3, [0, 255, 255], [255, 0, 0], [0, 0, 0]]]


def test_lab() -> None:
    image = Image.frombytes("LAB", (2, 1), bytes([255, 0, 0, 0, 0, 0]))
    got = hwc(file(image, "TIFF")).astype(int)
    assert np.abs(got - [[[255] * 3, [0] * 3]]).max() <= 2


def test_1_bit() -> None:
    image = Image.fromarray(np.array([[True, False, True]]))
    for kind in ("PNG", "TIFF", "PPM"):
        assert decode(file(image, kind), canvas=8, channels=1).tolist() == [[[255, 0, 255]]], kind


def palette() -> Image.Image:
    image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    image.putpalette([200, 0, 0, 0, 100, 0, 0, 0, 50])
    return image


def test_palette() -> None:
    expected = [[[200, 0, 0], [0, 100, 0], [0, 0, 50]]]
    for kind in ("PNG", "GIF", "BMP"):
        assert hwc(file(palette(), kind)).tolist() == expected, kind


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_a_transparent_entry_lies_on_white(kind: str) -> None:
    got = hwc(file(palette(), kind, transparency=1))
    assert got.tolist() == [[[200, 0, 0], [255, 255, 255], [0, 0, 50]]]


def test_palette_with_partly_transparent_entries_lies_on_white() -> None:
    got = hwc(file(palette(), "PNG", transparency=bytes([255, 0, 128])))
    assert got[0, :2].tolist() == [[200, 0, 0], [255, 255, 255]]
    half = np.array([0, 0, 50]) * 128 / 255 + 255 * 127 / 255
    assert np.abs(got[0, 2] - half).max() <= 1


def test_alpha_lies_on_white() -> None:
    rgba = Image.frombytes("RGBA", (2, 1), bytes([10, 20, 30, 255, 10, 20, 30, 0]))
    la = Image.frombytes("LA", (2, 1), bytes([10, 255, 10, 0]))
    for kind in ("PNG", "TIFF"):
        assert hwc(file(rgba, kind)).tolist() == [[[10, 20, 30], [255] * 3]], kind
        assert decode(file(la, kind), canvas=4, channels=1).tolist() == [[[10, 255]]], kind


def test_transparent_gray_and_rgb_colours_of_png() -> None:
    gray = Image.frombytes("L", (2, 1), bytes([10, 99]))
    assert hwc(file(gray, transparency=99)).tolist() == [[[10] * 3, [255] * 3]]
    rgb = Image.frombytes("RGB", (2, 1), bytes([1, 2, 3, 4, 5, 6]))
    assert hwc(file(rgb, transparency=(4, 5, 6))).tolist() == [[[1, 2, 3], [255] * 3]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 0, 250))]
    got = hwc(file(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert got[..., 0].min() > 240
    assert got[..., 2].max() < 10


@pytest.mark.parametrize(
    ("size", "canvas", "expected"),
    [
        ((60, 40), 60, (40, 60)),
        ((60, 40), 64, (40, 60)),  # never up
        ((60, 40), 30, (20, 30)),
        ((40, 60), 30, (30, 20)),
        ((61, 40), 30, (20, 30)),
        ((2000, 1), 64, (1, 64)),
    ],
)
def test_sizes(size: tuple[int, int], canvas: int, expected: tuple[int, int]) -> None:
    for kind in ("PNG", "JPEG"):
        assert decode(file(photo(*size), kind), canvas=canvas).shape == (3, *expected)


def test_reduction_is_antialiased() -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255  # without antialiasing, a quarter of it would be all black or white
    got = decode(file(Image.fromarray(stripes)), canvas=16, channels=1)
    assert np.abs(got.astype(int) - 128).max() < 24


def test_scaled_jpeg_decoding_agrees_with_full_decoding() -> None:
    image = photo(640, 480)
    data = file(image, "JPEG", quality=95)
    full = np.asarray(Image.open(io.BytesIO(data)).resize((96, 72), Image.Resampling.BICUBIC))
    assert np.abs(hwc(data, 96).astype(int) - full).mean() < 1.5


def test_scaled_jpeg_decoding_needs_twice_the_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import JpegImagePlugin

    called = []
    draft = JpegImagePlugin.JpegImageFile.draft
    monkeypatch.setattr(
        JpegImagePlugin.JpegImageFile, "draft", lambda *a: (called.append(a[0].size), draft(*a))[1]
    )
    for width in (199, 200):
        decode(file(photo(width, 40), "JPEG"), canvas=100)
    assert called == [(200, 40)]


@pytest.mark.parametrize(
    ("array", "channels", "expected"),
    [
        (np.full((2, 3), 7, np.uint8), 3, [7, 7, 7]),
        (np.full((2, 3, 1), 7, np.uint8), 1, [7]),
        (np.full((2, 3, 3), 7, np.uint8), 1, [7]),
        (np.full((2, 3, 4), (7, 8, 9, 0), np.uint8), 3, [255, 255, 255]),
        (np.full((2, 3, 4), (7, 8, 9, 0), np.uint8), 4, [7, 8, 9, 0]),
        (np.full((2, 3, 6), range(6), np.uint8), 6, [0, 1, 2, 3, 4, 5]),
        (np.full((2, 3), 65535, np.uint16), 1, [255]),
        (np.full((2, 3), True), 1, [255]),
    ],
)
def test_arrays(array: np.ndarray, channels: int, expected: list[int]) -> None:
    got = decode(array, canvas=8, channels=channels)
    assert got.dtype == np.uint8
    assert got.shape == (channels, 2, 3)
    assert got[:, 0, 0].tolist() == expected


def test_large_arrays_are_reduced() -> None:
    assert decode(np.zeros((40, 20, 6), np.uint8), canvas=10, channels=6).shape == (6, 10, 5)
    assert decode(np.zeros((40, 20), np.uint8), canvas=10).shape == (3, 10, 5)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file (0 bytes)"),
        (b"hello, world", "not an image (starts with 'hello, world')"),
        (b"\0\1\xff", "not an image (starts with '???')"),
        (b"\x89PNG\r\n\x1a\n and then nothing", "damaged header (starts with '?PNG???? and')"),
        (b"\0\0\0\x1cftypheic\0\0\0\0", "HEIC"),
        (file(photo(), "JPEG")[:-400], "truncated"),
        (file(photo(), "PNG")[:200], "truncated"),
        (np.zeros((0, 4), np.uint8), "zero size"),
        (np.zeros((4, 4, 5), np.uint8), "an array of shape (4, 4, 5) does not give 3 channels"),
        (np.full((4, 4), "a"), "pixels of type <U1 are not numbers"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_reasons(data: bytes | np.ndarray, reason: str) -> None:
    with pytest.raises(Unreadable) as caught:
        decode(data, canvas=32)
    assert str(caught.value).startswith(reason)
    assert caught.value.__cause__ is None
    assert len(str(caught.value)) < 120


def test_an_image_file_has_one_or_three_channels() -> None:
    with pytest.raises(Unreadable, match="1 or 3 channels, not 4"):
        decode(file(photo()), canvas=32, channels=4)


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("pillow_limit", [None, Image.MAX_IMAGE_PIXELS])
def test_bombs_are_refused_from_the_header(
    pillow_limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow_limit)
    for data in (png_claiming(100_000, 100_000), png_claiming(MAX_PIXELS // 100 + 1, 100)):
        tracemalloc.start()
        start = time.perf_counter()
        with pytest.raises(Unreadable, match=r"pixels\) exceeds limit of 178956970 pixels"):
            decode(data, canvas=32)
        assert time.perf_counter() - start < 1
        assert tracemalloc.get_traced_memory()[1] < 10e6
        tracemalloc.stop()


def test_our_limit_holds_without_that_of_pillow() -> None:
    size = picture_size(png_claiming(10_000, 10_000))  # Pillow warns from 89 million pixels on
    assert size == (10_000, 10_000)


def test_warnings_of_pillow_do_not_leak() -> None:
    data = png_claiming(10_000, 10_000)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(Unreadable):
            decode(data, canvas=32)
        warnings.warn("of somebody else", stacklevel=1)
    assert [str(w.message) for w in seen] == ["of somebody else"]


# Files that Pillow reads at the second attempt only (its first ends in an error).
REFUSED_AT_FIRST = {
    "broken/truncated/truncated_end_chunk.png",
    "broken/corrupt/broken_data_stream.png",
    "broken/made/bad-crc.png",
}
# Within our limit of pixels, beyond the one from which Pillow warns.
LARGE = "bomb/flat-12000x12000-gray.png"


@pytest.mark.skipif("SELFSAME_DATA" not in os.environ, reason="SELFSAME_DATA names no data folder")
def test_every_awkward_file_decodes_or_is_refused() -> None:
    with tarfile.open(Path(os.environ["SELFSAME_DATA"]) / "awkward-images.tar") as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]
    rows = list(csv.DictReader(io.StringIO(files["manifest.csv"].decode())))
    assert len(rows) == 144
    for row in rows:
        name = row["path"]
        start = time.perf_counter()
        pixels, reason = None, ""
        try:
            pixels = decode(files[name], canvas=224)
        except Unreadable as error:
            reason = str(error)
        assert time.perf_counter() - start < 10, name
        good = row["pillow_13.0.0"] == "ok" and name not in REFUSED_AT_FIRST
        if pixels is None:
            assert reason, name
            assert not good, f"{name}: {reason}"
            assert name != LARGE, reason
            continue
        assert good or name == LARGE, name
        assert pixels.dtype == np.uint8
        if row["size"]:
            width, height = map(int, row["size"].split("x"))
            # Of TIFF, the manifest has the upright size already.
            if row["exif_orientation"] in ("5", "6", "7", "8") and row["format"] != "TIFF":
                width, height = height, width
            scale = min(1, 224 / max(width, height))
            expected = (3, max(1, round(height * scale)), max(1, round(width * scale)))
            assert pixels.shape == expected, name
