"""The images that ship with selfsame: a tenth of CIFAR-10."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
from PIL import Image

from selfsame.data.arrays import ArraySource
from selfsame.data.source import Labelled

SIDE = 32  # pixels


def sample() -> Labelled:
    """The images that ship with selfsame, as they were decoded: uint8 [N, 32, 32, 3]."""
    folder = files("selfsame") / "assets"
    with (folder / "cifar10-labels.npz").open("rb") as file:
        arrays = dict(np.load(file))
    parts = []
    for name in ("train", "test"):
        with (folder / f"cifar10-{name}.jpg").open("rb") as file:
            mosaic = np.asarray(Image.open(file).convert("RGB"))  # rows of 100 images
        rows = mosaic.reshape(-1, SIDE, mosaic.shape[1] // SIDE, SIDE, 3)
        images = np.ascontiguousarray(rows.swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3))
        parts.append(ArraySource(images, arrays[name].astype(np.int64), arrays["classes"].tolist()))
    train, test = parts
    return Labelled(train, test, "CIFAR-10 sample: 8,000 train and 2,000 test images in 10 classes")
