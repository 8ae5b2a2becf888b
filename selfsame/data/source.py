"""Where images come from: one function opens every kind of input."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from selfsame.data.arrays import TEST_NAMES, open_array, open_npy, open_npz
from selfsame.data.cifar import is_cifar, open_cifar
from selfsame.data.dataset import DatasetSource
from selfsame.data.folder import FolderSource, open_files, require
from selfsame.data.order import permutation
from selfsame.errors import DataError, UsageError
from selfsame.types import Source

TEST_SHARE = 0.2  # of each class, where the data has no test part of its own


class Labelled(NamedTuple):
    """Labelled data in two parts that share their classes."""

    train: Source
    test: Source
    how: str  # one sentence: where the two parts come from


class Subset:
    """Some images of a source, in the given order."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self.source = source
        self.indices = indices
        self.labels = None if source.labels is None else source.labels[indices]
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, i: int) -> str:
        """Name in the whole source."""
        return self.source.name(int(self.indices[i]))

    def read(self, i: int) -> bytes | np.ndarray:
        """Image ``i`` of the subset."""
        return self.source.read(int(self.indices[i]))

    def fingerprint(self) -> str:
        """Hash of the whole source and the indices."""
        digest = hashlib.sha256(self.source.fingerprint().encode())
        digest.update(self.indices.astype(np.int64).tobytes())
        return digest.hexdigest()[:16]


def open_source(spec: Any, notes: list[str] | None = None) -> Source:
    """Open images. Where the data has a test part of its own, this is its train part.

    Args:
        spec: A directory (flat, nested, one folder a class, or CIFAR as distributed); an image
            file; a list of directories and image files; a ``.npy`` or ``.npz`` file; a uint8 array
            or tensor of images; a map-style data set; or a ``Source``, returned as it is.
        notes: Gets a sentence for whatever was found and is not used.

    Raises:
        DataError: The data is missing, empty, or not images.
        UsageError: The type of ``spec`` is none of these.
    """
    train, test, names = _open(spec)
    if notes is not None:
        if test is not None:
            notes.append(f"only the part {names[0]}; {names[1]} is left for evaluation")
        if others := getattr(train, "others", None):
            kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(others).most_common(5))
            notes.append(f"other files ignored: {kinds}")
    return train


def open_labelled(spec: Any, *, seed: int = 0) -> Labelled:
    """Open labelled images in a train and a test part, for evaluation.

    The data's own parts are used where it has them: folders ``train/`` and ``test/`` (or ``val/``,
    ``valid/``, ``validation/``), arrays ``x_train`` and ``x_test``, CIFAR's batches. Otherwise 20 %
    of each class, rounded, are drawn for testing: a function of the seed and the labels alone.

    Raises:
        DataError: As ``open_source``; or there are no labels, or nothing to test on.
        UsageError: As ``open_source``.
    """
    train, test, names = _open(spec)
    if isinstance(train, DatasetSource):
        train.read_labels()
    classes = _labels_of(train, "the data" if test is None else f"the train part ({names[0]})")[1]
    if test is None:
        train, test = _stratified(train, seed)
        how = f"a stratified 80/20 split with seed {seed}, as the data has no test part of its own"
    else:
        test = _renumbered(test, classes, names[1])
        how = f"the data's own parts: {names[0]} and {names[1]}"
    counts = f"{len(train)} train and {len(test)} test images in {len(classes)} classes"
    return Labelled(train, test, f"{how}; {counts}")


class _Parts(NamedTuple):
    train: Source  # everything, where there is no test part
    test: Source | None = None
    names: tuple[str, str] = ("", "")


def _open(spec: Any) -> _Parts:
    if isinstance(spec, Source):
        return _Parts(spec)
    if isinstance(spec, torch.Tensor):
        spec = spec.numpy(force=True)
    if isinstance(spec, np.ndarray):
        return _Parts(open_array(spec))
    if isinstance(spec, str | os.PathLike):
        return _open_path(Path(spec).expanduser())
    if isinstance(spec, list | tuple):
        if not spec:
            raise UsageError("an empty list holds no images", tip="list directories and files")
        if all(isinstance(path, str | os.PathLike) for path in spec):
            return _Parts(open_files([Path(path).expanduser() for path in spec]))
    if hasattr(spec, "__getitem__") and hasattr(spec, "__len__"):
        return _Parts(DatasetSource(spec))
    raise UsageError(
        f"cannot read images from {type(spec).__name__}",
        tip="give a folder, a list of folders and files, a .npy or .npz file, a uint8 array, "
        "or a data set with __len__ and __getitem__",
    )


def _open_path(path: Path) -> _Parts:
    require(path)
    if path.suffix.lower() == ".npy":
        return _Parts(open_npy(path))
    if path.suffix.lower() == ".npz":
        return _of_arrays(open_npz(path))
    if path.is_dir():
        if is_cifar(path):
            return _of_arrays(open_cifar(path))
        folders = {entry.name.lower(): entry for entry in path.iterdir() if entry.is_dir()}
        test = next((folders[name] for name in TEST_NAMES if name in folders), None)
        if test is not None and "train" in folders:
            train = folders["train"]
            names = (f"{train.name}/", f"{test.name}/")
            return _Parts(open_files([train]), open_files([test]), names)
    return _Parts(open_files([path]))


def _of_arrays(sources: Sequence[Any]) -> _Parts:
    if len(sources) == 1:
        return _Parts(sources[0])
    train, test = sources
    return _Parts(train, test, (train.title, test.title))


def _labels_of(source: Source, what: str) -> tuple[np.ndarray, Sequence[str]]:
    if source.labels is None or source.classes is None:
        kind = "put each class in a folder of its own, side by side"
        if not isinstance(source, FolderSource):
            kind = "add the labels: an array named labels or y beside the images"
        raise DataError(f"{what} has no labels", tip=kind)
    return source.labels, source.classes


def _renumbered(test: Source, classes: Sequence[str], name: str) -> Source:
    """Give a test part the class numbers of the train part."""
    labels, own = _labels_of(test, f"the test part ({name})")
    number = {label: k for k, label in enumerate(classes)}
    missing = [label for label in own if label not in number]
    if missing:
        raise DataError(
            f"class '{missing[0]}' of {name} has no training images",
            tip=f"the classes are {', '.join(classes[:8])}{', ...' if len(classes) > 8 else ''}",
        )
    test.labels = np.array([number[label] for label in own], np.int64)[labels]
    test.classes = classes
    return test


def _stratified(source: Source, seed: int) -> tuple[Source, Source]:
    labels, classes = _labels_of(source, "the data")
    train, test = [], []
    for k in range(len(classes)):
        members = np.flatnonzero(labels == k)
        members = members[permutation(seed, k, len(members)).numpy()]
        # A class of two or more is in both parts; a single image is for training.
        held = min(max(1, round(TEST_SHARE * len(members))), max(0, len(members) - 1))
        test.append(members[:held])
        train.append(members[held:])
    held_out = np.sort(np.concatenate(test))
    if len(held_out) == 0:
        raise DataError("no class has two images: nothing to test on", tip="add labelled images")
    return Subset(source, np.sort(np.concatenate(train))), Subset(source, held_out)
