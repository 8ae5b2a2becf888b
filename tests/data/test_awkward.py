"""The set of awkward images, file by file: right pixels, or a refusal that names the reason.

``awkward.csv`` holds what is expected at a canvas of 224: the reason; or size and mean colour,
which come from Pillow 13.0 alone (its own decoding, orientation, conversion to RGB, bicubic
scaling).
"""

from __future__ import annotations

import csv
import io
import os
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from selfsame.data.decode import Unreadable, decode

pytestmark = pytest.mark.skipif(
    "SELFSAME_DATA" not in os.environ, reason="SELFSAME_DATA names no data folder"
)
with open(Path(__file__).with_suffix("").with_name("awkward.csv"), encoding="utf-8") as table:
    EXPECTED = {row["path"]: row for row in csv.DictReader(table)}


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    with tarfile.open(Path(os.environ["SELFSAME_DATA"]) / "awkward-images.tar") as tar:
        found = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]
    del found["manifest.csv"]
    return found


def test_every_file_has_an_expectation(files: dict[str, bytes]) -> None:
    assert files.keys() == EXPECTED.keys()
    assert len(files) == 144


@pytest.mark.parametrize("name", EXPECTED)
def test_file(name: str, files: dict[str, bytes]) -> None:
    expected, since = EXPECTED[name], time.perf_counter()
    if expected["reason"]:
        with pytest.raises(Unreadable) as caught:
            decode(files[name], canvas=224)
        assert expected["reason"] in str(caught.value)
    else:
        pixels = decode(files[name], canvas=224)
        assert pixels.dtype == np.uint8
        assert pixels.shape == (3, int(expected["height"]), int(expected["width"]))
        means = [float(expected[colour]) for colour in ("red", "green", "blue")]
        # 16-bit colours are rounded here, and cut off by Pillow.
        most = 1 if name.startswith("mode/16bit/") else 0.05
        np.testing.assert_allclose(pixels.reshape(3, -1).mean(1), means, atol=most)
    assert time.perf_counter() - since < 10


# Of more than 8 bits, or of colours that Pillow does not convert: their means are above.
OTHER_MODES = ("I", "F", "I;16", "I;16B", "LAB")
LARGE = "bomb/flat-12000x12000-gray.png"
READABLE = [name for name, row in EXPECTED.items() if not row["reason"] and name != LARGE]


@pytest.mark.parametrize("name", READABLE)
def test_pixels_of_8_bit_files_are_those_of_pillow(name: str, files: dict[str, bytes]) -> None:
    image = Image.open(io.BytesIO(files[name]))
    if image.mode in OTHER_MODES:
        return
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        image = page
    rgb = np.asarray(image.convert("RGB")).astype(int)
    pixels = decode(files[name], canvas=max(rgb.shape[:2])).transpose(1, 2, 0)
    assert pixels.shape == rgb.shape
    assert np.abs(pixels - rgb).max() <= name.startswith("mode/16bit/")


def test_orientations_of_one_picture_agree(files: dict[str, bytes]) -> None:
    upright = decode(files["format/other/hopper.ppm"], canvas=128).astype(int)
    turned = [name for name in files if name.startswith("exif-orientation/hopper_orientation")]
    assert len(turned) == 10
    for name in turned:
        apart = np.abs(decode(files[name], canvas=128) - upright)
        assert apart.mean() < 9, name  # lossy; turned the wrong way, 40 or more
    for name in turned:
        mirrored = np.abs(decode(files[name], canvas=128)[:, :, ::-1] - upright)
        assert mirrored.mean() > 30, name
