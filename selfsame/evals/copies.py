"""Copy detection: an altered copy must find its original among everything else. Reads no label."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from selfsame.data.order import spaced
from selfsame.data.parts import Subset
from selfsame.errors import DataError
from selfsame.evals.evaluator import Evaluator, Scores
from selfsame.evals.interval import mean_interval
from selfsame.evals.subject import Data, Subject, batch_size
from selfsame.nn.precision import unit
from selfsame.types import Source
from selfsame.views import make_views
from selfsame.views.spec import SMALL_IMAGE, View


class Copies(Evaluator):
    """Altered copies as queries, the originals and all other images as what is searched.

    A copy is a crop of 30 to 100 % of the image, perhaps mirrored, recoloured, gray or blurred:
    ``view`` of this module. The measure is that of Copydays (Douze et al., 2009): mean average
    precision, with one right answer the mean of 1 / rank. Images that the data holds twice count as
    errors.
    """

    title: ClassVar[str] = "copies mAP"
    facts: ClassVar[frozenset[str]] = frozenset({"copies_queries", "copies_searched"})

    queries: Annotated[int, Field(ge=1)] = 500  # originals, evenly spaced
    copies: Annotated[int, Field(ge=1)] = 4  # of each
    searched: Annotated[int, Field(ge=2)] = 10_000  # images at most, evenly spaced
    seed: int = 0

    def __call__(self, subject: Subject, data: Data) -> Scores:
        """``copies`` is the mean average precision; intervals are over originals."""
        source: Source = data.images
        if len(source) > self.searched:
            source = Subset(source, torch.tensor(spaced(len(source), self.searched)).numpy())
        known = subject.features(source)
        if len(known["index"]) < 2:
            raise DataError("copy detection needs two images or more", tip="add images")
        rows = torch.tensor(spaced(len(known["index"]), self.queries))  # of the readable ones
        altered = self._altered(subject, source, known["index"][rows])  # [Q, V, D]
        mean = known["pooled"].mean(0) if subject.centred else 0.0
        rank = ranks(known["pooled"] - mean, altered - mean, rows)  # [Q, V]
        precision, first = (1 / rank.double()).mean(1), (rank == 1).double().mean(1)
        return {
            "copies": precision.mean().item(),
            "copies_interval": mean_interval(precision),
            "copies_recall@1": first.mean().item(),
            "copies_recall@1_interval": mean_interval(first),
            "copies_queries": len(rows),
            "copies_searched": len(known["index"]),
        }

    def _altered(self, subject: Subject, source: Source, index: Tensor) -> Tensor:
        """Features of the copies of the images at ``index``: float32 [Q, V, D] on the CPU."""
        encoder = subject.encoder
        spec = (view(encoder.image_size).model_copy(update={"count": self.copies}),)
        found = []
        with encoder.open(source, cache_bytes=0) as images:
            for part in torch.split(index, max(1, batch_size(encoder.image_size) // self.copies)):
                batch = images.batch(part)
                made = make_views(
                    spec,
                    batch,
                    seed=self.seed,
                    epoch=0,
                    norm=encoder.norm,
                    device=encoder.device,
                )["global"]
                with torch.inference_mode(), encoder.judging():
                    pooled = encoder(made.flatten(0, 1)).pooled.float().cpu()
                found.append(pooled.unflatten(0, made.shape[:2]).transpose(0, 1))
        return torch.cat(found)


def view(size: int) -> View:
    """How a copy differs from its original."""
    return View(
        size=size,
        scale=(0.3, 1.0),
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        blur=0.0 if size <= SMALL_IMAGE else 0.5,
    )


def ranks(searched: Tensor, queries: Tensor, originals: Tensor) -> Tensor:
    """Rank of the original of each query by cosine, 1 for the first; ties count against it.

    Args:
        searched: [N, D].
        queries: [Q, V, D], V copies of each original.
        originals: int64 [Q], their rows in ``searched``.

    Returns:
        int64 [Q, V].
    """
    gallery, copies = unit(searched), unit(queries)
    found = []
    for rows, original in zip(copies, originals, strict=True):
        similarity = rows @ gallery.T  # [V, N]
        own = similarity[:, original, None]
        found.append((similarity >= own).sum(dim=1))
    return torch.stack(found)
