"""What every kind of input has in common: parts for training and testing, classes, columns."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from selfsame.data.arrays import TEST_NAMES, TRAIN_NAMES
from selfsame.types import Source

# Columns of tables and keys of items by their lower-case names; the first that is there is used.
PATHS = (
    *("path", "file_path", "filepath", "image_path", "img_path", "file", "file_name", "filename"),
    *("image_file", "image_name", "image", "img", "images"),
)
IMAGES = (
    *("image", "img", "images", "picture", "photo", "pixel_values", "pixels", "image_bytes"),
    *("bytes", "content", "data", "jpg", "jpeg", "png", "webp", "x"),
)
LABELS = (
    *("label", "labels", "class", "class_name", "classname", "label_name", "target", "targets"),
    *("category", "y", "cls", "class_id", "label_id", "fine_label"),
)
SPLITS = ("split", "part", "partition", "subset", "set")

_INTEGER = re.compile(r"[+-]?\d+")


class Parts(NamedTuple):
    """What was opened."""

    train: Source  # everything, where there is no test part
    test: Source | None = None
    names: tuple[str, str] = ("", "")  # of the two parts, as they are called in the data
    notes: Sequence[str] = ()  # a sentence for whatever was found and is not used


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


def choose(words: Iterable[str | None]) -> tuple[str, str] | None:
    """The names of the train and the test part among ``words``, where both are there."""
    known = {word.lower(): word for word in sorted({word for word in words if word})}
    train, test = (
        next((known[name] for name in names if name in known), None)
        for names in (TRAIN_NAMES, TEST_NAMES)
    )
    return None if train is None or test is None else (train, test)


def part_of_file(path: str) -> str | None:
    """The part that a file belongs to by its name or its folder's: train-00001.tar, val/3.tar."""
    for piece in path.replace("\\", "/").split("/")[:-3:-1]:
        for word in re.split(r"[^a-z]+", piece.lower()):
            if word in TRAIN_NAMES:
                return TRAIN_NAMES[0]
            if word in TEST_NAMES:
                return word
    return None


def unused(words: Sequence[str | None], names: tuple[str, str]) -> list[str]:
    """Notes on images whose part is neither of the two that are used."""
    left = sum(word not in names for word in words)
    return [f"images in neither {names[0]} nor {names[1]}, not used: {left}"] if left else []


def column(names: Iterable[str], wanted: Sequence[str]) -> str | None:
    """The first of the ``wanted`` columns among ``names``, whatever its case."""
    known = {name.strip().lower(): name for name in names}
    return next((known[word] for word in wanted if word in known), None)


class Numbered(NamedTuple):
    """Labels as numbers."""

    labels: np.ndarray | None = None  # int64 [N]
    classes: Sequence[str] | None = None
    notes: Sequence[str] = ()


def number(values: Sequence[Any] | None, names: Sequence[str] | None = None) -> Numbered:
    """Number labels: integers, names, or None and "" where an image has none.

    ``names`` are those of the integers 0, 1, ...; a negative integer is then a missing label. By
    default the classes are the values, sorted, integers by their value. Labels are used only where
    every image has one.
    """
    if values is None:
        return Numbered()
    valid = None if names is None else range(len(names))
    missing = sum(
        value is None or value == "" or (valid is not None and value not in valid)
        for value in values
    )
    if missing == len(values):
        return Numbered()
    if missing:
        return Numbered(notes=[f"labels ignored: {missing} of {len(values)} images have none"])
    if names is not None:
        return Numbered(np.array(values, np.int64), list(names))
    texts = [str(value) for value in values]
    distinct = sorted(set(texts))
    if all(_INTEGER.fullmatch(text) for text in distinct):
        distinct.sort(key=int)
    position = {text: k for k, text in enumerate(distinct)}
    return Numbered(np.array([position[text] for text in texts], np.int64), distinct)
