"""Linear evaluation: multinomial logistic regression on frozen, standardised features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from selfsame.evals.check import check_features
from selfsame.evals.evaluator import Evaluator, Scores
from selfsame.evals.interval import bootstrap_interval
from selfsame.evals.subject import Data, Subject
from selfsame.nn.precision import wide
from selfsame.optim import Eager

L2 = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
RIDGE = 1e-3  # of the preconditioner, where there are fewer images than channels
FOLDS = 5
ENOUGH = 5000  # held-out images, over all folds, that the strength is chosen on


class Linear(Evaluator):
    """Logistic regression by L-BFGS on standardised features; L2 chosen by cross-validation."""

    title: ClassVar[str] = "linear probe"
    facts: ClassVar[frozenset[str]] = frozenset({"linear_l2"})

    l2s: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = L2
    seed: int = 0

    def __call__(self, subject: Subject, data: Data) -> Scores:
        """Accuracy on the test part."""
        bank = subject.bank(data.labelled)
        found: Scores = linear(*bank, l2s=self.l2s, seed=self.seed)
        return found | {"linear_interval": bootstrap_interval(found["linear"], len(bank.test_y))}


class LinearProbe(NamedTuple):
    """A linear classifier of standardised features."""

    weight: Tensor  # [C, D]
    bias: Tensor  # [C]
    mean: Tensor  # [D] of the training features
    std: Tensor  # [D], 1 where a channel is constant
    l2: float  # strength, see `fit_logistic`

    def scores(self, x: Tensor) -> Tensor:
        """Logits [M, C] of raw features [M, D]."""
        return (x.to(self.mean.dtype) - self.mean) / self.std @ self.weight.T + self.bias


class _LBFGS(Eager, torch.optim.LBFGS):
    """Torch's own, started sooner."""


def linear(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    l2s: Sequence[float] = L2,
    seed: int = 0,
) -> dict[str, float]:
    """Test accuracy of a linear classifier whose L2 strength was chosen on training data.

    Args:
        train_x: [N, D] features.
        train_y: int64 [N] labels from 0.
        test_x: [M, D] features.
        test_y: int64 [M].
        l2s: Strengths to try.
        seed: Of the split that chooses the strength.

    Returns:
        ``linear``, the accuracy as a fraction, and ``linear_l2``, the chosen strength.

    Raises:
        UsageError: Sizes do not agree.
        RunError: A feature is not finite.
    """
    check_features(train_x, train_y, test_x, test_y)
    probe = fit_probe(train_x, train_y, l2s, seed)
    correct = probe.scores(test_x).argmax(dim=1) == test_y
    return {"linear": correct.double().mean().item(), "linear_l2": probe.l2}


