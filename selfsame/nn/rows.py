"""Random draws over a step's batch that do not depend on how the batch is divided.

Every rank and every micro-batch seeds torch's generators alike. A draw is made for the whole batch,
and each part takes what belongs to its own images: so N processes, or K micro-batches, do what one
process with the whole batch does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selfsame import dist
from selfsame.rng import key


class Rows(NamedTuple):
    """Rows of a tensor, [V * B * M, ...]: V views of B images, and M rows of each in turn."""

    groups: int  # V
    own: int  # B * M, of this part
    part: int
    parts: int

    @property
    def total(self) -> int:
        """Number of rows of the whole batch."""
        return self.groups * self.parts * self.own

    def take(self, whole: Tensor) -> Tensor:
        """This part's rows, [V * B * M, ...], of a tensor over the whole batch, [total, ...]."""
        grid = whole.reshape(self.groups, self.parts, self.own, *whole.shape[1:])
        return grid[:, self.part].flatten(0, 1)

    def among(self, chosen: Tensor) -> Tensor:
        """Which of this part's rows are among ``chosen``, int64 [n] of the whole batch's."""
        if self.parts == 1:
            return chosen
        group, place = chosen // (self.parts * self.own), chosen % (self.parts * self.own)
        place = place - self.part * self.own
        mine = (place >= 0) & (place < self.own)
        return (group * self.own + place)[mine]


def rows(count: int, copies: int = 1) -> Rows:
    """The rows that a forward pass sees, by their number.

    Args:
        count: V * B * M.
        copies: M, rows of an image that lie beside each other.
    """
    number, parts, images = dist.part()
    own = count if images is None else images * copies
    if count % own:  # rows of something else than images
        own = count
    return Rows(count // own, own, number, parts)


def normal(count: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Standard normal numbers for each of ``count`` rows, [count, *shape].

    Each row of the whole batch has a stream of its own, so that a part costs its own rows only.
    """
    where = rows(count)
    base = int(torch.randint(2**62, ()))
    own = where.take(torch.arange(where.total)).tolist()
    found = torch.empty(count, *shape, dtype=like.dtype, device=like.device)
    generator = torch.Generator(like.device)
    for place, row in enumerate(own):
        generator.manual_seed(key(base, row))
        found[place].normal_(generator=generator)
    return found
