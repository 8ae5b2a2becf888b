"""Draw what happens to each sample in a view. Parameters only: no pixel is touched here."""

from __future__ import annotations

import math
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor

from selfsame.rng import uniforms
from selfsame.views.spec import View

OP_VIEW = 0  # ``op`` of ``rng.uniforms`` for everything that is drawn here
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # columns of ``factors``, values of ``order``

_ATTEMPTS = 10  # of torchvision's RandomResizedCrop, before it falls back to a centre crop
_ORDERS = torch.tensor(list(permutations(range(4))))


class Params(NamedTuple):
    """What happens to each of B samples in one view. CPU tensors."""

    box: Tensor  # int64 [B, 4]: top, left, height, width of the crop, in pixels
    flip: Tensor  # bool [B]
    jitter: Tensor  # bool [B]: whether the four colour operations run
    order: Tensor  # int64 [B, 4]: the colour operations, first to last
    factors: Tensor  # float32 [B, 4]: brightness, contrast, saturation (factors), hue (turns)
    grayscale: Tensor  # bool [B]
    blur: Tensor  # bool [B]
    sigma: Tensor  # float32 [B]: standard deviation of the blur, in pixels
    solarize: Tensor  # bool [B]


def draw(view: View, *, seed: int, epoch: int, index: Tensor, which: int, sizes: Tensor) -> Params:
    """Draw the parameters of one view for each sample.

    A sample's parameters depend on its own arguments only, never on the rest of the batch, and
    each quantity has its own numbers: a changed setting changes no other quantity.

    Args:
        view: The distribution.
        seed: Seed of the run.
        epoch: Pass over the data set.
        index: int64 [B], position of each sample in the data set.
        which: Running number of this view within the recipe.
        sizes: integer [B, 2], height and width of each image in pixels.
    """
    n = _ATTEMPTS
    u = uniforms(seed, epoch, index.cpu(), which, OP_VIEW, 2 * n + 13)
    area, ratio, place, chances, factors, order, sigma = torch.split(
        u, [n, n, 2, 5, 4, 1, 1], dim=1
    )
    chance = torch.tensor([view.flip, view.jitter, view.grayscale, view.blur, view.solarize])
    flip, jitter, grayscale, blur, solarize = (chances < chance).unbind(1)
    return Params(
        box=_crop_boxes(view, area, ratio, place, sizes.cpu()),
        flip=flip,
        jitter=jitter,
        order=_ORDERS[(order[:, 0] * len(_ORDERS)).long()],
        factors=_factors(view, factors),
        grayscale=grayscale,
        blur=blur,
        sigma=_between(*view.blur_sigma, sigma[:, 0]).float(),
        solarize=solarize,
    )


def _between(low: float, high: float, u: Tensor) -> Tensor:
    return low + (high - low) * u


def _factors(view: View, u: Tensor) -> Tensor:
    """Ranges of torchvision's ColorJitter: 1 +- strength without negatives, and +- hue."""
    strengths = (view.brightness, view.contrast, view.saturation)
    columns = [_between(max(0.0, 1.0 - s), 1.0 + s, u[:, i]) for i, s in enumerate(strengths)]
    return torch.stack([*columns, _between(-view.hue, view.hue, u[:, HUE])], dim=1).float()


def _crop_boxes(view: View, area: Tensor, ratio: Tensor, place: Tensor, sizes: Tensor) -> Tensor:
    """Boxes distributed as torchvision's ``RandomResizedCrop.get_params`` draws them.

    Each of ten attempts draws a share of the area uniformly and an aspect ratio log-uniformly; the
    first whose rounded sides fit wins. Otherwise the largest centred box within ``ratio``.

    Args:
        view: Holds ``scale`` and ``ratio``.
        area: [B, 10] in [0, 1), as ``ratio``: an attempt for each column.
        ratio: [B, 10].
        place: [B, 2] in [0, 1): vertical and horizontal position.
        sizes: integer [B, 2].

    Returns:
        int64 [B, 4]: top, left, height, width.
    """
    full = sizes.double()
    target = full.prod(1, keepdim=True) * _between(*view.scale, area)
    aspect = _between(math.log(view.ratio[0]), math.log(view.ratio[1]), ratio).exp()
    tries = torch.stack([target / aspect, target * aspect], dim=-1).sqrt().round()
    fits = ((tries > 0) & (tries <= full[:, None])).all(-1)  # [B, 10]
    first = fits.int().argmax(1)  # of equal values, argmax gives the first
    drawn = tries[torch.arange(len(first)), first]

    height, width = full.unbind(1)
    narrow = torch.minimum(height, (width / view.ratio[0]).round())
    short = torch.minimum(width, (height * view.ratio[1]).round())
    largest = torch.stack([narrow, short], dim=1).clamp_(min=1)

    found = fits.any(1, keepdim=True)
    box = torch.where(found, drawn, largest)
    room = full - box
    corner = torch.where(found, (place * (room + 1)).floor(), (room / 2).floor())
    return torch.cat([corner, box], dim=1).long()
