"""Encoded images in the rows of tables: Parquet files, and data sets that Hugging Face saved.

Images are a column of bytes, or of a struct of bytes and path as on the Hugging Face hub. Of
Parquet, the row groups that were read last are kept; Arrow files are mapped, so that nothing is.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from selfsame.data import place
from selfsame.data.listing import Rows, open_listed
from selfsame.data.order import spaced
from selfsame.data.parts import (
    IMAGES,
    LABELS,
    PATHS,
    SPLITS,
    Parts,
    Subset,
    choose,
    column,
    number,
    part_of_file,
    unused,
)
from selfsame.errors import DataError, Unreadable

if TYPE_CHECKING:
    import pyarrow as pa

TABLES = (".parquet", ".pq")
CACHE_BYTES = 512 * 2**20  # of row groups, in memory as they are in the file


class Group(NamedTuple):
    """Rows of one file that are read together."""

    path: str
    first: int  # position of its first row in the file
    rows: int
    size: int  # bytes in memory; 0 where they are mapped
    load: Callable[[], pa.ChunkedArray]  # of images


class TableSource:
    """Images in rows of tables, in order."""

    def __init__(
        self,
        groups: Sequence[Group],
        schema: pa.Schema,
        labels: Sequence[Any] | None,
        names: Sequence[str] | None,
    ) -> None:
        self.labels, self.classes, self.notes = number(labels, names)
        self._groups = [group for group in groups if group.rows]
        self._starts = np.cumsum([0, *(group.rows for group in self._groups)])
        self._recent = _Recent(self._groups, CACHE_BYTES)
        self._schema = schema
        total = sum(group.size for group in self._groups)
        if total > CACHE_BYTES:
            self.notes = [
                *self.notes,
                f"images are read in row groups of {len(self) // len(self._groups)}, "
                f"{total / 2**30:.1f} GiB together, of which {CACHE_BYTES / 2**30:.1f} are kept: "
                "a random order reads them many times over, which a folder or a .tar does not",
            ]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def name(self, i: int) -> str:
        """File and row, as in ``train-00000.parquet[17]``."""
        group, row = self._find(i)
        path = self._groups[group].path.replace("\\", "/").rpartition("/")[2]
        return f"{path}[{self._groups[group].first + row}]"

    def read(self, i: int) -> bytes:
        """The encoded image in row ``i``; of a row without bytes, the file that its path names.

        Raises:
            Unreadable: The row is empty.
        """
        group, row = self._find(i)
        value = self._recent.get(group)[row].as_py()
        if isinstance(value, Mapping):
            if value["bytes"] is None and value.get("path"):
                folder = place.parent(self._groups[group].path)
                return place.read(place.join(folder, value["path"]))
            value = value["bytes"]
        if value is None:
            raise Unreadable("the row is empty")
        return bytes(value)

    def fingerprint(self) -> str:
        """Hash of the columns, file sizes, rows, labels and 16 images, evenly spaced."""
        digest = hashlib.sha256(self._schema.remove_metadata().to_string().encode())
        paths = dict.fromkeys(group.path for group in self._groups)
        digest.update(repr([place.size(path) for path in paths]).encode())
        digest.update(repr(len(self)).encode())
        for i in spaced(len(self), 16):
            try:
                digest.update(self.read(i))
            except (Unreadable, OSError):  # listed as a bad image where it is read
                digest.update(b"\0")
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        return digest.hexdigest()[:16]

    def _find(self, i: int) -> tuple[int, int]:
        group = int(np.searchsorted(self._starts, i, side="right")) - 1
        return group, i - int(self._starts[group])


class _Recent:
    """Row groups in memory: those used last, each read once however many threads ask for it."""

    def __init__(self, groups: Sequence[Group], limit: int) -> None:
        self._groups = groups
        self._limit = limit
        self._kept: OrderedDict[int, Future[pa.ChunkedArray]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, number: int) -> pa.ChunkedArray:
        with self._lock:
            future = self._kept.get(number)
            mine = future is None
            if future is None:
                future = self._kept[number] = Future()
            self._kept.move_to_end(number)
            while len(self._kept) > 1 and self._size() > self._limit:
                self._kept.popitem(last=False)
        if mine:
            try:
                future.set_result(self._groups[number].load())
            except BaseException as error:
                with self._lock:
                    self._kept.pop(number, None)
                future.set_exception(error)
        return future.result()

    def _size(self) -> int:
        return sum(self._groups[number].size for number in self._kept)


def open_tables(paths: Sequence[str]) -> Parts:
    """Open Parquet files of images, or of paths where they have no images.

    Files whose names say train and test are those parts; else a column may say so.

    Raises:
        DataError: A file is damaged, differs from the others, or has no images.
    """
    files = [_Parquet(path) for path in paths]
    first = files[0]
    for file in files[1:]:
        if file.schema.remove_metadata() != first.schema.remove_metadata():
            raise DataError(
                f"'{file.path}' and '{first.path}' have other columns", tip="open them one by one"
            )
    if first.image is None:
        return _open_paths(files)
    words = [part_of_file(file.path) or "train" for file in files]
    names = choose(words)
    if names is not None:
        train, test = (
            _source([file for file, word in zip(files, words, strict=True) if word == name])
            for name in names
        )
        left = [word for file, word in zip(files, words, strict=True) for _ in range(file.rows)]
        return Parts(train, test, names, [*train.notes, *test.notes, *unused(left, names)])
    whole = _source(files)
    return _split_by_column(whole, files)


def _source(files: Sequence[_Parquet]) -> TableSource:
    first = files[0]
    assert first.image is not None
    schema, label = first.schema, first.label
    labels = None if label is None else [y for file in files for y in file.read(label)]
    groups = [group for file in files for group in file.groups()]
    return _checked(TableSource(groups, schema, labels, _class_names(schema, label)), first.path)


def _split_by_column(whole: TableSource, files: Sequence[_Parquet]) -> Parts:
    split = column(files[0].schema.names, SPLITS)
    words = [str(w).lower() for file in files for w in file.read(split)] if split else []
    names = choose(words)
    if names is None:
        return Parts(whole, notes=whole.notes)
    train, test = (Subset(whole, np.flatnonzero(np.array(words) == name)) for name in names)
    return Parts(train, test, names, [*whole.notes, *unused(words, names)])


def _open_paths(files: Sequence[_Parquet]) -> Parts:
    import pyarrow as pa

    schema = files[0].schema
    is_text = (pa.types.is_string, pa.types.is_large_string)
    where = column(_fields(schema, is_text), PATHS)
    if where is None:
        raise DataError(
            f"'{files[0].path}' has neither images nor paths; its columns: {_columns(schema)}",
            tip="name a column of encoded images 'image', or one of paths 'path'",
        )
    label, split = files[0].label, column(schema.names, SPLITS)
    names = _class_names(schema, label)
    lists = []
    for file in files:
        labels = None if label is None else file.read(label)
        if labels is not None and names is not None:
            labels = [names[y] if y in range(len(names)) else None for y in labels]
        splits = [str(word).lower() for word in file.read(split)] if split else None
        lists.append(Rows(file.path, [path or "" for path in file.read(where)], labels, splits))
    return open_listed(lists)


class _Parquet:
    """What the footer of a Parquet file says, and its columns."""

    def __init__(self, path: str) -> None:
        import pyarrow.parquet as pq

        self.path = path
        with _damage(path), place.open_file(path) as file:
            whole = pq.ParquetFile(file)
            self._metadata = whole.metadata
            self.schema = whole.schema_arrow
        self.rows = int(self._metadata.num_rows)
        self.image = _image_column(self.schema, path)
        self.label = _label_column(self.schema)

    def read(self, name: str) -> list[Any]:
        """All values of a column."""
        import pyarrow.parquet as pq

        with _damage(self.path), place.open_file(self.path) as file:
            values: list[Any] = pq.ParquetFile(file).read([name]).column(0).to_pylist()
        return values

    def groups(self) -> Iterator[Group]:
        """Row groups of images."""
        assert self.image is not None
        first = 0
        for k in range(self._metadata.num_row_groups):
            group = self._metadata.row_group(k)
            columns = [group.column(c) for c in range(group.num_columns)]
            size = sum(
                c.total_uncompressed_size
                for c in columns
                if c.path_in_schema.split(".")[0] == self.image
            )
            yield Group(self.path, first, group.num_rows, size, partial(self._load, k))
            first += group.num_rows

    def _load(self, k: int) -> pa.ChunkedArray:
        import pyarrow.parquet as pq

        with place.open_file(self.path) as file:  # a reader of its own: they are not thread-safe
            reader = pq.ParquetFile(file, metadata=self._metadata)
            return reader.read_row_group(k, columns=[self.image]).column(0)


def is_saved(folder: Path) -> bool:
    """Whether a directory is a data set (or several parts) of Hugging Face's ``save_to_disk``."""
    if (folder / "dataset_dict.json").is_file():
        return True
    return (folder / "state.json").is_file() and any(folder.glob("*.arrow"))


