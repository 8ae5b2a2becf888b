"""Which patches of an image are hidden: masks as pure functions of uniform numbers. CPU only."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from selfsame.errors import UsageError
from selfsame.rng import uniforms

OP_MASK = 1  # ``op`` of ``rng.uniforms`` for masks
ATTEMPTS = 10  # failures in a row after which an image's mask stays as it is

Array = np.ndarray


class Draws:
    """A stream of uniform numbers for each image: a function of the seed, the epoch and the image.

    Args:
        seed: Seed of the run.
        epoch: Pass over the data set.
        index: int64 [B], positions of the images in the data set.
        views: V; row ``v * B + b`` is view v of image b.
    """

    def __init__(self, seed: int, epoch: int, index: Tensor, views: int = 1) -> None:
        self.count = views * len(index)
        self._key, self._index, self._views = (seed, epoch), index.cpu(), views
        self._used = np.zeros(self.count, dtype=np.int64)
        self._table = self._numbers(64)

    def uniform(self, rows: Array, low: float | Array, high: float | Array) -> Array:
        """The next number of each of ``rows``, int64 [n], scaled to [low, high)."""
        column = self._used[rows]
        self._used[rows] += 1
        while len(rows) and column.max() >= self._table.shape[1]:
            self._table = self._numbers(2 * self._table.shape[1])
        numbers: Array = low + (high - low) * self._table[rows, column]
        return numbers

    def integer(self, rows: Array, high: Array) -> Array:
        """The next number of each of ``rows`` as an integer from 0 to ``high``, int64 [n]."""
        return self.uniform(rows, 0.0, high + 1.0).astype(np.int64)

    def _numbers(self, n: int) -> Array:
        tables = [
            uniforms(*self._key, self._index, view, OP_MASK, n) for view in range(self._views)
        ]
        return torch.cat(tables).numpy()


def masked_shares(draws: Draws, probability: float, ratio: tuple[float, float]) -> Array:
    """Share of its patches that each mask hides, [n]: from U(ratio), or 0 for a view left whole.

    Args:
        draws: Numbers for n masks.
        probability: That a view is masked at all.
        ratio: low, high.
    """
    everyone = np.arange(draws.count)
    chosen = draws.uniform(everyone, 0.0, 1.0) < probability
    return np.where(chosen, draws.uniform(everyone, *ratio), 0.0)


def block_masks(
    draws: Draws,
    target: Array,
    grid: tuple[int, int],
    *,
    smallest: float,
    largest: float = math.inf,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Tensor:
    """Masks made of rectangles, as BEiT (arXiv 2106.08254, algorithm 1), iBOT and DINOv2 draw them.

    Rectangles are placed until ``target`` patches are masked. One is taken if it adds patches, but
    no more than are missing; after ten failures in a row a mask stays short of its target.

    Args:
        draws: Numbers for n masks.
        target: [n], patches to mask; of a fraction the whole part is reached.
        grid: rows, columns.
        smallest: Smallest area that a rectangle is drawn with, patches.
        largest: Largest, where not more are missing.
        aspect: Range of height over width, drawn log-uniformly.

    Returns:
        bool [n, rows, columns].
    """
    rows, columns = grid
    masks = np.zeros((draws.count, rows, columns), dtype=bool)
    missing = np.array(target, dtype=np.float64)
    failures = np.zeros(draws.count, dtype=np.int64)
    y, x = np.arange(rows), np.arange(columns)
    active = np.flatnonzero(missing >= 1)
    while len(active):
        area = draws.uniform(active, smallest, np.minimum(missing[active], largest))
        ratio = np.exp(draws.uniform(active, math.log(aspect[0]), math.log(aspect[1])))
        height, width = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (height < rows) & (width < columns)
        tried, height, width = active[fits], height[fits, None], width[fits, None]
        top = draws.integer(tried, rows - height[:, 0])[:, None]
        left = draws.integer(tried, columns - width[:, 0])[:, None]
        inside_y, inside_x = (y >= top) & (y < top + height), (x >= left) & (x < left + width)
        block = inside_y[:, :, None] & inside_x[:, None, :]
        added = (block & ~masks[tried]).sum((1, 2))
        good = (added > 0) & (added <= np.minimum(missing[tried], largest))

        taken = tried[good]
        masks[taken] |= block[good]
        missing[taken] -= added[good]
        failures[active] += 1
        failures[taken] = 0
        active = active[(missing[active] >= 1) & (failures[active] < ATTEMPTS)]
    return torch.from_numpy(masks)


def scattered_masks(draws: Draws, target: Array, grid: tuple[int, int]) -> Tensor:
    """Masks of single patches, each set of ``floor(target)`` patches as likely as any other.

    Args:
        draws: Numbers for n masks.
        target: [n], patches to mask.
        grid: rows, columns.

    Returns:
        bool [n, rows, columns].
    """
    everyone = np.arange(draws.count)
    scores = np.stack([draws.uniform(everyone, 0.0, 1.0) for _ in range(math.prod(grid))], axis=1)
    ranks = scores.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    masks = ranks < np.floor(np.asarray(target))[:, None]
    return torch.from_numpy(masks.reshape(-1, *grid))


def visible_tokens(tokens: int, mask_ratio: float) -> int:
    """How many of an image's tokens stay visible: ``int(tokens * (1 - mask_ratio))``.

    Raises:
        UsageError: none would.
    """
    visible = int(tokens * (1 - mask_ratio))
    if visible < 1:
        raise UsageError(
            f"masking {mask_ratio} of {tokens} tokens leaves none to see",
            tip="use larger views, a smaller backbone.options.patch, or a lower mask ratio",
        )
    return visible


def inverse_block_count(
    grid: tuple[int, int], mask_ratio: float, block: int, adjust: float
) -> tuple[int, int]:
    """Blocks that ``inverse_block_masks`` starts from, and the uniform numbers a mask takes."""
    tokens = grid[0] * grid[1]
    blocks = int(tokens * ((1 - mask_ratio + adjust) / block**2))
    return blocks, blocks + tokens


def inverse_block_masks(
    u: Tensor, grid: tuple[int, int], *, mask_ratio: float, block: int = 3, adjust: float = 0.0
) -> Tensor:
    """Masks that leave blocks visible (data2vec 2.0, arXiv 2212.07525, section 3).

    Centres are drawn with replacement and grow to ``block`` x ``block`` cells; what would lie
    outside the grid moves to its border. Random cells are then added or taken away until exactly
    ``int(N * (1 - mask_ratio))`` are visible, so that masks of equal length form a batch.

    Args:
        u: [..., n] uniform numbers in [0, 1), n at least as ``inverse_block_count`` says.
        grid: rows and columns; N is their product.
        mask_ratio: share of the tokens that is hidden, the paper's R.
        block: side of a block in tokens, the paper's B.
        adjust: added to the share of visible tokens when blocks are counted, the paper's A: blocks
            overlap.

    Returns:
        bool [..., rows, columns], True where a token is hidden.

    Raises:
        UsageError: no token would stay visible.
    """
    rows, columns = grid
    tokens = rows * columns
    visible = visible_tokens(tokens, mask_ratio)
    blocks, numbers = inverse_block_count(grid, mask_ratio, block, adjust)
    centre = (u[..., :blocks, None, None] * tokens).long()
    reach = torch.arange(block, device=u.device) - block // 2
    row = (centre // columns + reach[:, None]).clamp(0, rows - 1)
    column = (centre % columns + reach).clamp(0, columns - 1)
    cells = (row * columns + column).flatten(-3)  # [..., blocks * block * block]

    # A cell of a block ranks above any outside; within each kind, chance decides.
    covered = torch.zeros_like(u[..., blocks:numbers]).scatter(-1, cells, 1.0)
    rank = covered + u[..., blocks:numbers]
    shown = rank.argsort(dim=-1, descending=True)[..., :visible]
    mask = torch.ones(*u.shape[:-1], tokens, dtype=torch.bool, device=u.device)
    return mask.scatter(-1, shown, False).reshape(*u.shape[:-1], rows, columns)
