"""Images mixed with others of their batch, and targets alike.

mixup: Zhang et al., arXiv 1710.09412. CutMix: Yun et al., arXiv 1905.04899.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def smoothed(label: Tensor, classes: int, smoothing: float) -> Tensor:
    """Labels, int64 [B], as distributions [B, K] that keep ``1 - smoothing`` for the label."""
    return F.one_hot(label, classes) * (1 - smoothing) + smoothing / classes


def mixed(
    x: Tensor, target: Tensor, mixup_alpha: float, cutmix_alpha: float
) -> tuple[Tensor, Tensor]:
    """Mixup or CutMix of the batch with itself in reverse, or neither, drawn for the step.

    Args:
        x: [B, C, S, S].
        target: [B, K], what each image shows.
        mixup_alpha: Of the Beta distribution of shares; 0 for none.
        cutmix_alpha: The same; with both, a coin decides.
    """
    alphas = mixup_alpha, cutmix_alpha
    if not any(alphas):
        return x, target
    cut = cutmix_alpha > 0 and (mixup_alpha == 0 or float(torch.rand(())) < 0.5)
    share = float(torch.distributions.Beta(alphas[cut], alphas[cut]).sample())
    if not cut:
        return mixup(x, target, share)
    return cutmix(x, target, share, tuple(torch.rand(2).tolist()))


def mixup(x: Tensor, target: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """``share`` of each image and the rest of its partner, the batch in reverse; targets alike.

    Args:
        x: [B, C, S, S].
        target: [B, K], what each image shows.
        share: In [0, 1].
    """
    return x.lerp(x.flip(0), 1 - share), target.lerp(target.flip(0), 1 - share)


def cutmix(
    x: Tensor, target: Tensor, share: float, centre: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """A box of the partner pasted into each image; targets are mixed by the area that remains.

    Args:
        x: [B, C, S, S].
        target: [B, K].
        share: Of the area that remains, before the box is cut off at the border.
        centre: Of the box, each in [0, 1): vertical, horizontal.
    """
    box = []
    for side, at in zip(x.shape[-2:], centre, strict=True):
        cut, middle = int(side * (1 - share) ** 0.5), int(at * side)
        box.append(slice(max(0, middle - cut // 2), min(side, middle + (cut + 1) // 2)))
    rows, columns = box
    x = x.clone()
    x[..., rows, columns] = x.flip(0)[..., rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return x, target.lerp(target.flip(0), area / (x.shape[-2] * x.shape[-1]))
