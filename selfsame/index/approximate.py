"""Neighbours by FAISS, where it is installed and there are very many vectors.

Vectors are sorted into cells (k-means) and only the nearest cells are searched: much less work, and
now and then a neighbour is missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfsame.errors import UsageError
from selfsame.nn.neighbours import Pairs, Rows

LARGE = 200_000  # vectors from which FAISS is used where it is installed
CELLS = 4.0  # times the square root of the number of vectors
PROBED = 32  # cells that are searched for each vector
TRAINED = 64  # vectors a cell that the cells are learnt from
AT_ONCE = 4096  # queries


def chosen(n: int, exact: bool | None) -> bool:
    """Whether FAISS shall be used for n vectors.

    Args:
        n: Vectors.
        exact: What the user asked for; None decides by size and by what is installed.

    Raises:
        UsageError: it was asked for and is not installed.
    """
    there = find_spec("faiss") is not None
    if exact is False and not there:
        raise UsageError("--approximate needs FAISS", tip="pip install 'selfsame[faiss]'")
    return there and n >= LARGE if exact is None else not exact


def nearest_others(x: Rows, k: int) -> tuple[Tensor, Tensor]:
    """`neighbours.nearest` of each row, of unit length, among the others: two tensors [N, k].

    A row for which fewer are found, as its cells are small, repeats the last one.
    """
    index = _cells(x)
    values, rows = [], []
    for start in range(0, len(x), AT_ONCE):
        similarity, found = index.search(x[start : start + AT_ONCE].numpy(), k + 1)
        own = np.arange(start, start + len(found))[:, None]
        itself = found == own
        itself[~itself.any(1), -1] = True  # beside k + 1 copies it may not be among the first
        values.append(similarity[~itself].reshape(-1, k))
        rows.append(found[~itself].reshape(-1, k))
    similarity, found = np.concatenate(values), np.concatenate(rows)
    for column in range(1, k):
        missing = found[:, column] < 0
        for array in (similarity, found):
            array[missing, column] = array[missing, column - 1]
    return torch.from_numpy(similarity), torch.from_numpy(found)


def alike(x: Rows, threshold: float) -> Iterator[Pairs]:
    """`neighbours.alike`, some queries at a time."""
    index = _cells(x)
    for start in range(0, len(x), AT_ONCE):
        part = x[start : start + AT_ONCE].numpy()
        limits, similarity, found = index.range_search(part, threshold)
        query = np.repeat(np.arange(start, start + len(part)), np.diff(limits.astype(np.int64)))
        once = query < found
        rows = np.stack([query[once], found[once]], axis=1)
        yield Pairs(torch.from_numpy(rows), torch.from_numpy(similarity[once]))


def _cells(x: Rows) -> Any:
    """An index of FAISS, which holds a copy of the vectors."""
    import faiss

    n, dim = len(x), x[:1].shape[1]
    cells = max(1, min(int(CELLS * n**0.5), n // 40))
    quantizer = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFFlat(quantizer, dim, cells, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = min(PROBED, cells)
    learnt_from = np.zeros(n, dtype=bool)
    learnt_from[np.random.default_rng(0).permutation(n)[: TRAINED * cells]] = True
    starts = range(0, n, AT_ONCE)
    index.train(np.concatenate([x[s : s + AT_ONCE][learnt_from[s : s + AT_ONCE]] for s in starts]))
    for start in starts:
        index.add(x[start : start + AT_ONCE].numpy())
    return index
