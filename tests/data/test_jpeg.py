"""The fast way for JPEG gives Pillow's pixels, and leaves every doubt to Pillow."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps
from written import file, photo

from selfsame.data import jpeg
from selfsame.data.decode import Unreadable, decode
from selfsame.data.exif import orientation

RNG = np.random.default_rng(0)


def noisy(width: int, height: int) -> Image.Image:
    pixels = np.asarray(photo(width, height)).astype(int)
    return Image.fromarray((pixels + RNG.integers(-40, 40, pixels.shape)).clip(0, 255).astype("u1"))


def assert_as_pillow(data: bytes, most: int = 0) -> None:
    got = jpeg.read_jpeg(data, canvas=4096)
    assert got is not None
    image = Image.open(io.BytesIO(data))
    assert got.size == (image.height, image.width)
    expected = np.asarray(image)
    assert got.values.shape == expected.shape
    assert np.abs(got.values.astype(int) - expected).max() <= most


SIZES = [(1, 1), (1, 9), (7, 1), (2, 3), (8, 8), (15, 17), (16, 16), (17, 33), (64, 48), (129, 97)]


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_pixels_are_those_of_pillow(subsampling: str, progressive: bool) -> None:
    for size in SIZES:
        for options in ({}, {"quality": 30}, {"quality": 100}, {"restart_marker_blocks": 2}):
            options = {"subsampling": subsampling, "progressive": progressive, **options}
            assert_as_pillow(file(noisy(*size), "JPEG", **options))


@pytest.mark.parametrize("progressive", [False, True])
def test_gray_pixels_are_those_of_pillow(progressive: bool) -> None:
    for size in SIZES:
        assert_as_pillow(file(noisy(*size).convert("L"), "JPEG", progressive=progressive))


@pytest.mark.parametrize("subsampling", ["440", "411"])
def test_rare_subsamplings(subsampling: str) -> None:
    for size in SIZES[3:]:
        pixels = np.ascontiguousarray(noisy(*size))
        assert_as_pillow(simplejpeg.encode_jpeg(pixels, colorsubsampling=subsampling))


def test_rgb_that_is_stored_as_rgb() -> None:
    assert_as_pillow(file(noisy(40, 30), "JPEG", keep_rgb=True))


@pytest.mark.parametrize(("width", "scaled"), [(199, 199), (200, 100), (399, 200), (400, 100)])
def test_scaled_decoding_needs_twice_the_canvas(width: int, scaled: int) -> None:
    data = file(noisy(width, 41), "JPEG")
    got = jpeg.read_jpeg(data, canvas=100)
    assert got is not None
    assert got.size == (41, width)
    assert got.values.shape[1] == scaled
    image = Image.open(io.BytesIO(data))
    image.draft(None, (100, 41 * 100 // width))
    np.testing.assert_array_equal(got.values, np.asarray(image))


def test_scaled_decoding_never_goes_below_what_is_kept() -> None:
    for width in range(60, 700, 37):
        for height in (1, 3, 50, width - 1, 2 * width):
            got = jpeg.read_jpeg(file(Image.new("RGB", (width, height)), "JPEG"), canvas=30)
            assert got is not None
            scale = 30 / max(width, height)
            assert got.values.shape[0] >= round(height * scale)
            assert got.values.shape[1] >= round(width * scale)


@pytest.mark.parametrize("kind", ["CMYK", "RGB"])
def test_what_is_damaged_or_unusual_goes_to_pillow(kind: str) -> None:
    data = file(noisy(64, 48).convert(kind), "JPEG")
    damaged = data if kind == "CMYK" else data[:-300] + b"\xff\xd7" * 8 + data[-284:]
    assert jpeg.read_jpeg(damaged, canvas=64) is None
    expected = np.asarray(Image.open(io.BytesIO(damaged)).convert("RGB"))
    np.testing.assert_array_equal(decode(damaged, canvas=64).transpose(1, 2, 0), expected)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}])
def test_every_truncation_is_refused(options: dict[str, Any]) -> None:
    data = file(noisy(40, 30), "JPEG", **options)
    for length in (*range(2, len(data) - 2, 17), len(data) - 2):
        with pytest.raises(
            Unreadable, match=r"truncated|damaged header|not an image|holds no pixels"
        ):
            decode(data[:length], canvas=64)
    with pytest.raises(Unreadable, match="truncated"):
        decode(data[:-2], canvas=64)


@pytest.mark.parametrize("turn", range(9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_is_that_of_pillow(turn: int, order: str) -> None:
    exif = Image.Exif()
    exif.endian = order
    exif[0x010F], exif[0x0112], exif[0x0132] = "maker", turn, "2020:01:01 00:00:00"
    data = file(noisy(24, 16), "JPEG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decode(data, canvas=64).transpose(1, 2, 0), expected)


def test_orientation_of_xmp_counts_where_exif_has_none() -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = file(noisy(24, 16), "JPEG", xmp=xmp)
    assert decode(data, canvas=64).shape == (3, 24, 16)
    exif = Image.Exif()
    exif[0x0112] = 1
    assert decode(file(noisy(24, 16), "JPEG", xmp=xmp, exif=exif), canvas=64).shape == (3, 16, 24)


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"Exif\0\0",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff",
        b"II+\0" * 9,
    ],
)
def test_damaged_exif_says_nothing(block: bytes) -> None:
    assert orientation(block) == 1


def test_filling_and_comments_before_the_exif_are_skipped() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = file(noisy(24, 16), "JPEG", exif=exif, comment=b"\xff\xda\xff\xe1 not a marker")
    data = data[:2] + b"\xff\xfe\0\x04ab" + b"\xff\xff\xff" + data[2:]
    assert decode(data, canvas=64).shape == (3, 24, 16)


def test_a_bomb_of_scans_is_refused() -> None:
    data = file(Image.new("L", (8000, 8000)), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    scan = data[start:-2]
    bomb = data[:-2] + scan * 200 + data[-2:]
    with pytest.raises(Unreadable, match="too many scans"):
        decode(bomb, canvas=64)
    assert decode(data, canvas=64).max() == 0
    many = file(noisy(40, 30), "JPEG", progressive=True)  # of a small one, many do no harm
    assert decode(many, canvas=64).shape == (3, 30, 40)