def fit_probe(
    train_x: Tensor,
    train_y: Tensor,
    l2s: Sequence[float] = L2,
    seed: int = 0,
    folds: int = FOLDS,
) -> LinearProbe:
    """Standardise, choose the L2 strength on held-out fifths of the data, refit on all of it.

    The fifths are stratified; of a large set only as many are held out as give ``ENOUGH`` images.
    The strength that is right most often on them wins, the strongest of equals. Where no class has
    two images, nothing can be held out and the strength is 1 / N, which is scikit-learn's ``C=1``.

    Args:
        train_x: [N, D] features.
        train_y: int64 [N] labels from 0.
        l2s: Strengths to try.
        seed: Of the fifths.
        folds: How many of the fifths are held out in turn, at the most.
    """
    x = wide(train_x)
    std, mean = torch.std_mean(x, dim=0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    x = (x - mean) / std
    classes = int(train_y.max()) + 1
    axes = None
    if len(x) < x.shape[1]:  # the solution lies in the span of the images: a smaller problem
        axes = torch.linalg.svd(x, full_matrices=False).Vh
        x = x @ axes.T

    best = 1 / len(x)
    if len(l2s) == 1:
        best = l2s[0]
    else:
        fold = stratified_folds(train_y, seed)
        right = dict.fromkeys(sorted(l2s, reverse=True), 0)
        for k in range(min(folds, -(-ENOUGH * FOLDS // len(x)))):
            held = fold == k
            if not held.any():
                continue
            start = None
            for l2 in right:  # each solution is a good start for a weaker penalty
                start = fit_logistic(x[~held], train_y[~held], l2, classes, start)
                guess = (x[held] @ start[0].T + start[1]).argmax(dim=1)
                right[l2] += int((guess == train_y[held]).sum())
        if (fold >= 0).any():
            best = max(right, key=lambda l2: right[l2])
    weight, bias = fit_logistic(x, train_y, best, classes)
    if axes is not None:
        weight = weight @ axes
    return LinearProbe(weight, bias, mean, std, best)


def fit_logistic(
    x: Tensor,
    y: Tensor,
    l2: float,
    num_classes: int,
    start: tuple[Tensor, Tensor] | None = None,
    *,
    tolerance: float = 3e-4,
    max_iterations: int = 200,
) -> tuple[Tensor, Tensor]:
    """Minimise ``mean cross-entropy + l2 / 2 * |W|^2`` by L-BFGS, in the dtype of ``x``.

    The bias is not penalised. scikit-learn's ``LogisticRegression`` has the same minimum at ``C =
    1 / (l2 * N)``.

    Args:
        x: [N, D] features, standardised.
        y: int64 [N] labels in [0, num_classes), or [N, C], the share of each class.
        l2: Strength of the penalty, independent of N.
        num_classes: C.
        start: Weight and bias to begin with; zeros where None.
        tolerance: Largest entry of the preconditioned gradient at which the fit is done.
        max_iterations: Of L-BFGS.

    Returns:
        Weight [C, D] and bias [C].
    """
    n, dim = x.shape
    # Channels are correlated, which slows L-BFGS down. The Hessian at uniform probabilities is
    # about A = x'x / (n C) + l2 I; in V = W L with A = LL' it is about the identity.
    ridge = l2 + RIDGE / num_classes
    curvature = x.T @ x / (n * num_classes) + ridge * torch.eye(dim, dtype=x.dtype, device=x.device)
    lower: Tensor = torch.linalg.cholesky(curvature)
    inverse: Tensor = torch.linalg.inv(lower)

    theta = x.new_zeros(num_classes, dim + 1)  # [V | b]: one tensor, one vector for L-BFGS
    if start is not None:
        theta = torch.cat([start[0] @ lower, start[1][:, None]], dim=1)
    target = (F.one_hot(y, num_classes) if y.ndim == 1 else y).to(x.dtype)

    def loss_and_grad() -> Tensor:
        weight = theta[:, :dim] @ inverse
        log_p = (x @ weight.T + theta[:, dim]).log_softmax(dim=1)
        residual = (log_p.exp() - target) / n
        grad_weight = (residual.T @ x + l2 * weight) @ inverse.T
        theta.grad = torch.cat([grad_weight, residual.sum(dim=0)[:, None]], dim=1)
        return -(log_p * target).sum() / n + l2 / 2 * weight.square().sum()

    optimizer = _LBFGS(
        [theta],
        lr=1.0,
        max_iter=max_iterations,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        history_size=10,
        line_search_fn="strong_wolfe",
    )
    with torch.no_grad():
        optimizer.step(loss_and_grad)  # type: ignore[no-untyped-call]
    return theta[:, :dim] @ inverse, theta[:, dim].contiguous()


def stratified_folds(y: Tensor, seed: int) -> Tensor:
    """Deal each class into fifths at random: int64 [N] in 0..4, -1 for the image of a class of one.

    A class of two or more is in several fifths, so no fifth holds all of it.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = y.cpu()
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]  # grouped by class, random inside
    counts = labels.bincount()
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    fold = torch.empty_like(labels)
    # each class begins where the one before it ended: small classes do not crowd the first fifths
    fold[order] = (place + counts.cumsum(0)[labels[order]]) % FOLDS
    fold[counts[labels] == 1] = -1
    return fold.to(y.device)
