"""Judging during a run: kNN and a linear probe of the current weights, within a share of its time.

Clean, un-augmented images in evaluation mode, the same features for both probes and for the train
and the test part.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

import torch
from torch import Tensor

from selfsame.data import Images, Labelled, Subset
from selfsame.data.order import spaced
from selfsame.encoder import Encoder
from selfsame.evals.evaluator import Scores
from selfsame.evals.knn import knn
from selfsame.evals.linear import L2, fit_probe
from selfsame.evals.subject import batch_size
from selfsame.types import Source

SHARE = 0.05  # of the run's time, at most
FREE = 2.0  # seconds in all that are spent whatever the share: very short runs are judged, too
TRAIN, TEST = 4000, 2000  # images at most
LEAST = 0.1  # of these, whatever their cost
TRIAL = 32  # images that are timed before
CACHE = 2**28  # bytes of decoded images of a part that are kept between evaluations


class Online:
    """Probes of a run that keep an eye on the clock.

    How many images are used, evenly spaced, is decided when one is first thought of, and stays: as
    many as half of what is allowed then buys, at the speed that is measured, so that as much is
    left for the last evaluation. That one is always made; any other is left out where it, or the
    last one after it, would exceed the share. So all that a run may cost beyond its share is `FREE`
    seconds, or one evaluation on `LEAST` of the images.

    Args:
        data: Labelled images.
        share: Of the time since this object was made.
        clock: Seconds that pass.
    """

    def __init__(
        self, data: Labelled, share: float = SHARE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.data = data
        self.share = share
        self.spent = 0.0  # seconds
        self.count = 0  # evaluations
        self._clock = clock
        self._began = clock()
        self._cost = 0.0  # seconds, of the last one
        self._parts: list[Images] = []
        self._l2s: tuple[float, ...] = L2
        self._open = ExitStack()

    def __enter__(self) -> Online:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the images."""
        self._open.close()

    def due(self, encoder: Encoder, *, last: bool = False) -> bool:
        """Whether there is time for an evaluation now, and for the last one still."""
        if not self._parts:
            self._choose(encoder)
        return last or self.spent + 2 * self._cost <= self._allowed()

    def __call__(self, encoder: Encoder) -> dict[str, Scores]:
        """Scores of kNN and of a linear probe, whose L2 strength the first evaluation chose."""
        if not self._parts:
            self._choose(encoder)
        since = self._clock()
        (train_x, train_y), (test_x, test_y) = (_features(encoder, part) for part in self._parts)
        probe = fit_probe(train_x, train_y, self._l2s, folds=1)
        self._l2s = (probe.l2,)
        right = probe.scores(test_x).argmax(dim=1) == test_y
        sizes = {"train_images": len(train_y), "test_images": len(test_y)}
        scores = {
            "knn": knn(train_x, train_y, test_x, test_y, ks=(20,)) | sizes,
            "linear": {"linear": right.double().mean().item(), "linear_l2": probe.l2} | sizes,
        }
        self._cost = self._clock() - since
        self.spent += self._cost
        self.count += 1
        return scores

    def describe(self) -> str:
        """How often, on how much, at what cost, in words."""
        share = self.spent / max(self._clock() - self._began, 1e-9)
        images = " and ".join(f"{len(part):,}" for part in self._parts)
        times = f"{self.count} time{'s' if self.count != 1 else ''}"
        return f"{times} on {images} images: {share:.1%} of the time"

    def _allowed(self) -> float:
        return max(FREE, self.share * (self._clock() - self._began))

    def _choose(self, encoder: Encoder) -> None:
        """Decide how many images of each part are used, and open them."""
        trial = self._images(encoder, self.data.train, TRIAL)
        since = self._clock()
        _features(encoder, trial)
        took = max(self._clock() - since, 1e-9)
        self.spent += took
        each = took / len(trial)
        allowed = (self._allowed() - self.spent) / 2
        share = min(1.0, max(LEAST, allowed / (each * (TRAIN + TEST))))
        self._parts = [
            self._images(encoder, self.data.train, round(share * TRAIN)),
            self._images(encoder, self.data.test, round(share * TEST)),
        ]
        self._cost = each * sum(len(part) for part in self._parts)

    def _images(self, encoder: Encoder, source: Source, most: int) -> Images:
        rows = torch.tensor(spaced(len(source), most)).numpy()
        return self._open.enter_context(encoder.open(Subset(source, rows), cache_bytes=CACHE))


def _features(encoder: Encoder, images: Images) -> tuple[Tensor, Tensor]:
    """Features and labels of the readable images, on the encoder's device."""
    found = []
    for batch in images.readable(batch_size(encoder.image_size)):
        assert batch.label is not None
        found.append((encoder.features(batch.images, batch.sizes), batch.label))
    x = torch.cat([each for each, _ in found]).clone()  # out of inference mode
    return x, torch.cat([each for _, each in found]).to(x.device)
