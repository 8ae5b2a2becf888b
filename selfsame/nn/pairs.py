"""What the methods that compare two views of each image share."""

from __future__ import annotations

import torch
from torch import Tensor

from selfsame.errors import UsageError
from selfsame.nn.precision import unit, wide


def pair(views: Tensor) -> tuple[Tensor, Tensor]:
    """The two views, [B, ...] each, of [2, B, ...].

    Raises:
        UsageError: there are not exactly two.
    """
    if len(views) != 2:
        raise UsageError(
            f"this method compares two global views of each image, not {len(views)}",
            tip="give two views named global, each with count = 1, or one with count = 2",
        )
    return views[0], views[1]


def off_diagonal(c: Tensor) -> Tensor:
    """A square matrix, [D, D], with zeros on its diagonal."""
    return c.masked_fill(torch.eye(len(c), dtype=torch.bool, device=c.device), 0.0)


@torch.no_grad()
def spread(z: Tensor) -> Tensor:
    """How much of the unit sphere embeddings use: 0 where they collapsed, 1 where isotropic.

    The mean over channels of the standard deviation of unit vectors, times the square root of the
    width. Source: Chen and He, SimSiam, arXiv 2011.10566, section 4.1 and figure 2.

    Args:
        z: [B, D].
    """
    deviation: Tensor = unit(z).std(dim=0, correction=0).mean()
    return deviation.mul(z.shape[-1] ** 0.5)


@torch.no_grad()
def negatives_entropy(logits: Tensor, positive: Tensor) -> Tensor:
    """How evenly an anchor's negatives share the gradient: 1 evenly, 0 where one has all of it.

    The entropy of the softmax over the negatives, which weighs their gradients, over the logarithm
    of their number; the mean over anchors. A temperature far too high gives 1, one far too low
    nearly 0. Source: Wang and Liu, arXiv 2012.09740, equations 4 to 7 and 9.

    Args:
        logits: [N, M], similarities over the temperature; minus infinity leaves one out.
        positive: int64 [N], the column of each anchor's positive.
    """
    weights = wide(logits).scatter(1, positive[:, None], float("-inf")).softmax(1)
    count = logits.isfinite().sum(1) - 1
    entropy: Tensor = torch.special.entr(weights).sum(1)
    return (entropy / count.clamp(min=2).log()).mean()
