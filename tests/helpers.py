"""Small real things that several tests train on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
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
    recipe = recipe.model_copy(update={"backbone": BackboneConfig(name=recipe.backbone.name)})
    network = TINY if enough else TINY_VIT
    return with_settings(recipe, tiny_settings(network, **{"batch_size": 8, "steps": 6} | more))


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
