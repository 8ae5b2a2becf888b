"""What the tests of an index share: a tiny encoder, photos with planted copies, a slow source."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import textures

import selfsame
from selfsame.backbones import build
from selfsame.data.arrays import ArraySource
from selfsame.encoder import Encoder
from selfsame.index import write
from selfsame.recipe import BackboneConfig

CONFIG = BackboneConfig(name="resnet10", options={"width": 8, "stem": "patch"})


def write_model(folder: Path, seed: int = 0, size: int = 32) -> Path:
    """An exported encoder at random initialisation."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    network = build(CONFIG.name, image_size=size, channels=3, options=CONFIG.options)
    Encoder(network, config=CONFIG, image_size=size).save(folder)
    return folder


class Slow(ArraySource):
    """Reads image by image, each with a pause, so that a test has the time to stop it."""

    def __init__(self, images: np.ndarray, seconds: float) -> None:
        super().__init__(images)
        self.seconds = seconds

    def read(self, i: int) -> np.ndarray:
        time.sleep(self.seconds)
        return super().read(i)


class Listed:
    """A source of any class, read image by image."""

    labels = classes = None

    def __init__(self, source: Any) -> None:
        self.source = source
        self.name, self.read, self.fingerprint = source.name, source.read, source.fingerprint

    def __len__(self) -> int:
        return len(self.source)


class Drawn:
    """Images that are drawn when they are read, so that the data itself takes no memory."""

    labels = classes = None

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def name(self, i: int) -> str:
        return f"{i:06d}"

    def read(self, i: int) -> np.ndarray:
        return np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)

    def fingerprint(self) -> str:
        return str(self.count)


def peak(model: str, out: str, count: str) -> None:
    """Embed, as a process of its own, and print the most memory that it had, in MiB."""
    import resource

    torch.set_num_threads(1)
    write.ROW_GROUP = 2048  # both counts are then several of them
    selfsame.embed(model, Drawn(int(count)), out, device="cpu")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main(model: str, out: str, count: str, seconds: str) -> None:
    """Embed slowly, as a process of its own."""
    torch.set_num_threads(1)
    source = Listed(Slow(textures(int(count)), float(seconds)))
    selfsame.embed(model, source, out, batch_size=4, device="cpu")


if __name__ == "__main__":
    (peak if len(sys.argv) == 4 else main)(*sys.argv[1:])
