"""TIFF files of every layout hold their exact values, or are refused with a reason."""

from __future__ import annotations

import itertools
import struct
import sys

import numpy as np
import pytest
from PIL import Image
from written import file, tiff

from selfsame.data.decode import Unreadable, decode, own_channels, picture_size, raw_values

RNG = np.random.default_rng(0)
WHITE = {"u1": 255, "u2": 65535, "i2": 32767, "u4": 2**32 - 1, "i4": 2**31 - 1}


def values(kind: str, *shape: int) -> np.ndarray:
    if kind[0] == "f":
        return RNG.random(shape).astype(kind)
    return RNG.integers(0, WHITE[kind], shape, dtype=np.int64).astype(kind)


@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "u4", "f4", "f8"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_every_layout(kind: str, channels: int) -> None:
    """Written by tifffile; most of one or three channels are read by Pillow."""
    pixels, white = values(kind, 19, 23, channels), WHITE.get(kind, 1)
    expected = np.rint(pixels.astype(float) / white * 255).transpose(2, 0, 1)
    for order, planes, compression, tile, meaning in itertools.product(
        "<>",
        ("contig", "separate"),
        (None, "lzw"),
        (None, (16, 16)),
        ("minisblack", "miniswhite", "rgb"),
    ):
        if (channels < 3 and meaning == "rgb") or (channels == 1 and planes == "separate"):
            continue
        if meaning == "miniswhite" and kind[0] != "u":
            continue  # without a largest value, nothing says what black is
        stored = np.invert(pixels) if meaning == "miniswhite" else pixels
        stored = np.moveaxis(stored, -1, 0) if planes == "separate" else stored
        data = tiff(
            stored[..., 0] if channels == 1 else stored,
            byteorder=order,
            planarconfig=None if channels == 1 else planes,
            compression=compression,
            tile=tile,
            photometric=meaning,
            extrasamples=["unspecified"] * (channels - (3 if meaning == "rgb" else 1)) or None,
        )
        layout = (order, planes, compression, tile, meaning)
        many = channels not in (1, 3) and not (channels == 4 and meaning == "rgb")
        assert own_channels(data) == (channels if many else None), layout
        assert picture_size(data) == (19, 23)
        got = decode(data, canvas=32, channels=channels, levels=(0, white))
        np.testing.assert_array_equal(got, expected, err_msg=str(layout))
        raw = raw_values(data)
        if kind == "u1":
            assert raw is None
        else:
            assert raw is not None
            shown = pixels if many or channels < 4 else pixels[..., :3]
            np.testing.assert_array_equal(np.atleast_3d(raw), shown, err_msg=str(layout))
        if many:  # nothing is dropped
            with pytest.raises(Unreadable, match="does not give 3 channels"):
                decode(data, canvas=32)


def test_opacity_of_deep_files() -> None:
    for kind, white in (("u2", 65535), ("f4", 1)):
        pixels = np.zeros((1, 2, 4), kind)
        pixels[..., 0], pixels[0, 0, 3] = white, white
        for planes in ("contig", "separate"):
            stored = pixels if planes == "contig" else np.moveaxis(pixels, -1, 0)
            data = tiff(stored, photometric="rgb", planarconfig=planes, extrasamples=["unassalpha"])
            assert decode(data, canvas=4).transpose(1, 2, 0).tolist() == [[[255, 0, 0], [255] * 3]]


def test_premultiplied_opacity() -> None:
    pixels = np.array([[[100, 50, 0, 128], [0, 0, 0, 0]]], np.uint8)
    got = decode(tiff(pixels, photometric="rgb", extrasamples=["assocalpha"]), canvas=4)
    assert np.abs(got.transpose(1, 2, 0).astype(int) - [[[227, 177, 127], [255] * 3]]).max() <= 2
    deep = tiff(pixels / np.float32(255), photometric="rgb", extrasamples=["assocalpha"])
    with pytest.raises(Unreadable, match="multiplied with their opacity"):
        decode(deep, canvas=4)
    assert decode(deep, canvas=4, channels=4)[:, 0, 0].tolist() == [100, 50, 0, 128]


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation(turn: int) -> None:
    pixels = values("f4", 5, 7, 3)
    tag = (274, "H", 1, turn, True)
    got = decode(tiff(pixels, photometric="rgb", extratags=[tag]), canvas=8)
    exif = Image.Exif()
    exif[0x0112] = turn
    eight_bit = Image.fromarray(np.rint(pixels * 255).astype(np.uint8))
    np.testing.assert_array_equal(got, decode(file(eight_bit, "PNG", exif=exif), canvas=8))


def test_large_ones_are_reduced() -> None:
    assert decode(
        tiff(values("u2", 30, 60, 5), planarconfig="contig"), canvas=20, channels=5
    ).shape == (5, 10, 20)


def test_only_the_first_page_is_read() -> None:
    pages = values("f8", 3, 9, 8)
    got = decode(tiff(pages), canvas=16, channels=1)
    np.testing.assert_array_equal(got[0], np.rint(pages[0] * 255))


def test_truncation_is_refused() -> None:
    whole = tiff(values("f4", 40, 40, 5), planarconfig="contig")
    for length in (len(whole) - 1, len(whole) // 2, 400):
        with pytest.raises(Unreadable):
            decode(whole[:length], canvas=64, channels=5)


@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_strips_that_are_missing_are_refused(
    tile: tuple[int, int] | None, kind: str, channels: int, compression: str | None
) -> None:
    """A height of 32 that is made 3,200, as if an index had been cut off."""
    pixels = values(kind, 32, 16, channels)
    options = {"planarconfig": "contig"} if channels > 1 else {}
    data = tiff(
        pixels if channels > 1 else pixels[..., 0],
        photometric="rgb" if channels == 3 else "minisblack",
        tile=tile,
        rowsperstrip=None if tile else 8,
        compression=compression,
        **options,
    )
    assert decode(data, canvas=32, channels=channels).shape == (channels, 32, 16)
    start = data.index(struct.pack("<HH", 257, 4))
    data = data[: start + 8] + struct.pack("<I", 3200) + data[start + 12 :]
    with pytest.raises(Unreadable):
        decode(data, canvas=32, channels=channels)


def test_what_is_not_known_is_refused() -> None:
    volume = tiff(values("u2", 4, 16, 16), volumetric=True, tile=(4, 16, 16))
    with pytest.raises(Unreadable):
        decode(volume, canvas=16, channels=4)
    with pytest.raises(Unreadable, match="does not give 2 channels"):
        decode(tiff(values("f4", 4, 4, 5), planarconfig="contig"), canvas=16, channels=2)


def test_without_tifffile(monkeypatch: pytest.MonkeyPatch) -> None:
    five = tiff(values("u2", 4, 4, 5), planarconfig="contig")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(Unreadable, match=r"pip install 'selfsame\[tiff\]' reads it"):
        decode(five, canvas=8, channels=5)
    gray = file(Image.fromarray(values("u2", 4, 4)), "TIFF")
    assert decode(gray, canvas=8, channels=1).shape == (1, 4, 4)
