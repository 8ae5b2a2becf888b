"""The images themselves as features: the control that learnt nothing and sees everything."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.data.levels import Levels
from selfsame.encoder import Encoder
from selfsame.types import Backbone, Features, Norm

SIDE = 16  # pixels: on CIFAR-10 a stronger control than 32 (kNN .389 against .383), and fast
AROUND = 3  # pixels: the side of the square whose colours stand for the pixel in its middle


class Pixels(Backbone):
    """Pooled: all pixels, [B, C * S * S]. Tokens: each pixel with those around it, [B, S * S, D].

    The image's border is repeated. D is ``C * AROUND**2``.
    """

    can = frozenset({"tokens"})

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dim = channels * SIDE**2
        self.stride = 1
        self.norm = Norm((0.5,) * channels, (0.5,) * channels)
        self.register_buffer("where", torch.zeros(()), persistent=False)  # the device

    def forward(self, x: Tensor) -> Features:
        """Features of images [B, C, S, S]."""
        margin = AROUND // 2
        around = F.unfold(F.pad(x, (margin,) * 4, mode="replicate"), AROUND)
        return Features(x.flatten(1), around.transpose(1, 2), (x.shape[2], x.shape[3]))

    def blocks(self) -> Sequence[nn.Module]:
        """None."""
        return []


def pixels(channels: int = 3, levels: Levels | None = None) -> Encoder:
    """An encoder whose features are the pixels of an image scaled to 16 px a side."""
    network = Pixels(channels)
    return Encoder(network, config=None, image_size=SIDE, channels=channels, levels=levels)
