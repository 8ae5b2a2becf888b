"""Views that several papers share."""

from __future__ import annotations

from typing import Literal

from selfsame.views.spec import SMALL_IMAGE, View


def mocov2_view(size: int) -> View:
    """MoCo v2's augmentation (arXiv 2003.04297, section 2), twice: SimSiam uses it too."""
    return View(
        count=2,
        size=size,
        scale=(0.2, 1.0),
        interpolation="bilinear",
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        blur=0.0 if size <= SMALL_IMAGE else 0.5,
    )


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


def eval_crop(size: int) -> float:
    """Side of the square that ``eval_view`` cuts, over the shorter side of the image.

    Seven eighths (as 224 of 256), and all of small images, whose borders are part of the picture.
    """
    return 1.0 if size <= SMALL_IMAGE else 0.875


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
