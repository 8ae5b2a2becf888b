from __future__ import annotations

import io
import struct
import time
import tracemalloc
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from written import file, photo, png

from selfsame.data.decode import Unreadable, decode, picture_size
from selfsame.data.picture import MAX_PIXELS

RNG = np.random.default_rng(0)


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


def test_every_16_bit_value_of_png() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values / 257).astype(np.uint8)
    three = np.stack([values, values[::-1], values.T], -1)
    wanted = np.stack([expected, expected[::-1], expected.T], -1)
    opaque = np.full_like(values, 65535)
    assert (decode(png(values, 16, 0), canvas=256, channels=1)[0] == expected).all()
    assert (hwc(png(three, 16, 2), 256) == wanted).all()
    assert (hwc(png(np.dstack([three, opaque]), 16, 6), 256) == wanted).all()
    alpha = png(np.dstack([values, opaque]), 16, 4)
    assert (decode(alpha, canvas=256, channels=1)[0] == expected).all()
    raw = decode(png(np.dstack([values, values.T]), 16, 4), canvas=256, channels=2)
    assert (raw == np.stack([expected, expected.T])).all()


def test_12_bit_values_in_png_of_several_channels() -> None:
    values = RNG.integers(0, 4096, (9, 7, 3)).astype(np.uint16)
    expected = np.rint(values / 4095 * 255).transpose(2, 0, 1)
    assert (decode(png(values, 16, 2), canvas=16, levels=(0, 4095)) == expected).all()
    clear = np.dstack([values, np.full((9, 7, 1), 65535, np.uint16)])
    clear[0, 0, 3] = 0
    got = decode(png(clear, 16, 6), canvas=16, levels=(0, 4095))
    assert (got[:, 0, 0] == 255).all()  # opacity has its own range
    assert (got[:, 1:] == expected[:, 1:]).all()


def test_transparent_colours_of_png_of_every_depth() -> None:
    for bits, rows in ((1, 0b01 << 6), (2, 0b0001 << 4), (4, 0x01)):
        for key in (0, 1):
            shown = [0, 255 // (2**bits - 1)]
            shown[key] = 255
            row = np.array([[rows]], np.uint8)
            data = png(row, bits, 0, (b"tRNS", struct.pack(">H", key)), width=2)
            assert decode(data, canvas=8, channels=1).tolist() == [[shown]], (bits, key)
    gray = np.array([[1000, 1001]], np.uint16)
    data = png(gray, 16, 0, (b"tRNS", struct.pack(">H", 1000)))
    assert decode(data, canvas=8, channels=1).tolist() == [[[255, 4]]]
    rgb = np.array([[[1000, 0, 0], [1001, 0, 0]]], np.uint16)  # the same high bytes
    data = png(rgb, 16, 2, (b"tRNS", struct.pack(">3H", 1000, 0, 0)))
    assert hwc(data).tolist() == [[[255, 255, 255], [4, 0, 0]]]


@pytest.mark.parametrize(
    ("values", "levels", "expected"),
    [
        (np.array([[0, 2048, 4095]], np.uint16), (0, 4095), [0, 128, 255]),
        (np.array([[0, 2048, 4096]], np.uint16), (0, 4095), [0, 128, 255]),  # its own range
        (np.array([[100, 200]], np.uint16), (0, 4095), [6, 12]),
        (np.array([[-1000, 0, 1000]], np.int16), (-1000, 3000), [0, 64, 128]),
        (np.array([[0.0, 25.0]], np.float32), (0, 50), [0, 128]),
        (np.array([[7, 9]], np.uint8), (0, 4095), [7, 9]),  # 8 bits are taken as they are
        (np.array([[False, True]]), (0, 4095), [0, 255]),
        (np.array([[0, 127]], np.int8), None, [0, 127]),
        (np.array([[0, 2**32 - 1]], np.uint32), None, [0, 255]),
        (np.array([[-1e308, 0.9e308]]), None, "holds NaN or infinity"),
        (np.array([[1j]]), None, "pixels of type complex128 are not numbers"),
    ],
)
def test_levels(
    values: np.ndarray, levels: tuple[float, float] | None, expected: list[int] | str
) -> None:
    if isinstance(expected, str):
        with pytest.raises(Unreadable, match=expected):
            decode(values, canvas=8, channels=1, levels=levels)
    else:
        got = decode(values, canvas=8, channels=1, levels=levels)
        assert got.tolist() == [[expected]]


def test_opacity_of_deep_arrays_has_its_own_range() -> None:
    pixels = np.array([[[1000, 2000, 4000, 65535], [1000, 2000, 4000, 0]]], np.uint16)
    got = hwc(pixels.copy(), 8)
    assert got.tolist() == [[[4, 8, 16], [255, 255, 255]]]
    assert decode(pixels, canvas=8, levels=(0, 4000))[:, 0, 0].tolist() == [64, 128, 255]


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


@pytest.mark.parametrize(
    ("size", "canvas"), [((500, 375), 448), ((500, 375), 100), ((333, 500), 31), ((9, 700), 64)]
)
def test_reduction_is_that_of_pillow(size: tuple[int, int], canvas: int) -> None:
    """Within 2 levels: of 16 million values of photos, 0.4 % were 1 apart, 13 values 2.

    Pictures more than about twice as high as wide are scaled in the other order by Pillow: 18 %
    of 8 million values 1 apart, 0.004 % 2 to 6, where it cuts overshoots off between the passes.
    """
    image = photo(*size)
    pixels = np.asarray(image).astype(int) + RNG.integers(-20, 20, (size[1], size[0], 3))
    pixels = pixels.clip(0, 255).astype(np.uint8)
    scale = canvas / max(size)
    wanted = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    for source in (pixels, pixels[..., 0], np.dstack([pixels, pixels])):
        channels = 1 if source.ndim == 2 else source.shape[2]
        got = decode(source, canvas=canvas, channels=channels)
        for plane, c in zip(got, range(channels), strict=True):
            one = Image.fromarray(np.ascontiguousarray(np.atleast_3d(source)[..., c]))
            expected = np.asarray(one.resize(wanted, Image.Resampling.BICUBIC)).astype(int)
            apart = np.abs(plane - expected)
            assert apart.max() <= 2
            assert (apart > 1).mean() < 0.001


def test_scaled_jpeg_decoding_agrees_with_full_decoding() -> None:
    image = photo(640, 480)
    data = file(image, "JPEG", quality=95)
    full = np.asarray(Image.open(io.BytesIO(data)).resize((96, 72), Image.Resampling.BICUBIC))
    assert np.abs(hwc(data, 96).astype(int) - full).mean() < 1.5


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
        (np.zeros((4, 4, 5), np.uint8), "an image of shape (4, 4, 5) does not give 3 channels"),
        (np.zeros(4, np.uint8), "an array of shape (4,) is not an image"),
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


def test_an_image_file_gives_other_channels_only_where_it_has_them() -> None:
    rgba = RNG.integers(0, 256, (5, 4, 4), np.uint8)
    for kind in ("PNG", "TIFF"):
        got = hwc(file(Image.fromarray(rgba), kind), channels=4)
        np.testing.assert_array_equal(got, rgba, err_msg=kind)
    la = Image.frombytes("LA", (2, 1), bytes([1, 2, 3, 4]))
    assert hwc(file(la), channels=2).tolist() == [[[1, 2], [3, 4]]]
    for data, channels in ((file(photo()), 4), (file(Image.fromarray(rgba)), 2), (file(la), 5)):
        with pytest.raises(Unreadable, match=f"does not give {channels} channels"):
            decode(data, canvas=32, channels=channels)


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
