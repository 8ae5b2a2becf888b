from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from selfsame.index import approximate
from selfsame.index.choose import k_centre, spread, typical
from selfsame.nn.neighbours import alike, nearest
from selfsame.nn.precision import unit


def clusters(count: int = 6, each: int = 20, dim: int = 16, noise: float = 0.02) -> Tensor:
    """Tight clusters of different sizes, each behind the other."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(count, dim, generator=generator)
    sizes = [each + 3 * c for c in range(count)]
    rows = centres.repeat_interleave(torch.tensor(sizes), dim=0)
    return unit(rows + noise * torch.randn(rows.shape, generator=generator))


def test_k_centre_is_the_greedy_choice_of_the_paper() -> None:
    x = unit(torch.randn(70, 6, generator=torch.Generator().manual_seed(1)))
    rows, counts = k_centre(x, 12)
    points = x.double().numpy()
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    chosen = [int((points @ points.mean(0)).argmax())]
    while len(chosen) < 12:
        chosen.append(int(distance[:, chosen].min(1).argmax()))
    assert rows.tolist() == chosen
    assert counts.tolist() == np.bincount(distance[:, chosen].argmin(1), minlength=12).tolist()


def test_typical_images_are_the_middles_of_clusters_largest_first() -> None:
    x = clusters()
    rows, counts = typical(x, 6)
    sizes = [20 + 3 * c for c in range(6)]
    assert counts.tolist() == sizes[::-1]
    bounds = np.cumsum([0, *sizes])
    for row, c in zip(rows.tolist(), range(5, -1, -1), strict=True):
        members = torch.arange(bounds[c], bounds[c + 1])
        own = x[members]
        near = nearest(own, own, 20, own=torch.arange(len(own)))[0].mean(1)
        assert row == members[near.argmax()]


@pytest.mark.parametrize("choose", [k_centre, typical])
def test_copies_are_chosen_last_and_no_image_twice(choose: object) -> None:
    x = clusters(count=3, each=2).repeat(4, 1)
    rows, counts = choose(x, len(x))  # type: ignore[operator]
    assert sorted(rows.tolist()) == list(range(len(x)))
    assert len(counts) == len(x)
    assert len(set(spread(x, len(x), 0).tolist())) == len(x)


def test_faiss_agrees_with_the_exact_search() -> None:
    """On points in clusters; how many of the exact neighbours it must find at least."""
    pytest.importorskip("faiss", reason="pip install 'selfsame[faiss]'")
    x = clusters(count=200, each=12, noise=0.3)[:3000]
    values, rows = approximate.nearest_others(x, 5)
    expected, others = nearest(x, x, 5, own=torch.arange(len(x)))
    shared = (rows[:, :, None] == others[:, None]).any(1).double().mean().item()
    assert shared > 0.95
    assert (values <= expected + 1e-5).all()
    assert not (rows == torch.arange(len(x))[:, None]).any()
    exact = {tuple(r) for p in alike(x, 0.97) for r in p.rows.tolist()}
    found = {tuple(r) for p in approximate.alike(x, 0.97) for r in p.rows.tolist()}
    assert found <= exact | {r for p in alike(x, 0.9699) for r in map(tuple, p.rows.tolist())}
    assert len(found & exact) > 0.95 * len(exact) > 100
