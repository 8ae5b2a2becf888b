"""How sure an accuracy is."""

from __future__ import annotations

import torch


def bootstrap_interval(
    accuracy: float, n: int, *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of an accuracy over test images.

    Drawing n images with replacement from n, of which a share p is right, gives a Binomial(n, p)
    count of right ones, so the counts are drawn directly. Speaks of the choice of test images only,
    not of the seed or the training data; a perfect score has an interval without width.

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
    tail = (1 - level) / 2
    low, high = (counts / n).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
