"""Read an index: check that it is one, whole, and of a model that can be asked."""

from __future__ import annotations

import json
import os
import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from selfsame.data import Images, open_source
from selfsame.encoder import Encoder, load
from selfsame.errors import DataError, SelfsameError, UsageError
from selfsame.files import reason, refused
from selfsame.nn.precision import unit
from selfsame.types import Source

KEY = b"selfsame"  # of the metadata
FORMAT = 1
COLUMNS = ("id", "path", "sha256", "vector")
MAPPED = 2**28  # bytes of vectors from which all of them at once are a file, not memory
AGAIN = "write it again: selfsame embed MODEL DATA -o {}"


class Row(NamedTuple):
    """An image of an index."""

    id: int  # position in the data
    path: str


class Index:
    """A file that ``embed`` wrote, opened and checked; vectors are read when they are asked for.

    ``index[a:b]`` are those of some rows at unit length, float32 [b - a, D].

    Args:
        path: the file.

    Raises:
        UsageError: there is no such file, or it is of a later format.
        DataError: it is no index, or it is damaged, empty, or has an id twice.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise UsageError(f"{path} does not exist", tip="write it: selfsame embed MODEL DATA -o")
        if self.path.is_dir():
            raise UsageError(f"{path} is a folder", tip="name the .parquet that embed wrote")
        self._file = self._open()
        parts = self._file.metadata
        lengths = (parts.row_group(g).num_rows for g in range(parts.num_row_groups))
        self._starts = [0, *accumulate(lengths)]  # first rows of the groups of the file
        self._last: tuple[int, Tensor] | None = None  # the group that was read last
        self.facts = self._facts()
        columns = self._columns()
        self.ids: np.ndarray = columns["id"].to_numpy()  # int64 [N]
        self._paths, self._sums = columns["path"], columns["sha256"]
        if len(self.ids) == 0:
            raise DataError(f"{path} holds no vectors", tip=AGAIN.format(path))
        values, counts = np.unique(self.ids, return_counts=True)
        if counts.max() > 1:
            raise DataError(
                f"{path} has the id {values[counts.argmax()]} {counts.max()} times",
                tip="each image has one row; " + AGAIN.format(path),
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self.facts["dim"])

    def row(self, i: int) -> Row:
        """Id and path of row ``i``."""
        return Row(int(self.ids[i]), self._paths[i].as_py())

    def sha256(self, i: int) -> str:
        """Hash of the bytes of the image of row ``i``."""
        found: str = self._sums[i].as_py()
        return found

    def contents(self) -> Tensor:
        """A number for the bytes of each image, int64 [N]: the first row that has them."""
        codes = self._sums.combine_chunks().dictionary_encode().indices.to_numpy()
        first = np.unique(codes, return_index=True)[1]
        return torch.from_numpy(first[codes])

    def __getitem__(self, rows: slice) -> Tensor:
        """The vectors of consecutive rows at unit length, float32 [n, D], read from the file.

        Raises:
            DataError: the file is damaged, or a vector is not finite or zero.
        """
        start, stop, _ = rows.indices(len(self))
        group, parts = bisect_right(self._starts, start) - 1, []
        while start < stop:
            first, end = self._starts[group], min(stop, self._starts[group + 1])
            parts.append(self._group(group)[start - first : end - first])
            start, group = max(start, end), group + 1
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts) if parts else torch.empty(0, self.dim)

    def _group(self, group: int) -> Tensor:
        """The vectors of a group of rows of the file, at unit length."""
        if self._last is not None and self._last[0] == group:
            return self._last[1]
        with _reading(self.path):
            table = self._file.read_row_group(group, columns=["vector"])
            column = table["vector"].combine_chunks()
            if column.null_count:
                raise ValueError("vectors are missing")
            flat = column.flatten().to_numpy(zero_copy_only=False)
            raw = torch.from_numpy(flat.astype(np.float32).reshape(-1, self.dim))
        length = raw.norm(dim=1)
        if not (length.isfinite() & (length > 0)).all():
            row = int((length.isfinite() & (length > 0)).byte().argmin())
            what = "zero" if length[row] == 0 else "not finite"
            raise DataError(
                f"the vector of {self.row(self._starts[group] + row).path} in {self.path} is "
                f"{what}",
                tip="the encoder had diverged, or something else wrote the file; "
                + AGAIN.format(self.path),
            )
        self._last = group, unit(raw)
        return self._last[1]

    def blocks(self) -> Iterator[Tensor]:
        """All vectors in their order, as `__getitem__` gives them: [n, D] at a time."""
        for first, end in pairwise(self._starts):
            if first < end:
                yield self[first:end]

    def vectors(self) -> Tensor:
        """All vectors at unit length, float32 [N, D], for what looks at them again and again.

        Many are mapped from a temporary file beside the index, which is gone with the tensor: pages
        of it leave memory when that is short. A change of the tensor does not reach the file.

        Raises:
            RunError: there is no space for the file.
        """
        if 4 * len(self) * self.dim < MAPPED:
            return torch.cat(list(self.blocks()))
        folder = self.path.parent if os.access(self.path.parent, os.W_OK) else None
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                for block in self.blocks():
                    file.write(block.numpy().data)
                file.flush()
                shape = (len(self), self.dim)
                return torch.from_numpy(np.memmap(file, np.float32, "c", shape=shape))
        except OSError as error:
            raise refused("the vectors of the index", error, "ask again") from error

    def encoder(self, model: str | Path | nn.Module | None, device: str | None) -> Encoder:
        """The model that made the index: the one that is given, or the one that it remembers.

        Raises:
            UsageError: it is another one, or none is remembered that can still be loaded.
        """
        remembered = self.facts["model"].get("name")
        if model is None and remembered is None:
            raise UsageError(
                f"{self.path} does not say where its model is", tip="give it: --model MODEL"
            )
        name = remembered if model is None else model
        try:
            encoder = load(name, device=device)
        except SelfsameError as error:
            if model is not None:
                raise
            raise UsageError(
                f"the model that {self.path} remembers cannot be loaded: {error}",
                tip="say where it is now: --model MODEL",
            ) from error
        if encoder.fingerprint() != self.facts["model"]["fingerprint"]:
            known = "is not the model that" if model is not None else "has changed since it"
            raise UsageError(
                f"{name if isinstance(name, str | Path) else type(name).__name__} {known} made "
                f"{self.path}",
                tip="vectors of two models cannot be compared: give the one that wrote it with "
                "--model, or embed the images again",
            )
        return encoder

    def source(self, data: Any = None) -> Source:
        """The images that were embedded: those of ``data``, or from where they were.

        Raises:
            UsageError: it does not say where they are.
            DataError: they are gone, or others.
        """
        data = data if data is not None else self.facts["data"].get("paths")
        if data is None:
            raise UsageError(
                f"{self.path} does not say where its images are", tip="give them: --data DATA"
            )
        source = open_source(data)
        if source.fingerprint() != self.facts["data"]["fingerprint"]:
            raise DataError(
                "the images are not those that were embedded, or have changed since",
                tip="give the same ones with --data, or embed these",
            )
        return source

    def images(self, side: int, data: Any = None) -> Images:
        """The images that were embedded, decoded to fit in a square of ``side`` pixels."""
        channels = int(self.facts["channels"])
        levels = self.facts["model"]["card"].get("levels")
        return Images(
            self.source(data),
            canvas=side,
            channels=channels,
            levels=tuple(levels) if levels else None,
            cache_bytes=0,
        )

    def _open(self) -> Any:
        import pyarrow.parquet as pq

        with _reading(self.path):
            return pq.ParquetFile(self.path, page_checksum_verification=True)

    def _facts(self) -> dict[str, Any]:
        """What ``embed`` said of the file."""
        text = (self._file.schema_arrow.metadata or {}).get(KEY)
        if text is None:
            raise DataError(
                f"{self.path} is a Parquet file that selfsame embed did not write",
                tip="an index knows the model of its vectors; " + AGAIN.format("FILE"),
            )
        with _reading(self.path):
            facts: dict[str, Any] = json.loads(text)
            if facts["format"] > FORMAT:
                raise UsageError(
                    f"{self.path} has format {facts['format']}, and this selfsame knows {FORMAT}",
                    tip="install a later selfsame",
                )
            expected = (facts["model"]["fingerprint"], facts["data"]["fingerprint"], facts["dim"])
            if not all(expected) or facts["images"] != self._file.metadata.num_rows:
                raise ValueError("its metadata does not fit its rows")
        return facts

    def _columns(self) -> dict[str, Any]:
        """All columns but the vectors."""
        import pyarrow.types as types

        schema = self._file.schema_arrow
        with _reading(self.path):
            if missing := [name for name in COLUMNS if name not in schema.names]:
                raise ValueError(f"it has no column {missing[0]}")
            vector = schema.field("vector").type
            if not types.is_fixed_size_list(vector) or vector.list_size != self.dim:
                raise ValueError(f"its vectors are {vector}, not {self.dim} numbers each")
            table = self._file.read(columns=list(COLUMNS[:3]))
            if any(table[name].null_count for name in COLUMNS[:3]):
                raise ValueError("values are missing")
            if not types.is_int64(table["id"].type) or not types.is_string(table["path"].type):
                raise ValueError("its columns are of other types")
        return {name: table[name] for name in COLUMNS[:3]}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into one error."""
    try:
        yield
    except SelfsameError:
        raise
    except Exception as error:
        raise DataError(
            f"{path} is damaged, or no index: {reason(error)}", tip=AGAIN.format(path)
        ) from error
