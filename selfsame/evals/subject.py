"""Who is scored, and on what: an encoder with its features, and data opened as one asks for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selfsame import machine
from selfsame.data import Labelled, Subset, open_labelled, open_source
from selfsame.data.masks import Masked, open_masked
from selfsame.encoder import Encoder, random_like
from selfsame.errors import DataError
from selfsame.evals.cache import Cache, Entry, encoder_key, entry_key
from selfsame.evals.pixels import pixels
from selfsame.types import Source

PIXELS_AT_ONCE = 2**22  # of the images of one forward pass


class Bank(NamedTuple):
    """Features and labels of a train and a test part."""

    train_x: Tensor  # float32 [N, D]
    train_y: Tensor  # int64 [N]
    test_x: Tensor  # float32 [M, D]
    test_y: Tensor  # int64 [M]


class Data:
    """What the user named, opened in the way that an evaluator asks for, once.

    Args:
        spec: anything that ``open_source`` or ``open_masked`` takes, or data that is open already.
    """

    def __init__(self, spec: Any) -> None:
        self.spec = spec

    @property
    def how(self) -> str:
        """What was opened and how it was divided, in words."""
        opened = (vars(self)[name] for name in ("labelled", "masked") if name in vars(self))
        found = [each.how for each in opened]
        if "images" in vars(self):
            found.append(f"{len(self.images)} images without their labels")
        return "; ".join(found)

    def fingerprint(self) -> str:
        """A short hash of all that was opened: equal where scores may be compared."""
        parts = [part for part in (vars(self).get("labelled"), vars(self).get("masked")) if part]
        sources = [source for part in parts for source in (part.train, part.test)]
        sources += [vars(self)["images"]] if "images" in vars(self) else []
        text = " ".join(source.fingerprint() for source in sources)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def labelled(self) -> Labelled:
        """Labelled images in a train and a test part.

        Raises:
            DataError: no labels, or one class only.
        """
        found = self.spec if isinstance(self.spec, Labelled) else open_labelled(self.spec)
        classes = found.train.classes or ()
        if len(classes) < 2:
            raise DataError(
                f"the data has one class only ('{classes[0]}'): every score would be 100 %",
                tip="give images of two classes or more; --protocol copies needs no labels",
            )
        return found

    @cached_property
    def masked(self) -> Masked:
        """Images with a mask each, in a train and a test part."""
        return self.spec if isinstance(self.spec, Masked) else open_masked(self.spec)

    @cached_property
    def images(self) -> Source:
        """Images, whatever their labels: the train part, where there are parts."""
        if isinstance(self.spec, Labelled | Masked):
            return self.spec.train
        return open_source(self.spec)


def learnt_from(source: Source, trained_on: str | None) -> bool:
    """Whether images, or the whole that they are a part of, are those of a fingerprint."""
    if trained_on is None:
        return False
    whole = source.source if isinstance(source, Subset) else source
    return whole.fingerprint() == trained_on or source.fingerprint() == trained_on


def seen(encoder: Encoder, test: Source) -> str | None:
    """A warning where an encoder was trained on the test images, as far as its card tells."""
    if not learnt_from(test, encoder.card.get("data")):
        return None
    if encoder.card.get("labels"):
        return "NOT HELD OUT: the model was trained on the test images with their labels"
    return "the model has seen the test images in its training, without their labels"


class Subject:
    """An encoder and the features that were asked of it, computed once.

    Args:
        encoder: what is scored.
        cache: where features are kept between calls; None computes them anew.
        centred: whether the mean of the training features is taken off, as for raw pixels, whose
            cosines would be those of their brightness.
    """

    def __init__(
        self, encoder: Encoder, cache: Cache | None = None, *, centred: bool = False
    ) -> None:
        self.encoder = encoder
        self.centred = centred
        self.refused: dict[str, int] = {}  # unreadable images by the fingerprint of their source
        self._cache = cache
        self._known: dict[str, Entry] = {}

    @cached_property
    def key(self) -> str | None:
        """What its features depend on besides the images, None where that cannot be told."""
        return encoder_key(self.encoder)

    def features(self, source: Source, layers: int = 0) -> Entry:
        """Features of clean, un-augmented images in evaluation mode, on the CPU.

        Returns:
            ``index``, int64 [n], the readable images; ``pooled``, float32 [n, D]; and where
            ``layers`` are asked for, ``layers``, float32 [n, L, D], the pooled features after the
            last blocks, first to last, and ``patches``, float32 [n, D], the mean of the last
            tokens.
        """
        found = self.computed(
            source,
            f"layers={layers}" if layers else "pooled",
            lambda: extract(self.encoder, source, layers),
        )
        self.refused[source.fingerprint()] = len(source) - len(found["index"])
        return found

    def computed(self, source: Source, what: str, make: Callable[[], Entry]) -> Entry:
        """What ``make`` gives for the images of a source, made once and kept in the cache.

        ``what`` names everything that it depends on besides the encoder and the images.
        """
        name = entry_key(self.key or "", source, what)
        if name not in self._known:
            keep = self._cache if self.key is not None else None
            self._known[name] = make() if keep is None else keep.get(name, make)
        return self._known[name]

    def bank(self, data: Labelled) -> Bank:
        """Pooled features and labels of both parts, on the encoder's device where they fit.

        Raises:
            DataError: a class of the test part has no readable image in the train part.
        """
        train_x, train_y = self.labelled_part(data.train)
        test_x, test_y = self.labelled_part(data.test)
        strange = sorted(set(test_y.tolist()) - set(train_y.tolist()))
        if strange:
            name = list(data.train.classes or ())[strange[0]]
            raise DataError(
                f"class '{name}' has test images but no readable training image",
                tip="add one to the train part, or leave that class out",
            )
        if self.centred:
            mean = train_x.mean(0)
            train_x, test_x = train_x - mean, test_x - mean
        return Bank(*(self.near(part) for part in (train_x, train_y, test_x, test_y)))

    def near(self, x: Tensor) -> Tensor:
        """``x`` on the encoder's device, where it takes less than a quarter of the free memory."""
        device = self.encoder.device
        if device.type == "cpu" or x.numel() * x.element_size() * 4 > machine.memory(device):
            return x
        return x.to(device)

    def labelled_part(self, source: Source) -> tuple[Tensor, Tensor]:
        """Features [n, D] and labels [n] of the readable images of a source, on the CPU."""
        found = self.features(source)
        assert source.labels is not None
        return found["pooled"], torch.from_numpy(source.labels)[found["index"]]


