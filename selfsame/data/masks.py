"""Images with a mask each: the class of every pixel."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from selfsame.data import place
from selfsame.data.archive import is_archive, open_archives
from selfsame.data.arrays import TEST_NAMES
from selfsame.data.folder import FileSource, Paths, Store, is_image
from selfsame.data.order import permutation
from selfsame.errors import DataError, Unreadable

IGNORED = -1  # the class of pixels that do not count
VOID = 255  # as which masks mark them
TEST_SHARE = 0.2  # of the images, where the data has no test part of its own
LAYOUT = "lay them out as images/train/x.jpg with masks/train/x.png, and the same for test"

_PLACE = re.compile(r"(?:^|/)(images|masks)/(?:(.+)/)?([^/]+)\.[^./]+$")


class MaskedSource(FileSource):
    """Image files, each with a file that holds the class of every pixel.

    The fingerprint is that of the images alone, which is what features depend on.
    """

    def __init__(
        self,
        names: Sequence[str],
        files: Sequence[tuple[Store, int]],
        masks: Sequence[tuple[Store, int]],
    ) -> None:
        super().__init__(names, files)
        self.masks = masks
        self.values: Mapping[int, int] = {}  # of the masks' pixels to classes

    def mask(self, i: int) -> np.ndarray:
        """Classes of the pixels of image ``i``, int64 [H, W]; ``IGNORED`` where they do not count.

        Raises:
            DataError: a value that no class has.
        """
        raw = self.raw_mask(i)
        table = np.full(int(max(raw.max(), *self.values)) + 1, -2, np.int64)
        for value, number in self.values.items():
            table[value] = number
        found: np.ndarray = table[raw]
        if (found == -2).any():
            value = int(raw[found == -2][0])
            raise DataError(
                f"the mask of {self.names[i]} has the value {value}, which is no class",
                tip=f"the values are {', '.join(map(str, sorted(self.values)))}; "
                f"{VOID} and ignore_index of classes.json do not count",
            )
        return found

    def raw_mask(self, i: int) -> np.ndarray:
        """The values of a mask as they are, integers [H, W].

        Raises:
            DataError: it is not one integer a pixel.
            Unreadable: it is damaged.
        """
        store, k = self.masks[i]
        try:
            with Image.open(io.BytesIO(store.read(k))) as image:
                values = np.asarray(image)
        except Exception as error:  # Pillow raises many kinds
            raise Unreadable(f"its mask cannot be read: {error}") from None
        if values.ndim != 2 or values.dtype.kind not in "bui":
            raise DataError(
                f"the mask of {self.names[i]} has shape {list(values.shape)} of {values.dtype}",
                tip="a mask is a PNG with one integer a pixel, its class (gray or with a palette)",
            )
        return values.astype(np.int64)


class Masked(NamedTuple):
    """Images with masks in two parts that share their classes."""

    train: MaskedSource
    test: MaskedSource
    classes: Sequence[str]
    how: str  # one sentence: where the two parts come from


def open_masked(spec: Any, *, seed: int = 0) -> Masked:
    """Open images and masks: ``images/<part>/x.jpg`` with ``masks/<part>/x.png``.

    In a folder or an archive. Without parts named train and test (or val, ...), a fifth of the
    images are drawn for testing. Pixels of a mask are numbers of classes; 255 does not count,
    unless there is nothing but 0 and 255. A file ``classes.json`` may name the classes, as a list
    or as ``{"classes": [...], "ignore_index": 5}``.

    Raises:
        DataError: no such layout, images without masks, or masks without classes.
    """
    if not isinstance(spec, str | os.PathLike):
        raise DataError(f"no masks in {type(spec).__name__}", tip=f"give a folder: {LAYOUT}")
    path = os.path.expanduser(os.fspath(spec))
    place.require(path)
    store: Any
    if is_archive(path) and not place.is_folder(path):
        store = open_archives([path])[0]
    else:
        below = place.files_below(path)
        store = Paths(path, list(below), list(below.values()))
    found: dict[str, dict[tuple[str, str], int]] = {"images": {}, "masks": {}}
    facts: Any = None
    for k, name in enumerate(store.names):
        if name.rpartition("/")[2] == "classes.json":
            facts = _facts(name, store.read(k))
        at = _PLACE.search(name)
        if at and is_image(name):
            found[at[1]][at[2] or "", at[3]] = k
    if not found["images"] or not found["masks"]:
        lacks = "images" if not found["images"] else "masks"
        raise DataError(f"'{path}' has no {lacks} in a folder called {lacks}", tip=LAYOUT)
    if alone := sorted(found["images"].keys() - found["masks"].keys()):
        part, stem = alone[0]
        more = f", like {len(alone) - 1} more" if len(alone) > 1 else ""
        raise DataError(
            f"image '{'/'.join(filter(None, (part, stem)))}' of '{path}' has no mask{more}",
            tip="a mask has the image's name and part: images/train/x.jpg, masks/train/x.png",
        )

    def source(keys: Sequence[tuple[str, str]]) -> MaskedSource:
        return MaskedSource(
            [store.names[found["images"][key]] for key in keys],
            [(store, found["images"][key]) for key in keys],
            [(store, found["masks"][key]) for key in keys],
        )

    keys = sorted(found["images"])
    parts = {part for part, _ in keys}
    test = next((name for name in TEST_NAMES if name in parts), None)
    if test is not None and "train" in parts:
        train_keys = [key for key in keys if key[0] == "train"]
        test_keys = [key for key in keys if key[0] == test]
        how = f"the data's own parts: train and {test}"
    else:
        if len(keys) < 2:
            raise DataError(f"'{path}' has one image: nothing to test on", tip="add images")
        order = permutation(seed, 0, len(keys)).tolist()
        held = set(order[: max(1, round(TEST_SHARE * len(keys)))])
        train_keys = [key for i, key in enumerate(keys) if i not in held]
        test_keys = [key for i, key in enumerate(keys) if i in held]
        how = f"an 80/20 split with seed {seed}, as the data has no test part of its own"
    pair = source(train_keys), source(test_keys)
    values, classes = _classes(pair[0], facts)
    for each in pair:
        each.values = values
    counts = f"{len(pair[0])} train and {len(pair[1])} test images with masks of {len(classes)}"
    return Masked(*pair, classes, f"{how}; {counts} classes")


def _facts(name: str, data: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(data)
        facts = {"classes": facts} if isinstance(facts, list) else facts
        classes, ignored = facts["classes"], facts.get("ignore_index", VOID)
        if not all(isinstance(each, str) for each in classes) or not isinstance(ignored, int):
            raise TypeError("classes are strings and ignore_index is an integer")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"cannot read {name}: {error}",
            tip='write a list of names, or {"classes": [...], "ignore_index": 5}',
        ) from None
    return {"classes": classes, "ignore_index": ignored}


def _classes(
    source: MaskedSource, facts: dict[str, Any] | None
) -> tuple[dict[int, int], list[str]]:
    """What the values of masks mean, and the names of the classes."""
    if facts is not None:
        kept = [i for i in range(len(facts["classes"])) if i != facts["ignore_index"]]
        values = {value: k for k, value in enumerate(kept)}
        names = [facts["classes"][i] for i in kept]
        values[facts["ignore_index"]] = IGNORED
    else:
        seen: set[int] = set()
        for i in range(len(source)):
            try:
                seen |= set(np.unique(source.raw_mask(i)).tolist())
            except Unreadable:
                continue
        real = sorted(seen if seen == {0, VOID} else seen - {VOID})
        values = {value: k for k, value in enumerate(real)}
        names = [f"class {value}" for value in real]
        if names == ["class 0", f"class {VOID}"] or real == [0, 1]:
            names = ["background", "foreground"]
    values.setdefault(VOID, IGNORED)
    if len(names) < 2:
        raise DataError(
            f"the masks have one class only ({', '.join(names)})",
            tip="give masks with the number of a class at each pixel",
        )
    return values, names
