"""Who is near whom among many vectors, in blocks: N x N similarities never exist at once.

Similarity is the inner product, so rows should have unit length: `precision.unit`. Vectors may be a
tensor, or `Rows` that are read when they are asked for: then memory holds some blocks of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

AT_ONCE = 2**25  # similarities of queries and a gallery: 128 MiB of float32
GALLERY = 2**14  # rows of a gallery that queries are compared with at once
BLOCK = 2048  # rows of a block where all are compared with all
HELD = 4  # such blocks that stay in memory while all later ones pass by
ROUNDING = 1e-6  # by which the product of a unit vector with itself may miss 1


class Rows(Protocol):
    """Vectors that can be sliced: a tensor [N, D], or an index on the disk."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Consecutive ones, [n, D]."""


class Pairs(NamedTuple):
    """Pairs of rows i < j that are alike."""

    rows: Tensor  # int64 [P, 2]
    similarity: Tensor  # [P]


def nearest(
    queries: Tensor, gallery: Rows, k: int, *, own: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k rows of the gallery that are most similar to each query.

    Args:
        queries: [M, D].
        gallery: [N, D], same type; it passes by once.
        k: Neighbours; a smaller gallery gives all of them.
        own: int64 [M], the row of the gallery that is the query itself, and does not count.

    Returns:
        Similarities, descending, and int64 rows of the gallery: two tensors [M, min(k, N)], with
        ``own`` at most N - 1 columns.
    """
    k = min(k, len(gallery) - (own is not None))
    values, rows = _nearest_of(queries, gallery[:GALLERY], k, own)
    for start in range(GALLERY, len(gallery), GALLERY):
        part = gallery[start : start + GALLERY]
        near = _nearest_of(queries, part, k, None if own is None else own - start)
        values, rows = torch.cat([values, near[0]], 1), torch.cat([rows, near[1] + start], 1)
        best = values.topk(min(k, values.shape[1]))
        values, rows = best.values, rows.gather(1, best.indices)
    return values, rows


def _nearest_of(
    queries: Tensor, gallery: Tensor, k: int, own: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The k nearest, or all, of a part of the gallery; its own row, if any, is infinitely far."""
    at_once = max(1, AT_ONCE // len(gallery))
    values, rows = [], []
    for start in range(0, len(queries), at_once):
        similarity = queries[start : start + at_once] @ gallery.T
        if own is not None:
            itself = own[start : start + at_once, None]
            here = (itself >= 0) & (itself < len(gallery))
            column = itself.clamp(0, len(gallery) - 1)
            kept = similarity.gather(1, column).masked_fill(here, -torch.inf)
            similarity.scatter_(1, column, kept)
        best = similarity.topk(min(k, len(gallery)))
        values.append(best.values)
        rows.append(best.indices)
    return torch.cat(values), torch.cat(rows)


def likeness(x: Rows, k: int) -> Tensor:
    """Mean similarity of each row to its k nearest others: [N]."""
    found = []
    for start in range(0, len(x), HELD * BLOCK):
        queries = x[start : start + HELD * BLOCK]
        own = torch.arange(start, start + len(queries), device=queries.device)
        found.append(nearest(queries, x, k, own=own)[0].mean(1))
    return torch.cat(found)


def outlierness(x: Rows, k: int) -> Tensor:
    """Mean cosine distance of each row, of unit length, to its k nearest others: [N].

    Source: the weight of Angiulli & Pizzuti, "Fast outlier detection in high dimensional spaces",
    PKDD 2002, as a mean.
    """
    return 1 - likeness(x, k)


def alike(x: Rows, threshold: float) -> Iterator[Pairs]:
    """All pairs of rows with a similarity of ``threshold``, above 0, or more: a block at a time."""
    for start in range(0, len(x), HELD * BLOCK):
        held = x[start : start + HELD * BLOCK]
        for b in range(start, len(x), BLOCK):
            passing = x[b : b + BLOCK]
            for a in range(start, min(b + 1, start + len(held)), BLOCK):
                similarity = held[a - start : a - start + BLOCK] @ passing.T
                if a == b:
                    similarity = similarity.triu(1)
                rows = (similarity >= threshold - ROUNDING).nonzero()
                if len(rows):
                    values = similarity[rows[:, 0], rows[:, 1]]
                    yield Pairs(rows + torch.tensor([a, b], device=rows.device), values)


def strongest(pairs: Iterable[Pairs], most: int) -> tuple[int, Pairs]:
    """How many pairs there are, and the ``most`` similar ones, descending."""
    count = 0
    kept = Pairs(torch.empty(0, 2, dtype=torch.int64), torch.empty(0))
    for part in pairs:
        count += len(part.rows)
        rows, similarity = torch.cat([kept.rows, part.rows]), torch.cat([kept[1], part[1]])
        order = similarity.argsort(descending=True, stable=True)[:most]
        kept = Pairs(rows[order], similarity[order])
    return count, kept


def components(n: int, pairs: Iterable[Pairs]) -> Tensor:
    """Connected components of n rows that the pairs join: int64 [n], the component of each."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    component = torch.arange(n)
    for rows in _together(pairs, n):  # edges between what is joined already
        a, b = component[rows].T.numpy()
        graph = coo_matrix((torch.ones(len(a), dtype=torch.bool).numpy(), (a, b)), (n, n))
        joined = torch.from_numpy(connected_components(graph, directed=False)[1]).long()
        component = joined[component]
    return component


def _together(pairs: Iterable[Pairs], most: int) -> Iterator[Tensor]:
    """The rows of pairs, int64 [P, 2], up to ``most`` at a time: joining looks at all rows.

    They are copied: thousands of small tensors kept between large ones tear memory to pieces.
    """
    kept, count = torch.empty(most, 2, dtype=torch.int64), 0
    for part in pairs:
        if count + len(part.rows) > most:
            yield kept[:count]
            count = 0
        if len(part.rows) > most:
            yield part.rows
        else:
            kept[count : count + len(part.rows)] = part.rows
            count += len(part.rows)
    yield kept[:count]
