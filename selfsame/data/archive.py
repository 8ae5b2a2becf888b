"""Files in tar and zip archives: indexed once, then read by position from any thread.

Tar: POSIX ustar and pax, GNU and old V7 headers, as POSIX.1-2017 (pax) and the GNU tar manual
describe them. In a WebDataset the files of one sample share their name up to its first dot, and
the label is in ``.cls`` or under a known key of ``.json``.
Zip: stored and deflated members.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from selfsame.data import place
from selfsame.data.parts import LABELS, column
from selfsame.errors import DataError, Unreadable

ARCHIVES = (".tar", ".zip")
COMPRESSED = tuple(
    f"{tar}{end}"
    for tar, ends in ((".tar", (".gz", ".bz2", ".xz", ".zst", ".lz4")), (".t", ("gz", "xz", "bz2")))
    for end in ends
)
MAX_MEMBER = 2**29  # bytes that a zip member may say it has: more than any picture that is decoded

_BLOCK = 512
_MAX_EXTENSION = 2**20  # bytes of a long name or a pax header
_MAX_SIDECAR = 2**16  # bytes of a file with a label
_MAGIC = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"(\xb5/\xfd": "unzstd",
    b'\x04"M\x18': "unlz4",
}


class Archive:
    """Members of an archive: ``names`` as they lie, without folders and hidden files."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.names: list[str] = []
        self.notes: list[str] = []
        self.used: set[str] = set()  # extensions of the files that gave labels

    def read(self, k: int) -> bytes:
        """Bytes of member ``k``."""
        raise NotImplementedError

    def size(self, k: int) -> int:
        """Length of member ``k`` in bytes."""
        raise NotImplementedError

    def label(self, k: int) -> str | None:
        """What the files beside member ``k`` say of it."""
        return None


class Tar(Archive):
    """An uncompressed tar archive."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._spans: list[tuple[int, int]] = []  # start and length of each member
        self._labels: dict[str, dict[str, str]] = {"cls": {}, "json": {}}
        try:
            with place.open_file(path) as file:
                _refuse_compressed(path, file.read(8))
                damage, links = self._index(file, file.seek(0, os.SEEK_END))
        except (OSError, ValueError) as error:
            raise DataError(
                f"cannot read '{path}': {error}", tip="can it be read from any position?"
            ) from None
        if damage and not self.names:
            raise DataError(
                f"'{path}' is not a tar archive, or damaged from its start: {damage}",
                tip="make or copy it again; tar -tf lists a healthy one",
            )
        if damage:
            self.notes.append(
                f"'{path}' {damage}: only the {len(self.names)} files before are used"
            )
        if links:
            self.notes.append(f"links in '{path}' that are not followed: {links}")
        latest = {name: k for k, name in enumerate(self.names)}
        if len(latest) < len(self.names):  # as when it is unpacked
            self.notes.append(_replaced(path, len(self.names) - len(latest)))
            self._spans = [self._spans[k] for k in latest.values()]
            self.names = list(latest)
        for extension, found in self._labels.items():
            if found:
                self.used.add(f".{extension}")

    def read(self, k: int) -> bytes:
        """Bytes of member ``k``."""
        return place.read(self.path, *self._spans[k])

    def size(self, k: int) -> int:
        """Length of member ``k`` in bytes."""
        return self._spans[k][1]

    def label(self, k: int) -> str | None:
        """Content of its ``.cls`` file, or the label in its ``.json`` file."""
        if not self.used:
            return None
        key = _key(self.names[k])
        return self._labels["cls"].get(key, self._labels["json"].get(key))

    def _index(self, file: BinaryIO, total: int) -> tuple[str, int]:
        """Read all headers; say what is damaged, "" where nothing is, and count the links."""
        at, links = 0, 0
        extended: dict[str, str] = {}  # for the next member
        always: dict[str, str] = {}
        while True:
            file.seek(at)
            header = file.read(_BLOCK)
            if len(header) < _BLOCK:
                return f"has no end mark and may be cut off at byte {total}", links
            if not any(header):
                return "", links
            kind = header[156:157]
            try:
                size = _number(header[124:136])
                checksum = _number(header[148:156])
            except ValueError:
                size, checksum = 0, -1
            if checksum != sum(header) - sum(header[148:156]) + 8 * ord(" "):
                return f"is damaged at byte {at}", links
            fields = {**always, **extended}
            if kind not in b"LKxg" and "size" in fields:
                size = int(fields["size"])
            if at + _BLOCK + size > total:
                return f"is cut off at byte {total}", links
            if kind in b"LKxg" and kind:
                if size > _MAX_EXTENSION:
                    return f"is damaged at byte {at}", links
                content = file.read(size)
                if kind == b"L":
                    extended["path"] = _text(content.rstrip(b"\0"))
                elif kind != b"K":
                    (extended if kind == b"x" else always).update(_pax(content))
            else:
                name = fields.get("path") or _name(header)
                if kind == b"S" or any(key.startswith("GNU.sparse") for key in fields):
                    raise DataError(
                        f"'{self.path}' holds sparse files", tip="make it without tar --sparse"
                    )
                if kind in b"12" and kind:
                    links += 1
                elif kind in b"\x0007" and kind and not name.endswith("/"):
                    self._add(file, name, at + _BLOCK, size)
                extended = {}
            at += _BLOCK + -(-size // _BLOCK) * _BLOCK

    def _add(self, file: BinaryIO, name: str, start: int, size: int) -> None:
        name = name.removeprefix("./").lstrip("/")
        if place.hidden(name):
            return
        self.names.append(name)
        self._spans.append((start, size))
        extension = name.rpartition(".")[2].lower()
        if extension in self._labels and size <= _MAX_SIDECAR:
            label = _label(extension, file.read(size))
            if label is not None:
                self._labels[extension][_key(name)] = label


class Zip(Archive):
    """A zip archive."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        try:
            with place.open_file(path) as file, zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
                stop = archive.start_dir
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise DataError(
                f"cannot read '{path}': {error}",
                tip="copy it again; unzip -t tests one, and its list of files is at its end",
            ) from None
        starts = sorted({info.header_offset for info in infos})
        ends = dict(zip(starts, [*starts[1:], stop], strict=True))
        shown = [info for info in infos if not info.is_dir() and not place.hidden(info.filename)]
        latest = {info.filename: info for info in shown}
        if len(latest) < len(shown):
            self.notes.append(_replaced(path, len(shown) - len(latest)))
        self.names = list(latest)
        self._infos = list(latest.values())
        self._spans = [
            (info.header_offset, max(0, ends[info.header_offset] - info.header_offset))
            for info in self._infos
        ]

    def read(self, k: int) -> bytes:
        """Bytes of member ``k``, inflated and checked.

        Raises:
            Unreadable: It is encrypted, damaged, or says that it is too large.
        """
        info = self._infos[k]
        if info.flag_bits & 1:
            raise Unreadable("encrypted")
        if info.file_size > MAX_MEMBER:
            raise Unreadable(f"{info.file_size} bytes, more than the limit of {MAX_MEMBER}")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Unreadable(f"zip compression {info.compress_type}; only deflate is supported")
        raw = place.read(self.path, *self._spans[k])
        start = 30 + int.from_bytes(raw[26:28], "little") + int.from_bytes(raw[28:30], "little")
        data = raw[start : start + info.compress_size]
        try:
            if info.compress_type == zipfile.ZIP_DEFLATED:
                # Never more than it says, so that a bomb stays small.
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, info.file_size + 1)
        except zlib.error:
            data = b""
        if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
            raise Unreadable("damaged in the zip archive")
        return data

    def size(self, k: int) -> int:
        """Length of member ``k`` in bytes, inflated."""
        return self._infos[k].file_size


