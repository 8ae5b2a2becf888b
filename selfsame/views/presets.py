"""Views that several papers share."""

from __future__ import annotations

from typing import Literal

from selfsame.views.spec import SMALL_IMAGE, View


def asymmetric_views(
    size: int, interpolation: Literal["bilinear", "bicubic"] = "bicubic"
) -> tuple[View, View]:
    """BYOL's two augmentations (arXiv 2006.07733, table 6): one always blurred, one solarised.

    Barlow Twins, VICReg, MoCo v3, DINO, iBOT and DINOv2 use them too. Small images are not blurred,
    as in SimCLR's appendix B.9.
    """
    blurred = float(size > SMALL_IMAGE)
    first = View(
        size=size,
        interpolation=interpolation,
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        blur=1.0 * blurred,
    )
    return first, first.model_copy(update={"blur": 0.1 * blurred, "solarize": 0.2})


def local_size(size: int, share: float) -> int:
    """Side of local crops, pixels: about ``share`` of ``size``, in whole patches of a ViT."""
    patch = 16 if size >= 112 else 8
    return max(patch, round(size * share / patch) * patch)


def small_scale(size: int) -> tuple[float, float]:
    """Share of the image that the crops of small recipes cover.

    Objects fill small images, and short runs learn sooner from crops that share more: kNN of SimCLR
    after 1,200 steps on CIFAR-10 was 46 % with 0.35 and 45 % with 0.2 (LOG.md).
    """
    return (0.35 if size <= SMALL_IMAGE else 0.2, 1.0)
