"""Multi-crop (SwAV, arXiv 2006.09882, section 3.2): two sizes of views through one network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from selfsame.errors import UsageError
from selfsame.types import Backbone


def pooled(backbone: Backbone, views: Mapping[str, Tensor]) -> Tensor:
    """Features of all crops of all images, the global ones first: one forward pass for each size.

    Args:
        backbone: The encoder.
        views: "global", [V, B, C, S, S], and perhaps "local", [V', B, C, s, s].

    Returns:
        [V + V', B, D].
    """
    sizes = [views[name] for name in ("global", "local") if name in views]
    return torch.cat([backbone(x.flatten(0, 1)).pooled.unflatten(0, x.shape[:2]) for x in sizes])


def check_views(views: Mapping[str, Tensor], large: int) -> None:
    """Refuse views without ``large`` global crops, which alone give targets, or a single crop.

    Raises:
        UsageError: with what is lacking.
    """
    found = len(views["global"])
    if found < large or found + len(views.get("local", ())) < 2:
        raise UsageError(
            f"the recipe has {found} global views and the method needs {max(2, large)}",
            tip=f"set the count of the views named global to {max(2, large)}",
        )
