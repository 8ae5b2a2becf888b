"""Linear evaluation: multinomial logistic regression on frozen, standardised features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsame.evals.check import check_features
from selfsame.nn.precision import wide
from selfsame.optim import Eager

L2 = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
RIDGE = 1e-3  # of the preconditioner, where there are fewer images than channels
VALIDATION_SHARE = 0.2


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
    train_x: Tensor, train_y: Tensor, l2s: Sequence[float] = L2, seed: int = 0
) -> LinearProbe:
    """Standardise, choose the L2 strength on a stratified fifth of the data, refit on all of it.

    The most accurate strength wins, the strongest of equals. Where no class has two images, nothing
    can be held out and the strength is 1 / N, which is scikit-learn's ``C=1``.

    Args:
        train_x: [N, D] features.
        train_y: int64 [N] labels from 0.
        l2s: Strengths to try.
        seed: Of the split.
    """
    x = wide(train_x)
    std, mean = torch.std_mean(x, dim=0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    x = (x - mean) / std
    classes = int(train_y.max()) + 1

    held = _held_out(train_y, seed)
    best = 1 / len(x)
    if held.any() and len(l2s) > 1:
        accuracy = -1.0
        start = None
        for l2 in sorted(l2s, reverse=True):  # each solution is a good start for a weaker penalty
            start = fit_logistic(x[~held], train_y[~held], l2, classes, start)
            weight, bias = start
            right = (x[held] @ weight.T + bias).argmax(dim=1) == train_y[held]
            if right.double().mean().item() > accuracy:
                accuracy, best = right.double().mean().item(), l2
    elif len(l2s) == 1:
        best = l2s[0]
    weight, bias = fit_logistic(x, train_y, best, classes)
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
        y: int64 [N] labels in [0, num_classes).
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
    target = F.one_hot(y, num_classes).to(x.dtype)

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


def _held_out(y: Tensor, seed: int) -> Tensor:
    """Mark a random fifth of each class, at least one of a class of two or more. bool [N]."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=generator)
    order = order[y.cpu()[order].argsort(stable=True)]  # grouped by class, random inside
    counts = y.cpu().bincount()
    place = torch.arange(len(y)) - (counts.cumsum(0) - counts)[y.cpu()[order]]
    quota = torch.where(counts > 1, (counts * VALIDATION_SHARE).round().clamp(min=1), 0)
    held = torch.zeros(len(y), dtype=torch.bool)
    held[order] = place < quota[y.cpu()[order]]
    return held.to(y.device)
