"""Digits that stand somewhere among pieces of others: images whose pixels do not tell the digit."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from selfsame.claims import digits
from selfsame.claims.students import image

SIDE = 16  # of a canvas, pixels
DIGIT = 8
PIECES, PIECE = 3, 4  # of other digits, and their side in pixels
COPIES = 8  # canvases of a digit


class Canvases(NamedTuple):
    """Digits somewhere among pieces of others."""

    x: Tensor  # normalised, float32 [N, 1, S, S]
    y: Tensor  # int64 [N]
    where: Tensor  # float32 [N, S, S]: 1 where the digit is


@cache
def of(test: bool) -> Canvases:
    """`COPIES` canvases of each training or test digit, one set of all after the other."""
    found = digits.digits()
    x, y = (found.test_x, found.test_y) if test else (found.train_x, found.train_y)
    generator = torch.Generator().manual_seed(int(test))
    count = COPIES * len(x)
    canvas, where = torch.zeros(2, count, SIDE, SIDE)
    pieces = found.train_x.reshape(-1, DIGIT, DIGIT)

    def below(most: int, *shape: int) -> Tensor:
        return torch.randint(most, shape, generator=generator)

    chosen, cut = below(len(pieces), count, PIECES), below(DIGIT - PIECE + 1, count, PIECES, 2)
    put, at = below(SIDE - PIECE + 1, count, PIECES, 2), below(SIDE - DIGIT + 1, count, 2)
    for i in range(count):
        for which, (a, b), (c, d) in zip(
            chosen[i].tolist(), cut[i].tolist(), put[i].tolist(), strict=True
        ):
            canvas[i, c : c + PIECE, d : d + PIECE] = pieces[which, a : a + PIECE, b : b + PIECE]
        row, column = at[i].tolist()
        box = (i, slice(row, row + DIGIT), slice(column, column + DIGIT))
        canvas[box] = x[i % len(x)].reshape(DIGIT, DIGIT)
        where[box] = 1
    return Canvases(image(canvas, SIDE), y.repeat(COPIES), where)
