"""Weighted k-nearest-neighbour classification on frozen features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsame.evals.check import check_features

SIMILARITIES_AT_ONCE = 2**25  # 128 MiB of float32


def knn_scores(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, k: int, temperature: float, num_classes: int
) -> Tensor:
    """Sum ``exp(similarity / temperature)`` over the k nearest neighbours of each class.

    Source: Wu et al., arXiv 1805.01978, section 3.4; DINO's ``eval_knn.py``. Similarity is the
    inner product, so features should have unit length. Memory is bounded whatever the sizes.

    Args:
        train_x: [N, D] features of the bank.
        train_y: int64 [N] labels in [0, num_classes).
        test_x: [M, D] features to classify, same dtype.
        k: Neighbours; a bank with fewer images gives all of them.
        temperature: Small values let the nearest decide. ``1 / temperature`` must stay below 88 in
            float32, where the exponential overflows.
        num_classes: Columns of the result.

    Returns:
        [M, num_classes] in the dtype of the features.
    """
    similarity, label = _nearest(train_x, train_y, test_x, k)
    return _vote(similarity, label, temperature, num_classes)


def knn(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    ks: Sequence[int] = (1, 5, 10, 20, 50, 100, 200),
    temperature: float = 0.07,
) -> dict[str, float]:
    """Accuracy of the k-nearest-neighbour classifier on L2-normalised features.

    Args:
        train_x: [N, D] features of the bank.
        train_y: int64 [N] labels from 0.
        test_x: [M, D] features to classify.
        test_y: int64 [M].
        ks: Numbers of neighbours; those above N are left out.
        temperature: See `knn_scores`; any value above 0 is safe here.

    Returns:
        Fractions in [0, 1]: ``knn`` and ``knn_top5`` with 20 neighbours (all, in a smaller bank),
        and ``knn@k`` for each k. A class without a vote is not among the five.

    Raises:
        UsageError: Sizes do not agree.
        RunError: A feature is not finite.
    """
    check_features(train_x, train_y, test_x, test_y)
    classes = int(torch.cat([train_y, test_y]).max()) + 1
    headline = min(20, len(train_x))
    wanted = sorted({k for k in ks if k <= len(train_x)} | {headline})

    normalized = [F.normalize(x.to(_at_least_float32(x)), dim=-1) for x in (train_x, test_x)]
    similarity, label = _nearest(normalized[0], train_y, normalized[1], wanted[-1])
    similarity = similarity - similarity[:, :1]  # the same order of classes, and no overflow

    right = {}
    for k in wanted:
        scores = _vote(similarity[:, :k], label[:, :k], temperature, classes)
        best = scores.topk(min(5, classes))  # [M, 5], best first
        right[k] = (best.indices == test_y[:, None]) & (best.values > 0)
    return {
        "knn": _share(right[headline][:, 0]),
        "knn_top5": _share(right[headline].any(dim=1)),
        **{f"knn@{k}": _share(right[k][:, 0]) for k in wanted if k in ks},
    }


def _nearest(train_x: Tensor, train_y: Tensor, test_x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Similarities, descending, and labels of the k nearest: two tensors [M, min(k, N)]."""
    rows = max(1, SIMILARITIES_AT_ONCE // len(train_x))
    k = min(k, len(train_x))
    parts = [(chunk @ train_x.T).topk(k) for chunk in torch.split(test_x, rows)]
    return (
        torch.cat([part.values for part in parts]),
        train_y[torch.cat([part.indices for part in parts])],
    )


def _vote(similarity: Tensor, label: Tensor, temperature: float, num_classes: int) -> Tensor:
    scores = similarity.new_zeros(len(similarity), num_classes)
    return scores.scatter_add_(1, label, (similarity / temperature).exp())


def _share(right: Tensor) -> float:
    return right.double().mean().item()


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
