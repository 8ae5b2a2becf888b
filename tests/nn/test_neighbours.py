from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from selfsame.nn import neighbours as module
from selfsame.nn.neighbours import alike, components, nearest, outlierness, strongest
from selfsame.nn.precision import unit


def features(n: int = 90, dim: int = 8, seed: int = 0) -> Tensor:
    return unit(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("at_once", [1, 200, 2**25])
def test_the_nearest_are_those_of_a_full_sort(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    x, queries = features(), features(7, seed=1)
    similarity, rows = nearest(queries, x, 5)
    order = np.argsort(-(queries @ x.T).numpy(), axis=1)[:, :5]
    np.testing.assert_array_equal(rows.numpy(), order)
    torch.testing.assert_close(similarity, (queries[:, None] * x[rows]).sum(-1))
    own = torch.tensor([3, 50])
    _, others = nearest(x[own], x, 200, own=own)
    assert others.shape == (2, 89)
    assert not (others == own[:, None]).any()


def test_outlierness_agrees_with_scikit_learn() -> None:
    x = features()
    distances, _ = NearestNeighbors(n_neighbors=5, metric="cosine").fit(x).kneighbors()
    np.testing.assert_allclose(outlierness(x, 5).numpy(), distances.mean(1), atol=1e-5)


def test_pairs_and_components_are_those_of_the_full_matrix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from scipy.sparse.csgraph import connected_components

    monkeypatch.setattr(module, "BLOCK", 16)
    x = features(dim=3)
    matrix = (x @ x.T).numpy()
    expected = {tuple(pair) for pair in np.argwhere(np.triu(matrix >= 0.97, 1)).tolist()}
    pairs = list(alike(x, 0.97))
    found = [tuple(pair) for part in pairs for pair in part.rows.tolist()]
    assert len(found) == len(expected) > 20
    assert set(found) == expected
    count, most = strongest(pairs, 10)
    assert count == len(expected)
    best = np.sort(matrix[np.triu_indices(90, 1)])[::-1][:10]
    np.testing.assert_allclose(most.similarity.numpy(), best, atol=1e-6)
    _, labels = connected_components(matrix >= 0.97, directed=False)
    ours = components(90, iter(pairs)).numpy()
    same, theirs = ours[:, None] == ours, labels[:, None] == labels
    assert (same == theirs).all()
    assert 1 < len(set(ours.tolist())) < 90
