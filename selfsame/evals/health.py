"""Label-free health: what features say about themselves. ``docs/health.md`` explains each number.

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


def alpha_req(
    z: Tensor, first: int = 6, last: int = 50, *, weighted: bool = True, eps: float = 1e-12
) -> Tensor:
    """Decay of the spectrum: ``lambda_i ~ i^-alpha``, fitted in logarithms.

    Source: Agrawal et al., alpha-ReQ, NeurIPS 2022, with the fit of its authors, that of Stringer
    et al. (``get_powerlaw``), where rank i has the weight 1/i.

    Args:
        z: [N, D] features; their centred covariance is used.
        first: First rank of the fit, counted from 1.
        last: Last rank; fewer where N - 1 or D are.
        weighted: False gives all ranks the same weight.
        eps: Share of the largest eigenvalue below which one is taken for this.

    Returns:
        [] about 1 in good representations; more where few directions hold all the variance, less
        where noise fills many. From rank 1 where fewer than two ranks would be left, and 0 where
        even those are too few.
    """
    z = wide(z)
    eigenvalues: Tensor = torch.linalg.svdvals(z - z.mean(0)).square() / len(z)
    last = min(last, len(z) - 1, z.shape[1])
    first = first if last > first else 1
    if last < 2:
        return eigenvalues.new_zeros(())
    rank = torch.arange(first, last + 1, device=z.device, dtype=z.dtype)
    floor = (eps * eigenvalues[0]).clamp(min=torch.finfo(z.dtype).tiny)
    x, y = rank.log(), eigenvalues[first - 1 : last].clamp(min=floor).log()
    weight = 1 / rank if weighted else torch.ones_like(rank)
    x, y = (v - (weight * v).sum() / weight.sum() for v in (x, y))
    slope: Tensor = (weight * x * y).sum() / (weight * x * x).sum()
    return -slope


def lidar(z: Tensor, delta: float = 1e-4, eps: float = 1e-7, *, unbiased: bool = True) -> Tensor:
    """Effective rank of what tells images apart, measured by how their own views scatter.

    The exponential of the entropy of the eigenvalues of ``Sw^-1/2 Sb Sw^-1/2``: Sb is the
    covariance of the images' means, Sw that of views around them plus ``delta``. Source: Thilak et
    al., LiDAR, arXiv 2312.04000, section 4.

    Args:
        z: [n, q, D], q views of each of n images; the paper has n = 1000 and q = 50.
        delta: Added to the diagonal of Sw.
        eps: Keeps the logarithm finite.
        unbiased: Divide by n - 1 and n (q - 1); False by n and n q.

    Returns:
        [] between 1 and min(n - 1, D).
    """
    eigenvalues = lidar_eigenvalues(z, delta, unbiased=unbiased)
    p = eigenvalues / eigenvalues.sum() + eps
    entropy: Tensor = -(p * p.log()).sum()
    return entropy.exp()


def lidar_eigenvalues(z: Tensor, delta: float, *, unbiased: bool = True) -> Tensor:
    """Eigenvalues of ``Sw^-1/2 Sb Sw^-1/2``, [D], descending; arguments as of ``lidar``."""
    z = wide(z)
    n, q, dim = z.shape
    center = z.mean(1)  # [n, D]
    between = center - center.mean(0)
    within = (z - center[:, None]).flatten(0, 1)
    s_w = within.T @ within / (n * (q - unbiased))
    s_w = s_w + delta * torch.eye(dim, dtype=z.dtype, device=z.device)
    # with Sw = LL', the eigenvalues are the squared singular values of L^-1 times the means
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(s_w), between.T, upper=False)
    found: Tensor = torch.linalg.svdvals(whitened).square() / (n - unbiased)  # [min(n, D)]
    return torch.cat([found, found.new_zeros(dim - len(found))])


def neighbor_distance(x: Tensor) -> Tensor:
    """Mean distance of unit features [N, D] to the nearest other one: [] in [0, 2]."""
    similarity = wide(x) @ wide(x).T
    nearest: Tensor = similarity.fill_diagonal_(-1.0).amax(1)
    distance: Tensor = (2 - 2 * nearest).clamp(min=0).sqrt().mean()
    return distance


def match(x: Tensor, y: Tensor) -> Tensor:
    """Share of rows of ``x`` whose own row of ``y`` is the nearest: [] in [0, 1]; chance is 1/N.

    Ties count as misses, so collapsed features match nothing.

    Args:
        x: [N, D] unit features of images.
        y: [N, D] of the same images, changed.
    """
    similarity = wide(x) @ wide(y).T
    own = similarity.diagonal().clone()
    rivals = similarity.fill_diagonal_(-1.0).amax(1)
    return (own > rivals).float().mean()
