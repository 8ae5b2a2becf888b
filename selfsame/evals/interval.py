"""How sure a score is: bootstrap intervals over test images.

They speak of the choice of test images only, not of the seed or the training data.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DRAWS = 1000


def bootstrap_interval(
    accuracy: float, n: int, *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of an accuracy over test images.

    Drawing n images with replacement from n, of which a share p is right, gives a Binomial(n, p)
    count of right ones, so the counts are drawn directly. A perfect score has an interval without
    width.

    Args:
        accuracy: Share of the test images that are right, in [0, 1].
        n: Number of test images.
        level: Probability mass inside.
        draws: Bootstrap samples.
        seed: Of the draws.

    Returns:
        Low and high end, fractions in [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    trials = torch.full((draws,), float(n), dtype=torch.float64)
    counts = torch.binomial(trials, torch.full_like(trials, accuracy), generator=generator)
    return _percentiles(counts / n, level)


def bootstrap(
    score: Callable[[Tensor], float],
    n: int,
    *,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
    around: float | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of any score of n test images.

    Args:
        score: The score of the images at ``index``, int64 [n], some of them several times.
        n: Number of test images.
        level: Probability mass inside.
        draws: Bootstrap samples.
        seed: Of the draws.
        around: The score of all images, where drawing some of them twice moves it systematically:
            the draws are then shifted to have it as their mean.
    """
    generator = torch.Generator().manual_seed(seed)
    found = torch.tensor(
        [score(torch.randint(n, (n,), generator=generator)) for _ in range(draws)],
        dtype=torch.float64,
    )
    if around is None:
        return _percentiles(found, level)
    low, high = _percentiles(found + around - found.mean(), level)
    return min(low, around), max(high, around)  # of equal draws, the mean is off by a rounding


def mean_interval(values: Tensor, *, seed: int = 0) -> tuple[float, float]:
    """`bootstrap` of the mean of one value a test image, [n]."""
    values = values.cpu().double()
    return bootstrap(lambda index: values[index].mean().item(), len(values), seed=seed)


def _percentiles(scores: Tensor, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    low, high = scores[scores.isfinite()].quantile(ends).tolist()
    return low, high