def open_saved(folder: Path) -> Parts:
    """Open a directory that ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote.

    Raises:
        DataError: It is incomplete or damaged, holds rows in an order of its own, or no images.
    """
    if not (folder / "dataset_dict.json").is_file():
        source = _arrow(folder)
        return Parts(source, notes=source.notes)
    splits = _json(folder / "dataset_dict.json").get("splits", [])
    names = choose(splits)
    if names is None and len(splits) != 1:
        raise DataError(
            f"'{folder}' has the parts {', '.join(splits)}",
            tip=f"give one of them: '{folder / splits[0]}'" if splits else "save it again",
        )
    if names is None:
        return open_saved(folder / splits[0])
    train, test = (_arrow(folder / name) for name in names)
    left = [name for name in splits if name not in names]
    notes = [f"the part {name} is not used" for name in left]
    return Parts(train, test, names, [*train.notes, *test.notes, *notes])


def _arrow(folder: Path) -> TableSource:
    import pyarrow as pa

    state = _json(folder / "state.json")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise DataError(
            f"'{folder}' keeps its rows in an order of its own",
            tip="save it again after flatten_indices()",
        )
    paths = [folder / entry["filename"] for entry in state.get("_data_files", [])]
    tables = []
    for path in paths:
        with _damage(str(path)):
            tables.append(pa.ipc.open_stream(pa.memory_map(str(path))).read_all())
    if not tables:
        raise DataError(f"'{folder}' names no data files", tip="save the data set again")
    schema = tables[0].schema
    image, label = _image_column(schema, str(folder)), _label_column(schema)
    if image is None:
        raise DataError(
            f"'{folder}' has no column of images; its columns: {_columns(schema)}",
            tip="cast the column with datasets.Image() and save it again",
        )
    groups = []
    for path, table in zip(paths, tables, strict=True):
        images = table.column(image)
        first = 0
        for chunk in images.chunks:
            groups.append(Group(str(path), first, len(chunk), 0, partial(_same, chunk)))
            first += len(chunk)
    labels = [y for table in tables for y in table.column(label).to_pylist()] if label else None
    return _checked(TableSource(groups, schema, labels, _class_names(schema, label)), str(folder))


