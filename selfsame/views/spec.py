"""What a view is: data only. ``draw`` turns it into parameters, ``render`` into pixels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from selfsame.config import Config

SMALL_IMAGE = 64  # pixels: at or below this side, blur and a stem that shrinks lose the picture

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Strength = Annotated[float, Field(ge=0.0)]


class View(Config):
    """One kind of augmented view and how many of it a sample gives.

    The operations come in the order of the fields: crop and resize, flip, colour jitter,
    grayscale, blur, solarise. Each is drawn per sample. Names and semantics are torchvision's:
    ``brightness=0.4`` draws a factor from U(0.6, 1.4), ``hue=0.1`` a shift from U(-0.1, 0.1) turns.
    Views that share a ``name`` are stacked for the method, in the order of the recipe.
    """

    name: str = "global"
    count: Annotated[int, Field(ge=1)] = 1
    size: Annotated[int, Field(ge=1)] = 224  # output side, pixels
    scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area that a crop covers
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width over height of a crop
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"  # antialiased
    flip: Probability = 0.5
    jitter: Probability = 0.8  # chance that the four colour operations run, in random order
    brightness: Strength = 0.8
    contrast: Strength = 0.8
    saturation: Strength = 0.8
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.2
    grayscale: Probability = 0.2
    blur: Probability = 0.5
    blur_kernel: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1  # side over ``size``, made odd
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    solarize: Probability = 0.0
    solarize_threshold: Probability = 0.5

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> View:
        for key, low in (("scale", 0.0), ("ratio", 0.0), ("blur_sigma", 0.0)):
            a, b = getattr(self, key)
            if not low < a <= b:
                raise ValueError(f"{key} must be (low, high) with 0 < low <= high, not ({a}, {b})")
        if self.scale[1] > 1.0:
            raise ValueError(f"scale is a share of the image, at most 1, not {self.scale[1]}")
        return self
