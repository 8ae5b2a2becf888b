"""Small pictures inside a page: JPEG for photographs, PNG for maps of a few cells."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from selfsame.report.html import Html, tag
from selfsame.types import Batch

SIDE = 112  # pixels: the longer side of a thumbnail
QUALITY = 82  # of JPEG


def uri(image: Image.Image, *, png: bool = False) -> str:
    """A picture as a data URI."""
    stream = io.BytesIO()
    if png:
        image.save(stream, "PNG", optimize=True)
    else:
        image.save(stream, "JPEG", quality=QUALITY, optimize=True)
    kind = "png" if png else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def show(image: Image.Image, alt: str, *, png: bool = False) -> Html:
    """An ``img`` element; small pictures are enlarged by the page, with sharp pixels."""
    width, height = image.size
    return tag(
        "img",
        src=uri(image, png=png),
        alt=alt,
        width=width,
        height=height,
        class_="sharp" if max(image.size) <= 64 else None,
    )


def as_image(pixels: np.ndarray) -> Image.Image:
    """uint8 [C, H, W] as a picture: gray for one or two channels, else the first three."""
    if len(pixels) < 3:
        return Image.fromarray(pixels[0]).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(pixels[:3].transpose(1, 2, 0)))


def thumbnails(batch: Batch, side: int = SIDE) -> list[Image.Image]:
    """The images of a batch without the empty rest of their canvases, scaled down to ``side``."""
    found = []
    for canvas, (height, width) in zip(batch.images.numpy(), batch.sizes.tolist(), strict=True):
        image = as_image(canvas[:, :height, :width])
        if max(image.size) > side:
            image.thumbnail((side, side), Image.Resampling.BICUBIC)
        found.append(image)
    return found


def sheet(images: Sequence[Image.Image], side: int) -> tuple[Image.Image, int]:
    """All images on one, each in a square of ``side`` pixels, and the number of columns."""
    columns = max(1, math.ceil(math.sqrt(len(images))))
    whole = Image.new("RGB", (columns * side, -(-len(images) // columns) * side), (128, 128, 128))
    for i, image in enumerate(images):
        scale = side / max(image.size)
        size = tuple(max(1, round(length * scale)) for length in image.size)
        small = image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
        row, column = divmod(i, columns)
        corner = (side - size[0]) // 2, (side - size[1]) // 2
        whole.paste(small, (column * side + corner[0], row * side + corner[1]))
    return whole, columns