def _same(array: Any) -> Any:
    return array


def _checked(source: TableSource, path: str) -> TableSource:
    if len(source) == 0:
        raise DataError(f"'{path}' has no rows", tip="give a table with at least one image")
    return source


def _image_column(schema: pa.Schema, path: str) -> str | None:
    """The column of encoded images; None where no column holds bytes."""
    import pyarrow as pa

    def is_bytes(kind: Any) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def is_image(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            at = kind.get_field_index("bytes")
            return at >= 0 and is_bytes(kind.field(at).type)
        return is_bytes(kind)

    found = [field.name for field in schema if is_image(field.type)]
    known = column(found, IMAGES)
    if known is None and len(found) > 1:
        raise DataError(
            f"'{path}' has several columns of bytes: {', '.join(found)}",
            tip="name that of the images 'image'",
        )
    return known or (found[0] if found else None)


def _label_column(schema: pa.Schema) -> str | None:
    import pyarrow as pa

    kinds = pa.types
    tests = (kinds.is_integer, kinds.is_string, kinds.is_large_string, kinds.is_dictionary)
    flat = _fields(schema, tests)
    known = column(flat, LABELS)
    named = [name for name in flat if _class_names(schema, name) is not None]
    return known or (named[0] if named else None)


def _class_names(schema: pa.Schema, label: str | None) -> list[str] | None:
    """Names of a label's values, where Hugging Face's metadata has them."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _fields(schema: pa.Schema, tests: Sequence[Callable[[Any], bool]]) -> list[str]:
    """Names of the columns whose type passes one of the tests."""
    return [field.name for field in schema if any(test(field.type) for test in tests)]


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read '{path}': {error}", tip="save the data set again") from None
    return content if isinstance(content, dict) else {}


@contextmanager
def _damage(path: str) -> Iterator[None]:
    """Turn Arrow's errors on opening a file into one that names it."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        first = str(error).split("\n")[0]
        raise DataError(f"cannot read '{path}': {first}", tip="is the file complete?") from None
