"""Rows of numbers that are computed once and kept on the disk, for several runs at a time.

A memo is a folder: ``NAME.bin`` with a row for each number, and ``rows.bin`` with a checksum for
each row that is there. A row that is not there, or whose bytes are not those of its checksum (the
machine went down), is computed again, so nothing has to be trusted or repaired.
Processes may write at the same time: each row has a place of its own, and equal rows have equal
bytes. Space for all rows is taken at once, so that a full disk is an error at the start: later on,
writing to memory that the disk has no room for would end the process.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selfsame.errors import RunError
from selfsame.files import atomic

DTYPE = np.float16

Shapes = Mapping[str, tuple[int, ...]]
Rows = Mapping[str, Tensor]


def row_bytes(shapes: Shapes) -> int:
    """Bytes of a row of tensors of these shapes, with its checksum."""
    return sum(int(np.prod(shape)) * DTYPE().itemsize for shape in shapes.values()) + 4


class Memo:
    """Rows of named tensors, by number.

    Args:
        folder: where; made when the first row is written.
        count: rows that there can be.
        shapes: of each named tensor of a row.
    """

    def __init__(self, folder: Path, count: int, shapes: Shapes) -> None:
        self.folder, self.count = folder, count
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.reused = self.computed = 0  # rows, by this object
        self.seconds = 0.0  # that those it computed took
        self._arrays: dict[str, np.ndarray] = {}

    @property
    def bytes(self) -> int:
        """What the folder takes once every row is there."""
        return self.count * row_bytes(self.shapes)

    def get(self, numbers: Tensor, make: Callable[[], Rows]) -> dict[str, Tensor]:
        """The rows of these numbers, int64 [n], as float32 on the CPU.

        ``make`` gives all n of them where one is missing, and they are kept. Rounded to float16
        either way: whether rows were kept changes no bit.

        Raises:
            RunError: the disk refuses.
        """
        try:
            self._open()
            place = numbers.numpy()
            kept = {name: self._arrays[name][place] for name in self.shapes}
            sums = self._arrays["rows"][place]
            if (self._checksums(kept) == sums).all():
                self.reused += len(place)
                return {name: torch.from_numpy(rows).float() for name, rows in kept.items()}
            start = time.perf_counter()
            made = {name: rounded(rows) for name, rows in make().items()}
            fresh = {name: made[name].cpu().numpy().astype(DTYPE) for name in self.shapes}
            self.seconds += time.perf_counter() - start
            for name, rows in fresh.items():
                self._arrays[name][place] = rows
            self._arrays["rows"][place] = self._checksums(fresh)
            self.computed += len(place)
        except OSError as error:
            raise RunError(
                f"cannot keep what the teacher computes in {self.folder}: {error.strerror}",
                tip="--no-cache computes it anew at every step; SELFSAME_CACHE names another place",
            ) from None
        return made

    def describe(self) -> str:
        """What it saved, in words."""
        total = self.reused + self.computed
        saved = f"teacher    {self.reused:,} of {total:,} answers were read from the disk"
        if not self.computed:
            return saved
        each = self.seconds / self.computed
        spared = f"which spared about {self.reused * each:.0f} s of its work"
        return f"{saved}, {spared}; the others took {self.seconds:.0f} s"

    def _checksums(self, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        """A checksum for each row, never 0, which stands for a row that is not there."""
        count = len(next(iter(rows.values())))
        parts = [np.ascontiguousarray(rows[name]).reshape(count, -1) for name in self.shapes]
        found = np.zeros(count, np.uint32)
        for i in range(count):
            value = 0
            for part in parts:
                value = zlib.crc32(part[i], value)
            found[i] = value or 1
        return found

    def _open(self) -> None:
        """Map the files, made at their full size where there are none."""
        if self._arrays:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        about = self.folder / "about.json"
        if not about.is_file():
            with atomic(about) as temporary:
                facts = {"count": self.count, "dtype": DTYPE.__name__, "shapes": self.shapes}
                temporary.write_text(json.dumps(facts), "utf-8")
        for name, shape in {**self.shapes, "rows": ()}.items():
            file = self.folder / f"{name}.bin"
            dtype = np.dtype(np.uint32 if name == "rows" else DTYPE)
            size = self.count * int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            _reserve(file, size)
            self._arrays[name] = np.memmap(file, dtype, "r+", shape=(self.count, *shape))


def _reserve(file: Path, size: int) -> None:
    """Make a file of this size, of zeros, whose space is its own; one that is there is kept."""
    with file.open("ab") as handle:
        new = handle.tell() == 0
        if handle.tell() >= size:
            return
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle.fileno(), 0, size)
            else:
                handle.truncate(size)
        except OSError:
            if new:
                file.unlink()
            raise


def rounded(x: Tensor) -> Tensor:
    """``x`` to the precision in which rows are kept, in float32 or the wider type that it has.

    Contiguous, as rows that are read: sums over another layout are rounded otherwise.
    """
    limit = torch.finfo(torch.float16).max
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.clamp(-limit, limit).half().to(wide).contiguous()
