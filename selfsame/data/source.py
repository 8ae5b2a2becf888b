"""Where images come from: one function opens every kind of input."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from selfsame.data import place
from selfsame.data.archive import ARCHIVES, COMPRESSED
from selfsame.data.arrays import open_array, open_npy, open_npz
from selfsame.data.cifar import is_cifar, open_cifar
from selfsame.data.dataset import DatasetSource
from selfsame.data.folder import (
    IMAGE_EXTENSIONS,
    FileSource,
    folder_rows,
    is_image,
    open_files,
    open_rows,
)
from selfsame.data.listing import LISTS, open_lists
from selfsame.data.order import permutation
from selfsame.data.pack import PackSource, open_pack
from selfsame.data.parts import Parts, Subset, choose
from selfsame.data.place import Found
from selfsame.data.stack import STACKS, open_stack
from selfsame.data.tables import TABLES, is_saved, open_saved, open_tables
from selfsame.errors import DataError, UsageError
from selfsame.types import Source

__all__ = ["Labelled", "Subset", "open_labelled", "open_parts", "open_source"]

_KINDS = {
    "image": tuple(IMAGE_EXTENSIONS),
    "archive": ARCHIVES + COMPRESSED,
    "table": TABLES,
    "list": LISTS,
    "array": (".npy", ".npz"),
    "pack": (".pack",),
}

TEST_SHARE = 0.2  # of each class, where the data has no test part of its own


class Labelled(NamedTuple):
    """Labelled data in two parts that share their classes."""

    train: Source
    test: Source
    how: str  # one sentence: where the two parts come from


def open_source(spec: Any, notes: list[str] | None = None) -> Source:
    """Open images. Where the data has a test part of its own, this is its train part.

    Args:
        spec: Any of

            - a folder: images (flat, nested, one folder a class), shards, CIFAR as distributed, or
              what Hugging Face's ``save_to_disk`` wrote;
            - a ``.tar`` or ``.zip`` archive, WebDataset shards included; an image file; a TIFF
              file of several pages, each of which is an image;
            - a list of paths (``.csv``, ``.tsv``, ``.txt``); a ``.parquet`` file of images or
              paths; a ``.npy`` or ``.npz`` file; a ``.pack``;
            - a pattern (``photos/**/*.jpg``, ``train-{000..015}.tar``), or a URL of any of these
              but the arrays;
            - a list of folders, files, archives and patterns;
            - a uint8 array or tensor of images; a map-style data set; a dict of its parts; or a
              ``Source``, returned as it is.
        notes: Gets a sentence for whatever was found and is not used.

    Raises:
        DataError: The data is missing, empty, or not images.
        UsageError: ``spec`` is none of these, or a package that reads it is missing.
    """
    train, test, names, found = _open(spec)
    if notes is not None:
        if test is not None:
            notes.append(f"only the part {names[0]}; {names[1]} is left for evaluation")
        notes += found
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
    train, test, names, notes = _open(spec)
    for part in (train, test):
        if isinstance(part, DatasetSource):
            part.read_labels()
    what = "the data" if test is None else f"the train part ({names[0]})"
    classes = _labels_of(train, what, notes)[1]
    if test is None:
        train, test = _stratified(train, seed)
        how = f"a stratified 80/20 split with seed {seed}, as the data has no test part of its own"
    else:
        test = _renumbered(test, classes, names[1], notes)
        how = f"the data's own parts: {names[0]} and {names[1]}"
    counts = f"{len(train)} train and {len(test)} test images in {len(classes)} classes"
    return Labelled(train, test, "; ".join([how, counts, *notes]))


def open_parts(spec: Any) -> dict[str, Source]:
    """Open everything that the data holds: its parts, under their names.

    Where a data set has labels in its items alone, and an integer in each, they are read.

    Raises:
        DataError: As ``open_source``.
        UsageError: As ``open_source``.
    """
    train, test, names, _ = _open(spec)
    if isinstance(train, DatasetSource):
        with suppress(Exception):  # an item has none, or cannot be read
            train.read_labels()
    return {names[0]: train} if test is None else {names[0]: train, names[1]: test}


def _open(spec: Any) -> Parts:
    if isinstance(spec, Source):
        return Parts(spec)
    if isinstance(spec, torch.Tensor):
        spec = spec.numpy(force=True)
    if isinstance(spec, np.ndarray):
        return Parts(open_array(spec))
    if isinstance(spec, str | os.PathLike):
        return _open_paths([spec])
    if isinstance(spec, list | tuple):
        if not spec:
            raise UsageError("an empty list holds no images", tip="list directories and files")
        if all(isinstance(path, str | os.PathLike) for path in spec):
            return _open_paths(spec)
    if isinstance(spec, Mapping):
        return _open_mapping(spec)
    if hasattr(spec, "__getitem__") and hasattr(spec, "__len__"):
        return Parts(DatasetSource(spec))
    raise UsageError(
        f"cannot read images from {type(spec).__name__}",
        tip="give a folder, a list of folders and files, a .npy or .npz file, a uint8 array, "
        "or a data set with __len__ and __getitem__",
    )


def _open_mapping(spec: Mapping[Any, Any]) -> Parts:
    """A ``datasets.DatasetDict``, or anything else by the names of its parts."""
    names = choose(key for key in spec if isinstance(key, str))
    if names is None and list(spec) != ["train"]:
        raise UsageError(
            f"a dict with the keys {', '.join(map(str, spec))} holds no train and test part",
            tip="give one of its values, or name two of them train and test",
        )
    train = _open(spec["train" if names is None else names[0]])
    if names is None:
        return train
    notes = [f"the part {key} is not used" for key in spec if key not in names]
    return Parts(train.train, _open(spec[names[1]]).train, names, [*train.notes, *notes])


def _open_paths(specs: Sequence[str | os.PathLike[str]]) -> Parts:
    found = [match for spec in specs for match in place.find(os.path.expanduser(os.fspath(spec)))]
    kinds = {_kind(path) for path, _ in found}
    if kinds == {"list"}:
        return open_lists([path for path, _ in found])
    if kinds == {"table"}:
        return open_tables([path for path, _ in found])
    if len(found) == 1:
        return _open_one(found[0])
    by_name = {_kind(path) for path, name in found if name is None}
    if odd := sorted(by_name & {"list", "table", "array", "pack"}):
        path = next(path for path, _ in found if _kind(path) == odd[0])
        raise UsageError(
            f"'{path}' cannot be opened together with other kinds of data",
            tip="mix folders, image files and archives as you like; open anything else by itself",
        )
    return open_files(found)


def _open_one(found: Found) -> Parts:
    path, kind = found.path, _kind(found.path)
    if kind in ("array", "pack"):
        if place.is_url(path):
            raise UsageError(f"'{path}' is mapped from local files only", tip="copy it")
        if kind == "pack":
            return _of_arrays(open_pack(Path(path)))
        if path.lower().endswith(".npy"):
            return Parts(open_npy(Path(path)))
        return _of_arrays(open_npz(Path(path)))
    if path.lower().endswith(STACKS) and found.name is None and kind == "image":
        stack = open_stack(path)
        return open_files([found]) if stack is None else Parts(stack)
    if kind != "folder":
        return open_files([found])
    if not place.is_url(path):
        if is_cifar(Path(path)):
            return _of_arrays(open_cifar(Path(path)))
        if is_saved(Path(path)):
            return open_saved(Path(path))
    below = place.files_below(path)
    shards = None if any(map(is_image, below)) else _open_shards(path, sorted(below))
    return shards or open_rows(folder_rows(path, below), [path])


def _open_shards(folder: str, names: Sequence[str]) -> Parts | None:
    """Open the tables, else the archives, of a folder without images."""
    tables = [name for name in names if name.lower().endswith(TABLES)]
    shards = tables or [name for name in names if name.lower().endswith(ARCHIVES)]
    if not shards:
        return None
    found = [Found(place.join(folder, name), name) for name in shards]
    parts = open_tables([path for path, _ in found]) if tables else open_files(found)
    left = len(names) - len(shards)
    return parts._replace(notes=[*parts.notes, *([f"other files ignored: {left}"] * (left > 0))])


def _kind(path: str) -> str:
    """What a path is by its name; folders are asked for last, which takes a request of a URL."""
    for kind, extensions in _KINDS.items():
        if path.lower().endswith(extensions) and (place.is_url(path) or not os.path.isdir(path)):
            return kind
    return "folder" if place.is_folder(path) else "file"


def _of_arrays(sources: Sequence[Any]) -> Parts:
    if len(sources) == 1:
        return Parts(sources[0])
    train, test = sources
    return Parts(train, test, (train.title, test.title))


def _labels_of(
    source: Source, what: str, notes: Sequence[str] = ()
) -> tuple[np.ndarray, Sequence[str]]:
    if source.labels is None or source.classes is None:
        why = [note for note in notes if note.startswith("labels")]
        tip = "add the labels: an array named labels or y beside the images, a column named label"
        if isinstance(source, FileSource | PackSource):
            tip = "put each class in a folder of its own, side by side, or list paths and labels"
        raise DataError(": ".join([f"{what} has no labels", *why]), tip=tip)
    return source.labels, source.classes


def _renumbered(test: Source, classes: Sequence[str], name: str, notes: Sequence[str]) -> Source:
    """Give a test part the class numbers of the train part."""
    labels, own = _labels_of(test, f"the test part ({name})", notes)
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
