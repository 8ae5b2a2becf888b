"""Any map-style data set whose items are images, or (image, label) pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from selfsame.data.arrays import channels_last, within
from selfsame.data.decode import flatten
from selfsame.errors import DataError


class MapDataset(Protocol):
    """What PyTorch calls a map-style data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Any: ...


class DatasetSource:
    """Images of a map-style data set, taken as it gives them (no EXIF orientation is applied).

    Labels come from its ``targets`` or ``labels`` where it has them; ``read_labels`` reads them
    from every item otherwise.
    """

    def __init__(self, dataset: MapDataset) -> None:
        if len(dataset) == 0:
            raise DataError("the data set is empty", tip="give one with at least one image")
        self.dataset = dataset
        self.labels: np.ndarray | None = None
        names = getattr(dataset, "classes", None)
        self.classes: Sequence[str] | None = None if names is None else [str(n) for n in names]
        for attribute in ("targets", "labels"):
            values = getattr(dataset, attribute, None)
            if values is not None and len(values) == len(dataset):
                self._number(np.asarray(values))
                break
        first, _ = _split(dataset[0])
        _pixels(first)  # refuse float tensors now rather than as N bad images

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, i: int) -> str:
        """Type of the data set and position, as in ``ImageFolder[17]``."""
        return f"{type(self.dataset).__name__}[{i}]"

    def read(self, i: int) -> np.ndarray:
        """Pixels, uint8 [H, W] or [H, W, C]."""
        return _pixels(_split(self.dataset[i])[0])

    def read_labels(self) -> None:
        """Fill ``labels`` by reading every item, where the data set does not list them.

        Raises:
            DataError: An item has no integer label.
        """
        if self.labels is not None:
            return
        labels = []
        for i in range(len(self)):
            _, label = _split(self.dataset[i])
            if label is None:
                raise DataError(f"{self.name(i)} has no label", tip="items are (image, label)")
            labels.append(int(label))
        self._number(np.array(labels))

    def fingerprint(self) -> str:
        """Hash of the type, the length, the labels and 16 images, evenly spaced."""
        digest = hashlib.sha256(f"{type(self.dataset).__name__} {len(self)}".encode())
        for i in np.linspace(0, len(self) - 1, min(16, len(self))).astype(int):
            digest.update(self.read(int(i)).tobytes())
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
    return item, None


def _pixels(image: Any) -> np.ndarray:
    if isinstance(image, Image.Image):
        return np.asarray(flatten(image))
    array = image.numpy() if isinstance(image, torch.Tensor) else image
    if not isinstance(array, np.ndarray):
        raise DataError(
            f"items of the data set are {type(image).__name__}, not images",
            tip="an item is a PIL image or an array, alone or first in a tuple",
        )
    if array.dtype != np.uint8:
        raise DataError(
            f"items of the data set have type {array.dtype}; images are uint8",
            tip="build the data set without its transform (ToTensor, Normalize)",
        )
    return channels_last(array[None], "item")[0] if array.ndim == 3 else array
