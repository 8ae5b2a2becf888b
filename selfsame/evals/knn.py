"""Weighted k-nearest-neighbour classification on frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from selfsame.evals.check import check_features
from selfsame.evals.evaluator import Evaluator, Scores
from selfsame.evals.interval import bootstrap_interval
from selfsame.evals.subject import Data, Subject
from selfsame.nn.neighbours import nearest

KS = (1, 5, 10, 20, 50, 100, 200)


class KNN(Evaluator):
    """Weighted k nearest neighbours by cosine; 20 neighbours are the headline."""

    title: ClassVar[str] = "kNN (k=20)"

    ks: tuple[Annotated[int, Field(ge=1)], ...] = KS
    temperature: Annotated[float, Field(gt=0)] = 0.07

    def __call__(self, subject: Subject, data: Data) -> Scores:
        """Accuracy on the test part, for each k."""
        bank = subject.bank(data.labelled)
        found: Scores = knn(*bank, ks=self.ks, temperature=self.temperature)
        return found | {"knn_interval": bootstrap_interval(found["knn"], len(bank.test_y))}


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
    ks: Sequence[int] = KS,
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
    headline = min(20, len(train_x))
    wanted = sorted({k for k in ks if k <= len(train_x)} | {headline})
    right = knn_right(train_x, train_y, test_x, test_y, wanted, temperature)
    return {
        "knn": _share(right[headline][:, 0]),
        "knn_top5": _share(right[headline].any(dim=1)),
        **{f"knn@{k}": _share(right[k][:, 0]) for k in wanted if k in ks},
    }


def knn_right(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    ks: Sequence[int],
    temperature: float = 0.07,
) -> dict[int, Tensor]:
    """Whether each of the five best classes is right: bool [M, 5] for each k, best class first.

    Fewer columns where there are fewer classes. Arguments and errors as for `knn`, no k above N.
    """
    check_features(train_x, train_y, test_x, test_y)
    classes = int(torch.cat([train_y, test_y]).max()) + 1
    normalized = [F.normalize(x.to(_at_least_float32(x)), dim=-1) for x in (train_x, test_x)]
    similarity, label = _nearest(normalized[0], train_y, normalized[1], max(ks))
    similarity = similarity - similarity[:, :1]  # the same order of classes, and no overflow

    right = {}
    for k in ks:
        scores = _vote(similarity[:, :k], label[:, :k], temperature, classes)
        best = scores.topk(min(5, classes))  # [M, 5], best first
        right[k] = (best.indices == test_y[:, None]) & (best.values > 0)
    return right


def _nearest(train_x: Tensor, train_y: Tensor, test_x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Similarities, descending, and labels of the k nearest: two tensors [M, min(k, N)]."""
    similarity, rows = nearest(test_x, train_x, k)
    return similarity, train_y[rows]


def _vote(similarity: Tensor, label: Tensor, temperature: float, num_classes: int) -> Tensor:
    scores = similarity.new_zeros(len(similarity), num_classes)
    return scores.scatter_add_(1, label, (similarity / temperature).exp())


def _share(right: Tensor) -> float:
    return right.double().mean().item()


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
