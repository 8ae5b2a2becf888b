"""The same images at every measurement: label-free health of a network during and after training.

What is measured depends on the data, the recipe's views and the weights alone: neither the seed nor
the order of the run changes which images are looked at, or how they are cropped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsame.data import Images
from selfsame.data.order import spaced
from selfsame.encoder import Encoder
from selfsame.errors import DivergedError
from selfsame.evals.health import (
    align,
    alpha_req,
    feature_std,
    lidar,
    match,
    neighbor_distance,
    rankme,
    uniform,
)
from selfsame.recipe import Recipe
from selfsame.types import Batch, Norm
from selfsame.views import make_views

IMAGES = 1024  # of the training set at most, evenly spaced, seen without augmentation
LEAST = 64  # of them, whatever they cost
VIEWED = 0.25  # of those, how many are seen in views and without their colours, too
VIEWS = 4  # of each
SEED = 0  # of the views, whatever the run's is
CHUNK = 256  # images at once
THUMBNAIL = 16  # pixels
SHARE = 0.01  # of the network's work in training, that the measurements in between may cost
ENDS = 0.01  # of the same, that the first measurement and the last may cost, each
SECONDS = 5.0  # that one may take however short the run is
TRIAL = 16  # images that are timed
FEW = 4  # canvases whose colours change at once on a CPU: float copies that the cache holds


class Probe:
    """Images of a training set on which label-free health is measured, again and again.

    Args:
        images: the training set, decoded as the run decodes it.
        recipe: its views are those that alignment, LiDAR and the like are measured on.
        size: images at most, a quarter of which are seen in views.
    """

    def __init__(self, images: Images, recipe: Recipe, size: int | None = None) -> None:
        self.images = images
        self.recipe = recipe
        self.size = IMAGES if size is None else size
        self.index = spaced(len(images), self.size)
        self.viewed = spaced(len(self.index), round(VIEWED * self.size))  # rows of ``index``
        every = [view for view in recipe.views for _ in range(view.count)]
        whole = [view for view in every if view.size == recipe.image_size]
        self.views = tuple(
            whole[i % len(whole)].model_copy(update={"name": "probe", "count": 1})
            for i in range(VIEWS)
        )

    @classmethod
    def again(cls, images: Images, recipe: Recipe, row: Mapping[str, Any]) -> Probe:
        """The probe that a row was measured with."""
        if "viewed" not in row:
            return cls(images, recipe)
        return cls(images, recipe, max(int(row["images"]), round(row["viewed"] / VIEWED)))

    @classmethod
    def affordable(
        cls,
        images: Images,
        recipe: Recipe,
        encoder: Encoder,
        total: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> Probe:
        """The largest probe whose measurement a run can spare; each size is half the one above.

        That is one whose images are `ENDS` of what passes through the network in training, or, in
        a run too short for that, one that takes `SECONDS`: then the machine's speed counts.

        Args:
            images: the training set.
            recipe: of the run.
            encoder: what will be measured.
            total: steps of the run.
            clock: seconds that pass.
        """
        probe = cls(images, recipe)
        spare = ENDS * total * probe.work
        if probe.cost > spare:
            trial = next(probe._batches(probe.index[:TRIAL]))
            encoder.features(trial.images, trial.sizes).cpu()  # the first call takes longer
            since = clock()
            trial = next(probe._batches(probe.index[:TRIAL]))
            encoder.features(trial.images, trial.sizes).cpu()
            spare = max(spare, SECONDS * len(trial.index) / max(clock() - since, 1e-9))
        while probe.cost > spare and probe.size > LEAST:
            probe = cls(images, recipe, probe.size // 2)
        return probe

    @property
    def cost(self) -> int:
        """Images that one measurement sends through the network, forward."""
        return len(self.index) + len(self.viewed) * (VIEWS + 1)

    def measure(self, encoder: Encoder) -> dict[str, float]:
        """All the numbers, for the current weights. The network runs in float32, evaluation mode.

        Distances are those of features of unit length.

        Returns:
            ``images`` and ``dim``, N and D; ``viewed``, how many of N in views; ``rankme``,
            ``feature_std`` and its reference, ``alpha_req``, ``neighbor_distance`` of clean images;
            ``alignment``, ``uniformity``, ``view_match``, ``lidar`` of views; ``pixel_match`` of
            the views themselves; ``neutral_match``, see `neutral`; ``weight_rms``, the size of a
            typical weight.

        Raises:
            DivergedError: features that are not finite.
        """
        clean = [encoder.features(b.images, b.sizes).cpu() for b in self._batches(self.index)]
        z = torch.cat(clean)
        if not z.isfinite().all():
            raise DivergedError(
                "the encoder's features are not finite",
                tip="lower the learning rate with --set optim.lr=...",
            )
        x = F.normalize(z, dim=1)
        changed = [
            encoder.features(neutral(b.images, b.sizes, encoder.norm), b.sizes).cpu()
            for b in self._batches([self.index[i] for i in self.viewed])
        ]
        y = F.normalize(torch.cat(changed), dim=1)
        std, reference = feature_std(z)
        return {
            "images": float(len(z)),
            "viewed": float(len(self.viewed)),
            "dim": float(z.shape[1]),
            "rankme": rankme(z.double()).item(),
            "feature_std": std.item(),
            "feature_std_reference": reference,
            "alpha_req": alpha_req(z.double()).item(),
            "neighbor_distance": neighbor_distance(x).item(),
            **self._of_views(encoder),
            "neutral_match": match(x[self.viewed], y).item(),
            "weight_rms": weight_rms(encoder),
        }

    def _of_views(self, encoder: Encoder) -> dict[str, float]:
        """What is measured on several views of an image."""
        found, small = [], []
        for batch in self._batches([self.index[i] for i in self.viewed], CHUNK // VIEWS):
            views = make_views(
                self.views,
                batch,
                seed=SEED,
                epoch=0,
                norm=encoder.norm,
                device=encoder.device,
                color=self.recipe.color,
            )["probe"]
            found.append(encoder.pooled(views.flatten(0, 1)).view(*views.shape[:2], -1).cpu())
            small.append(thumbnails(views[:2]).cpu())
        z = torch.cat(found, dim=1)  # [VIEWS, n, D]
        x = F.normalize(z, dim=-1)
        pixels = torch.cat(small, dim=1)  # [2, n, ...]
        pixels = F.normalize(pixels - pixels.mean((0, 1)), dim=-1)
        scale = z.double().square().mean().sqrt().clamp(min=1e-30)
        return {
            "alignment": align(x[0], x[1]).item(),
            "uniformity": uniform(x[0]).item(),
            "view_match": match(x[0], x[1]).item(),
            "pixel_match": match(pixels[0], pixels[1]).item(),
            "lidar": lidar(z.double().transpose(0, 1) / scale).item(),
        }

    def _batches(self, index: Sequence[int], size: int = CHUNK) -> Iterator[Batch]:
        for start in range(0, len(index), size):
            yield self.images.batch(torch.tensor(index[start : start + size]))

    @property
    def work(self) -> float:
        """Images that a step of training sends through the network, counted as `cost` is.

        A smaller view counts by its pixels, a backward pass as two forward passes.
        """
        size = self.recipe.image_size
        seen = sum(view.count * (view.size / size) ** 2 for view in self.recipe.views)
        return 3 * self.recipe.batch_size * seen

    @property
    def every(self) -> int:
        """Steps of training of whose work one measurement is `SHARE`."""
        return math.ceil(self.cost / (SHARE * self.work))


def thumbnails(views: Tensor) -> Tensor:
    """Views [V, B, C, S, S] at 16 px a side, or S where that is less: [V, B, C * 16 * 16]."""
    side = min(THUMBNAIL, views.shape[-1])
    return F.adaptive_avg_pool2d(views.flatten(0, 1), side).view(*views.shape[:2], -1)


def neutral(images: Tensor, sizes: Tensor, norm: Norm) -> Tensor:
    """The images with their colours made alike: what still tells them apart is their content.

    Each channel of each image gets the mean and the deviation of ``norm``, so that no cast,
    brightness, contrast or level that is constant over the image can identify it.

    Args:
        images: uint8 [B, C, H, W], canvases.
        sizes: integer [B, 2], valid height and width.
        norm: mean and deviation of each channel, of pixels in [0, 1].

    Returns:
        uint8, of the same shape.
    """
    few = FEW if images.device.type == "cpu" else max(1, len(images))
    parts = zip(torch.split(images, few), torch.split(sizes, few), strict=True)
    return torch.cat([_neutral(part, size, norm) for part, size in parts])


def _neutral(images: Tensor, sizes: Tensor, norm: Norm) -> Tensor:
    rows, columns = (torch.arange(n, device=images.device) for n in images.shape[2:])
    height, width = sizes.to(images.device)[:, :, None].unbind(1)
    inside = (rows < height)[:, None, :, None] & (columns < width)[:, None, None, :]
    x = images.float()
    count = inside.sum((2, 3), keepdim=True)
    x = x - (x * inside).sum((2, 3), keepdim=True) / count
    std = ((x * inside).square().sum((2, 3), keepdim=True) / count).sqrt()
    mean, deviation = (x.new_tensor(values).view(1, -1, 1, 1) * 255 for values in norm)
    even = x * (deviation / std.clamp(min=1.0)) + mean
    return (even.round().clamp(0, 255) * inside).to(torch.uint8)


@torch.no_grad()
def weight_rms(encoder: Encoder) -> float:
    """Root of the mean square of all matrices and kernels: the size of a typical weight."""
    weights = [p.float() for p in encoder.parameters() if p.ndim > 1]
    count = sum(w.numel() for w in weights)
    total = torch.stack([w.square().sum() for w in weights]).sum() if weights else torch.zeros(())
    return (total / max(1, count)).sqrt().item()