def is_archive(path: str) -> bool:
    """Whether a path is that of an archive, compressed ones included, by its name."""
    return path.lower().endswith(ARCHIVES + COMPRESSED)


def open_archives(paths: Sequence[str]) -> list[Archive]:
    """Open archives, several at once.

    Raises:
        DataError: One is compressed as a whole, or damaged from its start.
    """
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(_open, paths))


def _open(path: str) -> Archive:
    if path.lower().endswith(COMPRESSED):
        with place.open_file(path) as file:
            _refuse_compressed(path, file.read(8))
    return Zip(path) if path.lower().endswith(".zip") else Tar(path)


def _replaced(path: str, count: int) -> str:
    return f"files in '{path}' that later ones of the same name replace: {count}"


def _refuse_compressed(path: str, start: bytes) -> None:
    tool = next((tool for magic, tool in _MAGIC.items() if start.startswith(magic)), None)
    if tool is not None:
        raise DataError(
            f"'{path}' is a compressed archive: one image cannot be read without all before it",
            tip=f"decompress it once: {tool} '{path}', and give the .tar",
        )


def _number(field: bytes) -> int:
    """A number in a header: octal digits, or binary where its first bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _name(header: bytes) -> str:
    name = _text(header[:100].partition(b"\0")[0])
    prefix = _text(header[345:500].partition(b"\0")[0])
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _pax(content: bytes) -> dict[str, str]:
    """Fields of a pax header: lines LENGTH KEY=VALUE, where LENGTH is that of the line."""
    fields = {}
    while content:
        length, _, _ = content.partition(b" ")
        record = content[: int(length)] if length.isdigit() else b""
        key, equals, value = record[len(length) + 1 : -1].partition(b"=")
        if not equals:
            break
        fields[_text(key)] = _text(value)
        content = content[int(length) :]
    return fields


def _key(name: str) -> str:
    """What the files of one sample share: the name up to the first dot."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


def _label(extension: str, content: bytes) -> str | None:
    text = content.decode("utf-8", "replace").strip()
    if extension == "cls":
        return text or None
    try:
        record = json.loads(text)
    except ValueError:
        return None
    key = column(record, LABELS) if isinstance(record, dict) else None
    value = None if key is None else record[key]
    return str(value) if isinstance(value, str | int) else None
