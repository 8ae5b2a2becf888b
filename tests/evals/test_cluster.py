from itertools import permutations

import pytest
import torch

from selfsame.evals.cluster import ari, best_centroids, contingency, matched, nmi, seeds
from selfsame.nn.precision import unit


@pytest.mark.parametrize(("clusters", "classes"), [(4, 4), (7, 3), (2, 5), (1, 1)])
def test_measures_agree_with_scikit_learn(clusters: int, classes: int) -> None:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    g = torch.Generator().manual_seed(clusters)
    label = torch.randint(classes, (200,), generator=g)
    noise = torch.randint(clusters, (200,), generator=g)
    cluster = torch.where(torch.rand(200, generator=g) < 0.5, label % clusters, noise)
    table = contingency(cluster, label, clusters, classes)
    assert nmi(table) == pytest.approx(normalized_mutual_info_score(label, cluster), abs=1e-12)
    assert ari(table) == pytest.approx(adjusted_rand_score(label, cluster), abs=1e-12)


def test_the_matching_is_the_best_of_all() -> None:
    table = torch.randint(20, (4, 4), generator=torch.Generator().manual_seed(0)).double()
    best = max(sum(table[i, j] for i, j in enumerate(order)) for order in permutations(range(4)))
    assert matched(table) == pytest.approx((best / table.sum()).item())
    wide = torch.tensor([[5.0, 0.0, 0.0], [4.0, 1.0, 0.0]])  # a class without a cluster
    assert matched(wide) == pytest.approx(6 / 10)


def test_k_means_finds_what_is_there() -> None:
    g = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(5, 8, generator=g))
    label = torch.arange(100) % 5
    x = unit(centres[label] + 0.05 * torch.randn(100, 8, generator=g))
    found = best_centroids(x, 5, starts=3, iterations=20, seed=0)
    table = contingency((x @ found.T).argmax(1), label, 5, 5)
    assert matched(table) == nmi(table) == ari(table) == 1.0


def test_seeds_are_different_rows_where_there_are_enough() -> None:
    x = unit(torch.tensor([[1.0, 0.0]] * 50 + [[0.0, 1.0]] * 2 + [[-1.0, 0.0]] * 2))
    for seed in range(10):
        chosen = seeds(x, 3, torch.Generator().manual_seed(seed))
        assert len({tuple(row) for row in chosen.tolist()}) == 3
    assert len(seeds(x[:2], 2, torch.Generator().manual_seed(0))) == 2
