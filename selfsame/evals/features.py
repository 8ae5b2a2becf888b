"""From a model and labelled images to features: what every evaluator starts from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selfsame.data import Images, Labelled
from selfsame.encoder import Encoder, canvas_for
from selfsame.types import Norm
from selfsame.views import eval_view

RAW_SIDE = 16  # pixels: on CIFAR-10 a stronger control than 32 (kNN .389 against .383), and fast


class Bank(NamedTuple):
    """Features and labels of a train and a test part."""

    train_x: Tensor  # float32 [N, D]
    train_y: Tensor  # int64 [N]
    test_x: Tensor  # float32 [M, D]
    test_y: Tensor  # int64 [M]


def bank(encoder: Encoder, data: Labelled) -> Bank:
    """Pooled features of clean, un-augmented images, in evaluation mode."""
    parts: list[Tensor] = []
    for source in (data.train, data.test):
        with encoder.open(source, cache_bytes=0) as images:
            found = [(x, batch.label) for batch, x in encoder.embed_batches(images)]
        parts += [
            torch.cat([x for x, _ in found]),
            torch.cat([y for _, y in found if y is not None]),
        ]
    return Bank(*parts)


def pixel_bank(data: Labelled, like: Encoder | None = None) -> Bank:
    """The images themselves, 16 px a side, centred and flattened: they learnt nothing.

    Their channels and levels are those of the encoder ``like``; three and none without one.
    """
    channels, levels = (like.channels, like.levels) if like is not None else (3, None)
    norm = Norm((0.5,) * channels, (0.5,) * channels)
    canvas = canvas_for(RAW_SIDE)
    parts: list[Tensor] = []
    for source in (data.train, data.test):
        xs, ys = [], []
        with Images(
            source, canvas=canvas, channels=channels, levels=levels, cache_bytes=0
        ) as images:
            for batch in images.readable(1024):
                xs.append(eval_view(batch.images, batch.sizes, RAW_SIDE, norm, 1.0).flatten(1))
                assert batch.label is not None
                ys.append(batch.label)
        parts += [torch.cat(xs), torch.cat(ys)]
    mean = parts[0].mean(0)
    return Bank(parts[0] - mean, parts[1], parts[2] - mean, parts[3])
