"""From a model and labelled images to features and labels, in one call."""

from __future__ import annotations

from selfsame.data import Labelled
from selfsame.encoder import Encoder
from selfsame.evals.pixels import pixels
from selfsame.evals.subject import Bank, Subject

__all__ = ["Bank", "bank", "pixel_bank"]


def bank(encoder: Encoder, data: Labelled) -> Bank:
    """Pooled features of clean, un-augmented images, in evaluation mode."""
    return Subject(encoder).bank(data)


def pixel_bank(data: Labelled, like: Encoder | None = None) -> Bank:
    """The images themselves, 16 px a side, centred and flattened: they learnt nothing.

    Their channels and levels are those of the encoder ``like``; three and none without one.
    """
    control = pixels() if like is None else pixels(like.channels, like.levels)
    return Subject(control, centred=True).bank(data)
