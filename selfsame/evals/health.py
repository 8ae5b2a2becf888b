"""Label-free health: does the representation use its dimensions, or has it collapsed?

All functions compute in float32, or float64 where they are given it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsame.nn.precision import wide


def rankme(z: Tensor, eps: float = 1e-7) -> Tensor:
    """Effective rank: the exponential of the entropy of the normalised singular values.

    Not centred, ``p = sigma / sum(sigma) + eps`` not renormalised. Source: Garrido et al., RankMe,
    arXiv 2210.02885, equations 1 and 2.

    Args:
        z: [N, D] embeddings; the paper uses 25,600 rows.
        eps: Keeps the logarithm finite.

    Returns:
        [] between 1 (collapsed to a line) and min(N, D).
    """
    sigma = torch.linalg.svdvals(wide(z))
    p = sigma / sigma.sum() + eps
    entropy: Tensor = -(p * p.log()).sum()
    return entropy.exp()


def feature_std(z: Tensor) -> tuple[Tensor, float]:
    """Mean over channels of the standard deviation of L2-normalised features.

    Source: Chen and He, SimSiam, arXiv 2011.10566, section 4.1.

    Args:
        z: [N, D].

    Returns:
        The deviation, [], and its reference ``1 / sqrt(D)``, the value of isotropic features. Near
        0 is collapse; below a tenth of the reference it is certain, above half it is healthy.
    """
    return F.normalize(wide(z), dim=-1).std(dim=0, correction=0).mean(), z.shape[1] ** -0.5


def align(x: Tensor, y: Tensor, alpha: float = 2) -> Tensor:
    """Alignment, ``mean |x - y|^alpha``: how far apart the two views of an image lie.

    Source: Wang and Isola, arXiv 2005.10242, section 4.1.1.

    Args:
        x: [N, D] unit features of one view.
        y: [N, D] unit features of the other.
        alpha: Exponent.

    Returns:
        [] from 0; less is better.
    """
    distance: Tensor = torch.linalg.vector_norm(wide(x) - wide(y), dim=1)
    return distance.pow(alpha).mean()


def uniform(x: Tensor, t: float = 2) -> Tensor:
    """Uniformity, the log of ``mean exp(-t |x_i - x_j|^2)`` over unordered distinct pairs.

    Source: Wang and Isola, arXiv 2005.10242, section 4.1.2. All N (N - 1) / 2 distances are held
    at once: give a few thousand rows.

    Args:
        x: [N, D] unit features, N at least 2.
        t: Inverse width of the kernel.

    Returns:
        [] at most 0; less is better.
    """
    return torch.pdist(wide(x)).square().mul(-t).exp().mean().log()
