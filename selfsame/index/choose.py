"""Which images to label first: a few that stand for all."""

from __future__ import annotations

import torch
from torch import Tensor

from selfsame.nn.kmeans import kmeans
from selfsame.nn.neighbours import likeness, nearest

ITERATIONS = 20  # of k-means
NEIGHBOURS = 20  # whose mean similarity is an image's typicality, as in the paper


def typical(x: Tensor, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The most typical image of each of n clusters, those of the largest clusters first.

    Source: TypiClust (Hacohen et al., arXiv 2202.02794, section 3.2), asked once for all n.
    Clusters are spherical k-means; typicality is the mean cosine similarity to the 20 nearest of
    the cluster, where the paper takes the inverse of the mean distance: the same order, nearly.
    Clusters that end empty give their place to what is farthest from everything that is chosen.

    Args:
        x: [N, D] of unit length.
        n: Images, at most N.
        seed: Of the first centroids.

    Returns:
        int64 [n] rows, and int64 [n], how many images each stands for.
    """
    found = kmeans(x, x[spread(x, n, seed)], ITERATIONS, spherical=True)
    sizes = found.assignment.bincount(minlength=n)
    order = sizes.argsort(descending=True, stable=True)
    members = torch.split(found.assignment.argsort(stable=True), sizes.tolist())
    chosen = [_most_typical(x, members[c]) for c in order.tolist() if len(members[c])]
    rows = torch.tensor(chosen)
    counts = sizes[order][: len(rows)]
    if len(rows) < n:
        rows = farthest(x, n, rows)
        counts = torch.cat([counts, counts.new_ones(n - len(counts))])
    return rows, counts


class _Members:
    """Some rows of x, as `neighbours.Rows`: a cluster may be nearly everything."""

    def __init__(self, x: Tensor, members: Tensor) -> None:
        self.x, self.members = x, members

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, rows: slice) -> Tensor:
        return self.x[self.members[rows]]


def _most_typical(x: Tensor, members: Tensor) -> int:
    if len(members) < 3:
        return int(members[0])
    return int(members[likeness(_Members(x, members), NEIGHBOURS).argmax()])


def k_centre(x: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Greedy k-centre: again and again the image farthest from all that are chosen.

    Source: Sener & Savarese, arXiv 1708.00489, algorithm 1, begun with the image nearest to the
    mean of all. The distance from any image to the nearest chosen one is at most twice the least
    possible.

    Args:
        x: [N, D] of unit length.
        n: Images, at most N.

    Returns:
        int64 [n] rows in the order chosen, and int64 [n], how many images are nearest to each.
    """
    first = (x @ x.mean(0)).argmax()
    rows = farthest(x, n, first[None])
    _, centre = nearest(x, x[rows], 1)
    return rows, centre[:, 0].bincount(minlength=n)


def farthest(x: Tensor, n: int, chosen: Tensor) -> Tensor:
    """Add to ``chosen``, int64 [m], the row that is least similar to all of them, until n."""
    _, near = nearest(x, x[chosen], 1)
    closest = (x * x[chosen[near[:, 0]]]).sum(1)
    closest[chosen] = torch.inf
    rows = chosen.tolist()
    while len(rows) < n:
        row = int(closest.argmin())
        rows.append(row)
        closest = torch.maximum(closest, x @ x[row])
        closest[row] = torch.inf
    return torch.tensor(rows)


def spread(x: Tensor, n: int, seed: int) -> Tensor:
    """Rows to begin k-means with: drawn in proportion to the squared distance to those before.

    Source: k-means++ (Arthur & Vassilvitskii, SODA 2007). int64 [n], no row twice.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = [int(torch.randint(len(x), (1,), generator=generator))]
    distance = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for _ in range(n - 1):
        # between unit vectors; copies of a row are not quite at zero from it
        new = (2 - 2 * (x @ x[rows[-1]])).double().clamp(min=1e-12)
        distance = torch.minimum(distance, new)
        distance[rows[-1]] = 0
        total = distance.cumsum(0)
        point = torch.rand(1, generator=generator, dtype=torch.float64) * total[-1]
        row = min(int(torch.searchsorted(total, point, right=True)), len(x) - 1)
        rows.append(row if distance[row] > 0 else int(distance.argmax()))
    return torch.tensor(rows)
