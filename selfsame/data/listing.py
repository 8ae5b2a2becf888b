"""Lists of paths: .csv and .tsv tables, .txt with a path a line, Parquet with a column of paths.

Columns are found by name, whatever its case: the path by one of ``parts.PATHS``, the label by
``parts.LABELS`` and the part (train, test, val ...) by ``parts.SPLITS``. A table without known
names has no header: its paths are the column of image files, its labels the one other column.
Paths are relative to the folder of their list, complete, or URLs.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from selfsame.data import place
from selfsame.data.folder import FileSource, Paths, is_image
from selfsame.data.parts import (
    LABELS,
    PATHS,
    SPLITS,
    Parts,
    choose,
    column,
    number,
    part_of_file,
    unused,
)
from selfsame.errors import DataError

LISTS = (".csv", ".tsv", ".txt")
LOOKED_AT = 16  # files that are looked for when a list is opened, evenly spaced

_LABELLED_LINE = re.compile(r"(.*\.\w+)\s+(\d+)")  # "PATH LABEL", as ImageNet's val.txt has it


class Rows(NamedTuple):
    """A list as it was read."""

    list: str  # path of the list
    paths: Sequence[str]
    labels: Sequence[Any] | None = None
    splits: Sequence[str | None] | None = None


def open_lists(paths: Sequence[str]) -> Parts:
    """Open one or several lists of paths.

    Raises:
        DataError: A list cannot be read or has no paths, or its files are not where it says.
    """
    return open_listed([(_text if p.lower().endswith(".txt") else _table)(p) for p in paths])


def open_listed(lists: Sequence[Rows]) -> Parts:
    """Make a source of lists that were read, or two where a column or their names say so."""
    names = [name for rows in lists for name in rows.paths]
    files = []
    for rows in lists:
        if not rows.paths:
            raise DataError(f"'{rows.list}' names no image", tip="write one row an image")
        store = Paths(place.parent(rows.list), rows.paths)
        _look(rows, store)
        files += [(store, k) for k in range(len(rows.paths))]
    labels = [y for rows in lists for y in (rows.labels or [None] * len(rows.paths))]
    words = [w for rows in lists for w in (rows.splits or [None] * len(rows.paths))]
    parts = choose(words)
    if parts is None:
        words = [part_of_file(rows.list) or "train" for rows in lists for _ in rows.paths]
        parts = choose(words)
    sources, notes = [], [] if parts is None else unused(words, parts)
    for part in parts or (None,):
        chosen = [i for i in range(len(names)) if part is None or words[i] == part]
        numbered = number([labels[i] for i in chosen])
        notes += numbered.notes
        sources.append(FileSource([names[i] for i in chosen], [files[i] for i in chosen], numbered))
    return Parts(sources[0], sources[1] if parts else None, parts or ("", ""), notes)


def _look(rows: Rows, store: Paths) -> None:
    """Check that some of the files are there."""
    looked = rows.paths[:: max(1, len(rows.paths) // LOOKED_AT)]
    if any(place.exists(place.join(store.root, name)) for name in looked):
        return
    name = looked[0]
    above = [place.parent(store.root), os.curdir]
    at = next((root for root in above if place.exists(place.join(root, name))), None)
    raise DataError(
        f"'{rows.list}' names '{name}', which is not in '{store.root}', "
        "nor is any other that was looked for",
        tip=f"it is in '{at}': move the list there"
        if at
        else "paths are relative to the list's folder, or complete",
    )


def _text(path: str) -> Rows:
    lines = [line.strip() for line in _read(path).splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        raise DataError(f"'{path}' is empty", tip="write one path a line")
    matches = [_LABELLED_LINE.fullmatch(line) for line in lines]
    if all(match and is_image(match[1]) for match in matches):
        return Rows(path, [m[1] for m in matches if m], [m[2] for m in matches if m])
    return Rows(path, lines)


def _table(path: str) -> Rows:
    text = _read(path)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        table = [row for row in reader if row]
    except csv.Error as error:
        raise DataError(f"cannot read '{path}': {error}", tip="save it as plain text") from None
    if not table:
        raise DataError(f"'{path}' is empty", tip="write a header and one row an image")
    header, *body = table
    uneven = next((k for k, row in enumerate(table) if len(row) != len(header)), None)
    if uneven is not None:
        raise DataError(
            f"row {uneven + 1} of '{path}' has {len(table[uneven])} cells, "
            f"the first has {len(header)}",
            tip="put quotes around cells that hold the delimiter",
        )
    columns = {name: [row[k] for row in body] for k, name in enumerate(header)}
    where = column(columns, PATHS)
    if where is None:
        return _without_header(path, table)
    label, split = column(columns, LABELS), column(columns, SPLITS)
    return Rows(
        path,
        columns[where],
        [name.strip() for name in columns[label]] if label else None,
        [word.strip().lower() for word in columns[split]] if split else None,
    )


def _without_header(path: str, table: Sequence[Sequence[str]]) -> Rows:
    at = next((k for k, cell in enumerate(table[0]) if is_image(cell)), None)
    if at is None:
        raise DataError(
            f"'{path}' has no column of paths; its columns: {', '.join(table[0])}",
            tip=f"name it {', '.join(PATHS[:6])}, ... in the first row",
        )
    columns = list(zip(*table, strict=True))
    return Rows(path, columns[at], columns[1 - at] if len(columns) == 2 else None)


def _read(path: str) -> str:
    try:
        return place.read(path).decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise DataError(
            f"cannot read '{path}': {error.strerror or error}", tip="check its permissions"
        ) from None
