from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def encoded(i: int, size: tuple[int, int] = (20, 16)) -> Image.Image:
    """A small picture whose content says which one it is: red holds the number."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = i
    pixels[..., 1] = np.arange(width, dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write numbered PNG files: ``make_folder({"cat": 3, "dog": 2})`` gives cat/0.png, ..."""

    def make(counts: dict[str, int], root: str = "photos") -> Path:
        number = 0
        for folder, count in counts.items():
            (tmp_path / root / folder).mkdir(parents=True, exist_ok=True)
            for k in range(count):
                encoded(number).save(tmp_path / root / folder / f"{k:02}.png")
                number += 1
        return tmp_path / root

    return make
