"""Clustering: do the features fall into the classes by themselves?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from selfsame.evals.check import check_features
from selfsame.evals.evaluator import Evaluator, Scores
from selfsame.evals.interval import bootstrap, bootstrap_interval
from selfsame.evals.subject import Data, Subject
from selfsame.nn.kmeans import kmeans
from selfsame.nn.precision import unit


class Cluster(Evaluator):
    """Spherical k-means on the train part, scored where the test part falls.

    As many clusters as classes unless ``clusters`` says another number; of several starts the one
    with the best objective counts, which no label is read for. Labels are read by the scores alone.
    """

    title: ClassVar[str] = "cluster accuracy"
    facts: ClassVar[frozenset[str]] = frozenset({"cluster_clusters"})

    clusters: Annotated[int, Field(ge=2)] | None = None
    starts: Annotated[int, Field(ge=1)] = 10
    iterations: Annotated[int, Field(ge=1)] = 100
    seed: int = 0

    def __call__(self, subject: Subject, data: Data) -> Scores:
        """``cluster`` is the accuracy under the best matching of clusters and classes.

        The interval of the accuracy keeps that matching.
        """
        bank = subject.bank(data.labelled)
        check_features(*bank)
        classes = int(torch.cat([bank.train_y, bank.test_y]).max()) + 1
        count = min(self.clusters or classes, len(bank.train_x))
        centroids = best_centroids(
            unit(bank.train_x), count, self.starts, self.iterations, self.seed
        )
        cluster = (unit(bank.test_x) @ centroids.T).argmax(dim=1).cpu()
        label = bank.test_y.cpu()
        table = contingency(cluster, label, count, classes)
        accuracy = matched(table)

        def interval(measure: Callable[[Tensor], float]) -> tuple[float, float]:
            """Repeated images look like agreement: the draws are centred on the score."""
            low, high = bootstrap(
                lambda index: measure(contingency(cluster[index], label[index], count, classes)),
                len(label),
                around=measure(table),
            )
            return low, min(1.0, high)

        return {
            "cluster": accuracy,
            "cluster_interval": bootstrap_interval(accuracy, len(label)),
            "cluster_nmi": nmi(table),
            "cluster_nmi_interval": interval(nmi),
            "cluster_ari": ari(table),
            "cluster_ari_interval": interval(ari),
            "cluster_clusters": count,
        }


def best_centroids(x: Tensor, count: int, starts: int, iterations: int, seed: int) -> Tensor:
    """Centroids [K, D] of the best of several k-means of unit rows ``x``, [N, D]."""
    generator = torch.Generator().manual_seed(seed)
    best, value = x[:count], -torch.inf
    for _ in range(starts):
        found = kmeans(x, seeds(x, count, generator), iterations, spherical=True)
        last = (x @ found.centroids.T).amax(dim=1).sum().item()
        if last > value:
            best, value = found.centroids, last
    return best


def seeds(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii, SODA 2007): rows far from those already chosen.

    Args:
        x: [N, D] of unit length.
        count: K.
        generator: On the CPU.

    Returns:
        [K, D].
    """
    first = int(torch.randint(len(x), (1,), generator=generator))
    chosen, far = [first], 1 - x @ x[first]  # half the squared distance
    for _ in range(count - 1):
        chance = far.clamp(min=0).cpu().double()
        if chance.sum() == 0:  # fewer different rows than clusters
            chance = torch.ones_like(chance)
        chosen.append(int(torch.multinomial(chance, 1, generator=generator)))
        far = torch.minimum(far, 1 - x @ x[chosen[-1]])
    return x[chosen]


def contingency(cluster: Tensor, label: Tensor, clusters: int, classes: int) -> Tensor:
    """How many images are in each cluster and class: float64 [K, C]."""
    counts = (cluster * classes + label).bincount(minlength=clusters * classes)
    return counts.reshape(clusters, classes).double()


def nmi(table: Tensor) -> float:
    """Mutual information of clusters and classes over the mean of their entropies, in [0, 1].

    scikit-learn's ``normalized_mutual_info_score``; 1 where there is one cluster and one class.
    """
    p = table / table.sum()
    rows, columns = p.sum(1), p.sum(0)
    each = torch.special.entr(rows).sum(), torch.special.entr(columns).sum()
    mutual = each[0] + each[1] - torch.special.entr(p).sum()
    mean = (each[0] + each[1]) / 2
    return 1.0 if mean == 0 else min(1.0, max(0.0, (mutual / mean).item()))


def ari(table: Tensor) -> float:
    """Rand index adjusted for chance, at most 1 (Hubert and Arabie, 1985); 0 is chance.

    scikit-learn's ``adjusted_rand_score``.
    """

    def pairs(n: Tensor) -> Tensor:
        return (n * (n - 1) / 2).sum()

    together, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    chance = rows * columns / pairs(table.sum()).clamp(min=1)
    best = (rows + columns) / 2
    return 1.0 if best == chance else ((together - chance) / (best - chance)).item()


def matched(table: Tensor) -> float:
    """Accuracy under the best matching of clusters with classes, one to one (Kuhn, 1955)."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
    return (table[rows, columns].sum() / table.sum()).item()
