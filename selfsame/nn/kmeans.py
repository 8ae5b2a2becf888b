"""Clustering of a whole data set's features: k-means, and the whitening that may come before."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame import dist

CHUNK_BYTES = 32 * 2**20  # of a chunk's scores: the N x K matrix never exists as a whole
IGNORE = -100  # the cluster of an image that has none; cross-entropy leaves it out
SPLIT = 1 / 1024  # by which the halves of a split cluster differ, as in faiss
NO_VARIANCE = 1e-10  # of a principal component, as a share of the first one's


class Clustering(NamedTuple):
    """What k-means found. Assignments are those of this rank's rows, the rest is everyone's."""

    centroids: Tensor  # [K, D]
    assignment: Tensor  # int64 [n]
    objective: tuple[float, ...]  # before each update: squared distances, or products, summed


@torch.no_grad()
def kmeans(x: Tensor, centroids: Tensor, iterations: int, *, spherical: bool) -> Clustering:
    """Lloyd's algorithm over the rows of all ranks, then one more assignment.

    Ends early once an update changes nothing. Empty clusters: the spherical form keeps their
    centroids (DeepCluster-v2's code); the Euclidean one gives them half of another cluster
    (DeepCluster, paragraph "Empty clusters"), drawn from torch's global CPU generator, which
    must be in the same state on every rank.

    Args:
        x: [n, D], the rows of this rank, of unit length if ``spherical``.
        centroids: [K, D], where to start; the same on every rank.
        iterations: Updates of the centroids.
        spherical: Nearest by inner product, and centroids of unit length.
    """
    objective: list[float] = []
    settled = False
    for _ in range(iterations):
        assignment, sums, value = _assign(x, centroids, spherical)
        objective.append(value)
        if settled:
            break
        counts = dist.total(assignment.bincount(minlength=len(centroids)))
        means = dist.total(sums) / counts.clamp(min=1)[:, None]
        if spherical:
            means = F.normalize(means, dim=1)
        updated = torch.where(counts[:, None] > 0, means, centroids)
        if not spherical:
            _split_clusters(updated, counts)
        settled = torch.equal(updated, centroids)
        centroids = updated
    else:
        assignment = _assign(x, centroids, spherical)[0]
    return Clustering(centroids, assignment, tuple(objective))


def _assign(x: Tensor, centroids: Tensor, spherical: bool) -> tuple[Tensor, Tensor, float]:
    """The nearest centroid of each row, the sums of the rows of each, and the objective."""
    shift = 0.0 if spherical else centroids.square().sum(1) / 2
    sums, labels, value = torch.zeros_like(centroids), [], x.new_zeros(())
    for part in torch.split(x, max(1, CHUNK_BYTES // (len(centroids) * x.element_size()))):
        scores = part @ centroids.T - shift
        best, label = scores.max(dim=1)
        # A product with 0 and 1, as adding rows at an index has no fixed order on a GPU.
        sums += scores.zero_().scatter_(1, label[:, None], 1.0).T @ part
        labels.append(label)
        value += best.sum() if spherical else (part.square().sum(1) - 2 * best).sum()
    return torch.cat(labels), sums, dist.total(value).item()


def _split_clusters(centroids: Tensor, counts: Tensor) -> None:
    """Move each empty cluster beside a crowded one, in place.

    The crowded one is drawn with chances proportional to its size less one, and counted as halved
    afterwards; both centroids are the old one times 1 + e and 1 - e, coordinates in turn (faiss).
    """
    counts = counts.cpu()
    stretch = torch.full_like(centroids[0], 1 + SPLIT)
    stretch[1::2] = 1 - SPLIT
    for empty in (counts == 0).nonzero().flatten().tolist():
        crowd = (counts - 1).clamp(min=0).double()
        if crowd.sum() == 0:  # fewer rows than clusters
            return
        crowded = int(torch.multinomial(crowd, 1))
        centroids[empty] = centroids[crowded] * stretch
        centroids[crowded] *= 2 - stretch
        counts[empty] = counts[crowded] // 2
        counts[crowded] -= counts[empty]


@torch.no_grad()
def pca_whiten(x: Tensor, dim: int) -> Tensor:
    """Centre, project on the first principal components, whiten, and bring rows to unit length.

    In float64 and in chunks. Components without variance become zero; the sign of a component is
    the one that makes the largest entry of its direction positive.

    Args:
        x: [N, D], on a device that knows float64.
        dim: Components to keep, at most D.

    Returns:
        [N, dim] in the type of ``x``.
    """
    parts = torch.split(x, max(1, CHUNK_BYTES // (8 * x.shape[1])))
    mean = x.mean(0, dtype=torch.float64)
    covariance = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for part in parts:
        centred = part.double() - mean
        covariance += centred.T @ centred / len(x)
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    values, vectors = values.flip(0)[:dim], vectors.flip(1)[:, :dim]
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    scale = torch.where(values > NO_VARIANCE * values[0], values.rsqrt(), 0.0)
    whitened = [((part.double() - mean) @ (vectors * scale)).to(x.dtype) for part in parts]
    return F.normalize(torch.cat(whitened), dim=1)


def own_rows() -> slice:
    """This rank's share of rows that every rank holds."""
    return slice(dist.rank(), None, dist.world_size())


def collect(index: Tensor, assignment: Tensor, count: int) -> Tensor:
    """Assignments of all ranks by position: int64 [count], ``IGNORE`` where there is none.

    Args:
        index: int64 [n], positions of this rank's rows, on no other rank.
        assignment: int64 [n], their clusters.
        count: Positions in all.
    """
    found = assignment.new_zeros(count).index_copy_(0, index, assignment - IGNORE)
    return dist.total(found) + IGNORE


@torch.no_grad()
def embed_all(
    network: nn.Module,
    embed: Callable[[Tensor], Tensor],
    images: Iterable[tuple[Tensor, Tensor]],
    count: int,
) -> Tensor:
    """What ``embed`` gives for each image, [count, D] on the CPU, in the order of the data set.

    Each rank embeds its share, the batches that ``images`` gives it; all get everything.
    ``network`` is in evaluation mode meanwhile: no dropout, and statistics of no batch.
    """
    found = None
    training = [module for module in network.modules() if module.training]
    network.eval()
    for index, x in images:
        rows = embed(x).cpu()
        if found is None:
            found = rows.new_zeros(count, rows.shape[1])
        found[index] = rows
    for module in training:
        module.training = True
    # a rank without a batch learns the width from the others
    shapes = dist.everyone(None if found is None else (found.shape[1], found.dtype))
    width, dtype = next(shape for shape in shapes if shape is not None)
    return dist.total(torch.zeros(count, width, dtype=dtype) if found is None else found)
