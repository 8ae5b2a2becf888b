"""Small real things that several tests train on."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from selfsame.recipe import BackboneConfig, Recipe, with_settings

TINY = {
    "backbone.name": "resnet10",
    "backbone.options.width": "8",
    "backbone.options.stem": "patch",
    "precision": "fp32",
}

TINY_VIT = {
    "backbone.name": "vit_tiny",
    "backbone.options.width": "32",
    "backbone.options.depth": "2",
    "backbone.options.heads": "2",
    "backbone.options.patch": "8",
    "precision": "fp32",
}


def tiny_settings(network: dict[str, str] = TINY, **more: object) -> list[str]:
    """Settings that make a recipe small enough for a test; dots are written as two underscores."""
    values = network | {key.replace("__", "."): str(value) for key, value in more.items()}
    return [f"{key}={value}" for key, value in values.items()]


def tiny_recipe(method: str, **more: object) -> Recipe:
    """The method's small recipe at 32 px on a tiny network, 6 steps of 8 images.

    The network is a ResNet, or a ViT where the method needs what only that can do.
    """
    from selfsame import methods
    from selfsame.backbones import abilities

    recipe = methods.recipe(method, "small", 32)
    enough = methods.find(method).needs <= (abilities(TINY["backbone.name"]) or set())
    distilled = "distilled" in recipe.backbone.options
    recipe = recipe.model_copy(update={"backbone": BackboneConfig(name=recipe.backbone.name)})
    network = TINY if enough and not distilled else TINY_VIT
    if distilled:
        network = network | {"backbone.options.distilled": "true"}
    if methods.find(method).taught:
        network = network | {"method.teacher": str(tiny_teacher())}
    return with_settings(recipe, tiny_settings(network, **{"batch_size": 8, "steps": 6} | more))


@cache
def tiny_teacher(classes: int = 4) -> Path:
    """An exported encoder with a classifier, random and the same in every process.

    The first process of a test session writes it (`conftest`): of several ranks only one may.
    """
    from selfsame import backbones
    from selfsame.encoder import Encoder
    from selfsame.files import cache_folder
    from selfsame.nn.classify import Linear

    folder = cache_folder() / f"teacher{classes}"
    if folder.exists():
        return folder
    options = {"stem": "patch", "width": 12, "zero_init": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = backbones.build("resnet10", image_size=32, options=options)
        head = Linear(network.dim, classes)
    config = BackboneConfig(name="resnet10", options=options)
    names = [chr(ord("a") + i) for i in range(classes)]
    encoder = Encoder(network, config=config, image_size=32, head=head, classes=names)
    folder.mkdir(parents=True, exist_ok=True)
    encoder.save(folder)
    return folder


def textures(count: int, side: int = 32, seed: int = 0) -> np.ndarray:
    """Random gratings in colour, uint8 [count, side, side, 3]: no two images are alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    angle, period, phase = (
        rng.random((3, count, 1, 1)) * np.array([3.14, 6, 6.28])[:, None, None, None]
    )
    wave = np.sin((np.cos(angle) * x + np.sin(angle) * y) * (2 + period) * 6.28 + phase)
    color = rng.random((count, 1, 1, 3))
    return (255 * (0.5 + 0.5 * wave[..., None]) * color).astype(np.uint8)


def write_photos(folder: Path, count: int = 24, side: int = 32, classes: int = 0) -> Path:
    """A folder of PNG files: flat, or one folder a class, each class of a colour of its own."""
    for i, pixels in enumerate(textures(count, side)):
        label = i % classes if classes else 0
        place = folder / f"class{label}" if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        if classes:
            pixels = (pixels // 3 + np.eye(3)[label % 3] * 150).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{i:03d}.png")
    return folder


def run_fresh(code: str) -> str:
    """Run code in a new interpreter, which must end well; what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def unpack(archive: Path, folder: Path) -> None:
    """What is in a tar file, as the safe members alone where Python can tell (from 3.11.4 on)."""
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(folder)
