"""Any map-style data set: its items are images, (image, label) pairs, or dicts with both."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image

from selfsame.data import place
from selfsame.data.arrays import channels_last, within
from selfsame.data.decode import flatten
from selfsame.data.order import spaced
from selfsame.data.parts import IMAGES, LABELS, column
from selfsame.errors import DataError


class MapDataset(Protocol):
    """What PyTorch calls a map-style data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Any: ...


class DatasetSource:
    """Images of a map-style data set, taken as it gives them (no EXIF orientation is applied).

    An image is a PIL image, an array or tensor of uint8, bool or uint16, one of floats within
    0..1, an encoded file's bytes, or the path of one. In an item that is a dict it has one of the
    names in ``parts.IMAGES``, the label one of those in ``parts.LABELS``.

    Labels come from the data set's ``targets`` or ``labels``, or from its column of labels, where
    it has them; ``read_labels`` reads them from every item otherwise.
    """

    def __init__(self, dataset: MapDataset) -> None:
        if len(dataset) == 0:
            raise DataError("the data set is empty", tip="give one with at least one image")
        self.dataset = dataset
        self.labels: np.ndarray | None = None
        self.classes: Sequence[str] | None = _class_names(dataset)
        values = _one_each(_listed_labels(dataset))
        if values is not None and len(values) == len(dataset):
            self._number(values)
        image, _ = _split(dataset[0])
        try:
            _pixels(image)  # refuse normalised tensors now rather than as N bad images
        except OSError as error:
            raise DataError(
                f"the first item of the data set names '{image}': {error.strerror or error}",
                tip="an item is an image, or the path of one from the working directory",
            ) from None

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, i: int) -> str:
        """Type of the data set and position, as in ``ImageFolder[17]``."""
        return f"{type(self.dataset).__name__}[{i}]"

    def read(self, i: int) -> bytes | np.ndarray:
        """Pixels [H, W] or [H, W, C], or an encoded file."""
        return _pixels(_split(self.dataset[i])[0])

    def read_labels(self) -> None:
        """Fill ``labels`` by reading every item, where the data set does not list them.

        Raises:
            DataError: An item has no label.
        """
        if self.labels is not None:
            return
        labels = []
        for i in range(len(self)):
            _, label = _split(self.dataset[i])
            if label is None:
                raise DataError(f"{self.name(i)} has no label", tip="items are (image, label)")
            try:
                labels.append(label if isinstance(label, str) else int(label))
            except (TypeError, ValueError):
                raise DataError(
                    f"the label of {self.name(i)} is {label!r:.60}", tip="give one class an image"
                ) from None
        self._number(np.array(labels))

    def fingerprint(self) -> str:
        """Hash of the type, the length, the labels and 16 images, evenly spaced."""
        digest = hashlib.sha256(f"{type(self.dataset).__name__} {len(self)}".encode())
        for i in spaced(len(self), 16):
            image = self.read(i)
            digest.update(image if isinstance(image, bytes) else image.tobytes())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        return digest.hexdigest()[:16]

    def _number(self, values: np.ndarray) -> None:
        if self.classes is None or not within(values, len(self.classes)):
            distinct = np.unique(values)
            self.classes = [str(value) for value in distinct]
            values = np.searchsorted(distinct, values)
        self.labels = values.astype(np.int64)


def _split(item: Any) -> tuple[Any, Any]:
    """Image and label of an item."""
    if isinstance(item, tuple | list):
        return item[0], item[1] if len(item) > 1 else None
    if isinstance(item, Mapping):
        image, label = column(item, IMAGES), column(item, LABELS)
        if image is None:
            raise DataError(
                f"items of the data set have the keys {', '.join(map(str, item))}; none is known",
                tip=f"name the image {', '.join(IMAGES[:6])} ..., or give (image, label) pairs",
            )
        return item[image], None if label is None else item[label]
    return item, None


def _class_names(dataset: Any) -> list[str] | None:
    """Names of the classes: torchvision's ``classes``, or those of Hugging Face's label column."""
    names = getattr(dataset, "classes", None)
    if names is None and (label := _label_column(dataset)):
        names = getattr(dataset.features[label], "names", None)
    return None if names is None else [str(name) for name in names]


def _listed_labels(dataset: Any) -> Any:
    """All labels, where the data set has them without reading its images."""
    if label := _label_column(dataset):
        return dataset[label][:]
    values = (getattr(dataset, attribute, None) for attribute in ("targets", "labels"))
    return next((v for v in values if v is not None and len(v) == len(dataset)), None)


def _one_each(values: Any) -> np.ndarray | None:
    """Labels as an array, where they are a number or a name for each image."""
    try:
        array = np.asarray(values)
    except ValueError:  # lists of several lengths
        return None
    return array if array.ndim == 1 and array.dtype.kind in "biufUS" else None


def _label_column(dataset: Any) -> str | None:
    """The column of labels of a ``datasets.Dataset``, which is not imported for this."""
    features = getattr(dataset, "features", None)
    return column(features, LABELS) if isinstance(features, Mapping) else None


def pixels_of(image: Image.Image) -> np.ndarray:
    """Pixels of a PIL image: uint8 [H, W] or [H, W, 3], or gray of more than 8 bits [H, W]."""
    deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    return np.asarray(image if deep else flatten(image))


def _pixels(image: Any) -> bytes | np.ndarray:
    if isinstance(image, Image.Image):
        return pixels_of(image)
    if isinstance(image, str | os.PathLike):
        return place.read(os.fspath(image))
    if isinstance(image, bytes):
        return image
    if isinstance(image, Mapping) and isinstance(image.get("bytes"), bytes):  # Image(decode=False)
        return cast(bytes, image["bytes"])
    array = image.numpy(force=True) if isinstance(image, torch.Tensor) else image
    if not isinstance(array, np.ndarray):
        raise DataError(
            f"items of the data set are {type(image).__name__}, not images",
            tip="an item is a PIL image or an array, alone or first in a tuple",
        )
    if array.dtype.kind == "f":
        low, high = float(array.min(initial=0)), float(array.max(initial=0))
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"items of the data set are {array.dtype} with values in {low:.3g}..{high:.3g}; "
                "images are uint8, or floats in 0..1",
                tip="build the data set without its transform (Normalize)",
            )
    elif array.dtype not in (np.uint8, np.bool_, np.uint16):
        raise DataError(
            f"items of the data set have type {array.dtype}; images are uint8, uint16, "
            "or floats in 0..1",
            tip="convert them: x.astype('uint8') if the values are in 0..255",
        )
    return channels_last(array[None], "item")[0] if array.ndim == 3 else array
