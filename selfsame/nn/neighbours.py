"""Who is near whom among many vectors, in blocks: N x N similarities never exist at once.

Similarity is the inner product, so rows should have unit length: `precision.unit`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

AT_ONCE = 2**25  # similarities of queries and a gallery: 128 MiB of float32
BLOCK = 2048  # rows of a block where all are compared with all
ROUNDING = 1e-6  # by which the product of a unit vector with itself may miss 1


class Pairs(NamedTuple):
    """Pairs of rows i < j that are alike."""

    rows: Tensor  # int64 [P, 2]
    similarity: Tensor  # [P]


def nearest(
    queries: Tensor, gallery: Tensor, k: int, *, own: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k rows of the gallery that are most similar to each query.

    Args:
        queries: [M, D].
        gallery: [N, D], same type.
        k: Neighbours; a smaller gallery gives all of them.
        own: int64 [M], the row of the gallery that is the query itself, and does not count.

    Returns:
        Similarities, descending, and int64 rows of the gallery: two tensors [M, min(k, N)], with
        ``own`` at most N - 1 columns.
    """
    k = min(k, len(gallery) - (own is not None))
    at_once = max(1, AT_ONCE // len(gallery))
    values, rows = [], []
    for start in range(0, len(queries), at_once):
        similarity = queries[start : start + at_once] @ gallery.T
        if own is not None:
            similarity.scatter_(1, own[start : start + at_once, None], -torch.inf)
        best = similarity.topk(k)
        values.append(best.values)
        rows.append(best.indices)
    return torch.cat(values), torch.cat(rows)


def outlierness(x: Tensor, k: int) -> Tensor:
    """Mean cosine distance of each row, of unit length, to its k nearest others: [N].

    Source: the weight of Angiulli & Pizzuti, "Fast outlier detection in high dimensional spaces",
    PKDD 2002, as a mean.
    """
    similarity, _ = nearest(x, x, k, own=torch.arange(len(x), device=x.device))
    return 1 - similarity.mean(1)


def alike(x: Tensor, threshold: float) -> Iterator[Pairs]:
    """All pairs of rows with a similarity of ``threshold``, above 0, or more: a block at a time."""
    for a in range(0, len(x), BLOCK):
        for b in range(a, len(x), BLOCK):
            similarity = x[a : a + BLOCK] @ x[b : b + BLOCK].T
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
    for part in pairs:  # edges of one block at a time, between what is joined already
        a, b = component[part.rows].T.numpy()
        graph = coo_matrix((torch.ones(len(a), dtype=torch.bool).numpy(), (a, b)), (n, n))
        joined = torch.from_numpy(connected_components(graph, directed=False)[1]).long()
        component = joined[component]
    return component
