"""Small files cannot fill the memory or the day; ``bombs.py`` says what they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import bombs
import pytest

EXPANDING = {
    "png with a long profile": "Decompressed data too large",
    "png with a long text": "Decompressed data too large",
    "png with long international text": "Decompressed data too large",
    "webp with tags": "(3, 16, 24)",
    "avif with tags": "its tags claim far more than the file holds",
    "jpeg with tags": "(3, 16, 24)",
    "damaged jpeg with tags": "its tags claim far more than the file holds",
    "tiff of tags": "its tags claim far more than the file holds",
}
AWKWARD = {
    "bomb/decompression_bomb.gif": "image size (4364696535 pixels) exceeds limit",
    "bomb/decompression_bomb.ico": "image size (4294836225 pixels) exceeds limit",
    "bomb/decompression_bomb_extents.gif": "(3, 64, 64)",  # the first frame is small
    "bomb/flat-12000x12000-gray.png": "(3, 64, 64)",  # within the limit
    "bomb/header-100000x100000.png": "image size (10000000000 pixels) exceeds limit",
    "bomb/oom-225817ca0f8c663be7ab4b9e717b02c661e66834.tif": "corrupted IFD structure",
    "bomb/png_decompression_dos.png": "Decompressed data too large",
    "bomb/reallybig.bmp": "image size (6000000000000 pixels) exceeds limit",
    "bomb/seek_too_large.tif": "Unable to seek to frame",
}


def decoded(*arguments: str) -> dict[str, tuple[str, float]]:
    done = subprocess.run(
        [sys.executable, bombs.__file__, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    outcomes: dict[str, tuple[str, float]] = json.loads(done.stdout)
    return outcomes


def test_bombs_end_quickly_in_little_memory() -> None:
    outcomes = decoded()
    for name in bombs.claims():
        result, seconds = outcomes.pop(name)
        # libavif has a limit of its own, and gives no reason.
        assert "exceeds limit" in result or (name == "avif" and "damaged" in result), name
        assert seconds < 1, name
    for name, (result, seconds) in outcomes.items():
        assert result.startswith(EXPANDING[name]), (name, result)
        assert seconds < 1, name
    assert outcomes.keys() == EXPANDING.keys()


@pytest.mark.skipif("SELFSAME_DATA" not in os.environ, reason="SELFSAME_DATA names no data folder")
def test_bombs_of_the_awkward_set() -> None:
    outcomes = decoded(str(Path(os.environ["SELFSAME_DATA"]) / "awkward-images.tar"))
    for name, expected in AWKWARD.items():
        assert outcomes[name][0].startswith(expected), (name, outcomes[name])
    assert AWKWARD.keys() == {name for name in outcomes if name.startswith("bomb/")}
