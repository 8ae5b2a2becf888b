"""Images that are already pixels: NumPy arrays and their files."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from selfsame.errors import DataError

_IMAGES = ("images", "image", "x", "data")
_LABELS = ("labels", "label", "y", "targets")
MAX_CHANNELS = 64
# of parts; the first that is present is used
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation", "dev", "eval")


class ArraySource:
    """Images of one size: [N, H, W, C] of any type of number, in memory or mapped from a file."""

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        classes: Sequence[str] | None = None,
        title: str = "array",
    ) -> None:
        self.images = images
        self.labels = labels
        self.classes = classes
        self.title = title

    def __len__(self) -> int:
        return len(self.images)

    def name(self, i: int) -> str:
        """Title and position, as in ``x_train[17]``."""
        return f"{self.title}[{i}]"

    def read(self, i: int) -> np.ndarray:
        """Raw pixels [H, W, C], in the type of the array."""
        return np.asarray(self.images[i])

    def fingerprint(self) -> str:
        """Hash of all pixels and labels."""
        kind = "" if self.images.dtype == np.uint8 else self.images.dtype.str
        digest = hashlib.sha256(f"{self.images.shape}{kind}".encode())
        for start in range(0, len(self), 1024):  # a mapped file may be larger than memory
            digest.update(self.images[start : start + 1024].tobytes())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        return digest.hexdigest()[:16]


class Arrays(NamedTuple):
    """Raw arrays of one part of a data set, as found."""

    title: str
    images: np.ndarray
    labels: np.ndarray | None


def array_sources(parts: Sequence[Arrays], classes: Sequence[str] | None) -> list[ArraySource]:
    """Check raw arrays and number the labels of all parts together.

    Labels without ``classes`` become positions in the sorted list of their values.

    Raises:
        DataError: Wrong type or shape, or labels that do not belong to the images.
    """
    images = [_images(part) for part in parts]
    labels = [_raw_labels(part) for part in parts]
    known = [values for values in labels if values is not None]
    if classes is None and known:
        values = np.unique(np.concatenate(known))
        classes = [str(value) for value in values]
        labels = [None if y is None else np.searchsorted(values, y) for y in labels]
    sources = []
    for part, x, y in zip(parts, images, labels, strict=True):
        if y is not None and classes is not None and not within(y, len(classes)):
            raise DataError(
                f"labels of '{part.title}' do not fit the {len(classes)} class names",
                tip="labels are integers from 0, one name for each",
            )
        number = None if y is None else y.astype(np.int64)
        sources.append(ArraySource(x, number, None if y is None else classes, part.title))
    return sources


def open_array(array: np.ndarray, title: str = "array") -> ArraySource:
    """Open one array of images: numbers or booleans [N, H, W], [N, H, W, C] or [N, C, H, W]."""
    return array_sources([Arrays(title, array, None)], None)[0]


def open_npy(path: Path) -> ArraySource:
    """Open a ``.npy`` file of images, mapped rather than read."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"cannot read '{path}': {error}", tip="save it with numpy.save") from None
    return open_array(array, path.name)


def open_npz(path: Path) -> list[ArraySource]:
    """Open a ``.npz`` file: one source, or two where it has train and test arrays."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return _open_arrays(path, file)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"cannot read '{path}': {error}", tip="save it with numpy.savez") from None


def _open_arrays(path: Path, file: Mapping[str, np.ndarray]) -> list[ArraySource]:
    names = {key.lower(): key for key in file}

    def find(split: str, words: Sequence[str]) -> str | None:
        forms = ("{0}_{1}", "{1}_{0}") if split else ("{1}",)
        tried = (form.format(split, word) for word in words for form in forms)
        return next((names[key] for key in tried if key in names), None)

    splits = [""]
    if find("train", _IMAGES):
        splits = ["train", *[name for name in TEST_NAMES if find(name, _IMAGES)][:1]]
    parts = []
    for split in splits:
        images, labels = find(split, _IMAGES), find(split, _LABELS)
        if images is None:
            there = ", ".join(f"{key} {_shape(file, key)}" for key in file) or "nothing"
            raise DataError(
                f"'{path}' has no images under a name that is known; it holds: {there}",
                tip="name the arrays images and labels, or x_train, y_train, x_test, y_test",
            )
        parts.append(Arrays(images, file[images], file[labels] if labels else None))
    classes = [str(name) for name in file["classes"]] if "classes" in file else None
    return array_sources(parts, classes)


def _shape(file: Mapping[str, np.ndarray], key: str) -> str:
    try:
        return f"{file[key].dtype} {list(file[key].shape)}"
    except ValueError:  # pickled objects are never loaded
        return "(Python objects)"


def _images(part: Arrays) -> np.ndarray:
    """Check one array of images and view it as [N, H, W, C]."""
    title, array = part.title, part.images
    if array.dtype.kind not in "buif":
        raise DataError(
            f"'{title}' has type {array.dtype}; images are integers, floats or booleans",
            tip="convert it first: numpy.abs(x) of complex values, numpy.stack(list) of objects",
        )
    if array.ndim not in (3, 4) or array.size == 0:
        raise DataError(
            f"'{title}' has shape {list(array.shape)}, which is not a set of images",
            tip="images are [N, H, W], [N, H, W, C] or [N, C, H, W], with at least one",
        )
    if array.ndim == 3:
        if array.shape[2] <= 4:
            raise DataError(
                f"'{title}' has shape {list(array.shape)}: one image, or a set of narrow ones?",
                tip="add the missing axis: x[None] for one image, x[..., None] for gray ones",
            )
        return array[..., None]
    return channels_last(array, title)


def channels_last(array: np.ndarray, title: str) -> np.ndarray:
    """View [N, H, W, C] or [N, C, H, W] as [N, H, W, C]: the channels are the shortest axis.

    Raises:
        DataError: The shape does not say which axis the channels are, or there are too many.
    """
    _, first, middle, last = array.shape
    if not (first <= 4 and last <= 4):
        found = None
        if last < first and last < middle:
            found = array
        elif first < last and first < middle:
            found = array.transpose(0, 2, 3, 1)
        if found is not None and found.shape[3] <= MAX_CHANNELS:
            return found
        if found is not None:
            raise DataError(
                f"'{title}' has shape {list(array.shape)}: {found.shape[3]} channels",
                tip=f"keep {MAX_CHANNELS} or fewer, or give each as an image of its own",
            )
    raise DataError(
        f"'{title}' has shape {list(array.shape)}: which axis are the channels?",
        tip="pad the images, or wrap them in a data set whose items are PIL images",
    )


def _raw_labels(part: Arrays) -> np.ndarray | None:
    """Check labels: integers or names, [N] (or [N, 1], as MedMNIST has them)."""
    if part.labels is None:
        return None
    labels = part.labels
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "uiUS":
        raise DataError(
            f"labels of '{part.title}' are {labels.dtype} {list(labels.shape)}",
            tip="labels are one integer or one name an image: use y.argmax(1) for one-hot labels",
        )
    if len(labels) != len(part.images):
        raise DataError(
            f"'{part.title}' has {len(part.images)} images but {len(labels)} labels",
            tip="give one label an image",
        )
    return labels


def within(labels: np.ndarray, classes: int) -> bool:
    """Whether labels are integers of 0..classes - 1."""
    return labels.dtype.kind in "ui" and int(labels.min()) >= 0 and int(labels.max()) < classes