def subjects(
    encoder: Encoder, cache: Cache | None = None, *, controls: bool = True, seed: int = 0
) -> dict[str, Subject]:
    """The model and the controls that learnt nothing, by name.

    The same network at random initialisation, where it is not the user's own module, and the raw
    pixels.
    """
    found = {"model": Subject(encoder, cache)}
    if controls:
        random = random_like(encoder, seed)
        if random is not None:
            found["random init"] = Subject(random, cache)
        found["raw pixels"] = Subject(pixels(encoder.channels, encoder.levels), centred=True)
    return found


@torch.inference_mode()
def extract(encoder: Encoder, source: Source, layers: int = 0) -> Entry:
    """What ``Subject.features`` gives, computed."""
    found: dict[str, list[Tensor]] = {}
    with encoder.open(source, cache_bytes=0) as images:
        for batch in images.readable(batch_size(encoder.image_size)):
            found.setdefault("index", []).append(batch.index)
            if not layers:
                part = {"pooled": encoder.features(batch.images, batch.sizes)}
            else:
                part = encoder.layers(batch.images, batch.sizes, layers)
            for name, value in part.items():
                found.setdefault(name, []).append(value.cpu())
    return {name: torch.cat(values) for name, values in found.items()}


def batch_size(image_size: int) -> int:
    """Images of a forward pass: 256, or what bounds the memory of large ones."""
    return max(1, min(256, PIXELS_AT_ONCE // image_size**2))
