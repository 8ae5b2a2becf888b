"""Sinkhorn-Knopp: soft assignments that use every prototype equally."""

from __future__ import annotations

import torch
from torch import Tensor

from selfsame import dist
from selfsame.nn.precision import wide


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int = 3) -> Tensor:
    """Codes Q of SwAV (arXiv 2006.09882, equations 3 to 5; algorithm 1 of the appendix).

    Starting from ``exp(scores / epsilon)``, each iteration gives every prototype, then every
    sample, the same total weight. Samples come last, so their codes sum to one exactly and the
    prototypes are balanced nearly. Sums run over the samples of all ranks.

    Computed with logarithms, where the authors' codes take the exponential first: no score is too
    large, and no sample or prototype is so far from all others that its weights vanish.

    Args:
        scores: [B, K]; the number of samples may differ between ranks.
        epsilon: Smoothness; DINOv2 uses the teacher's temperature.
        iterations: At least 1.

    Returns:
        [B, K] in float32, or float64 where ``scores`` is, rows summing to one. No gradient.
    """
    with torch.autocast(scores.device.type, enabled=False):
        log_q = wide(scores) / epsilon
        for _ in range(iterations):
            weight = dist.gather(log_q.logsumexp(0)[None]).logsumexp(0)  # [K], of each prototype
            log_q = (log_q - weight).log_softmax(1)
        return log_q.exp()
