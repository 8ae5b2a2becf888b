"""Image files in folders and archives, and those that a list names."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from selfsame.data import place
from selfsame.data.archive import Archive, is_archive, open_archives
from selfsame.data.order import spaced
from selfsame.data.parts import Numbered, Parts, choose, number, part_of_file, unused
from selfsame.data.place import Found
from selfsame.errors import DataError, Unreadable

IMAGE_EXTENSIONS = frozenset(
    f".{extension}"
    for extension in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "avif", "avifs", "gif"),
        *("bmp", "dib", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "pfm", "jp2", "j2k", "j2c"),
        *("jpx", "jpc", "ico", "psd", "qoi", "pcx", "sgi", "tga"),
    )
)


class Store(Protocol):
    """Files that are read by number; safe to read from several threads."""

    def read(self, k: int) -> bytes:
        """Bytes of file ``k``."""

    def size(self, k: int) -> int:
        """Its length; -1 where it is missing."""

    def label(self, k: int) -> str | None:
        """Its label, where the store knows one."""


class Paths:
    """Files by their paths or URLs below a folder, or by complete ones."""

    def __init__(self, root: str, names: Sequence[str], sizes: Sequence[int] = ()) -> None:
        self.root = root
        self.names = names
        self._sizes = sizes

    def read(self, k: int) -> bytes:
        """Bytes of file ``k``."""
        return place.read(place.join(self.root, self.names[k]))

    def size(self, k: int) -> int:
        """Its length; -1 where it is missing."""
        known = self._sizes[k] if self._sizes else -1
        return place.size(place.join(self.root, self.names[k])) if known < 0 else known

    def label(self, k: int) -> str | None:
        """None: the names of folders are the labels."""
        return None


class FileSource:
    """Encoded image files of any stores, in the given order.

    ``files`` are a store and a number in it for each name; ``values`` the labels as found.
    """

    def __init__(
        self,
        names: Sequence[str],
        files: Sequence[tuple[Store, int]],
        numbered: Numbered | None = None,
    ) -> None:
        self.names = names
        self.files = files
        self._fingerprint: str | None = None
        self.labels: np.ndarray | None = None
        self.classes: Sequence[str] | None = None
        if numbered is not None:
            self.labels, self.classes = numbered.labels, numbered.classes

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        """Path below the folder or in the archive, with forward slashes."""
        return self.names[i]

    def read(self, i: int) -> bytes:
        """The file's bytes."""
        store, k = self.files[i]
        return store.read(k)

    def fingerprint(self) -> str:
        """Hash of names, sizes, labels and 16 images, evenly spaced.

        The same for a folder, wherever it is, and its tar. Names and sizes alone would not tell the
        train part from the test part of images that are all of one size, such as BMP.
        """
        if self._fingerprint is not None:
            return self._fingerprint  # of many files, looking up their sizes takes a while
        digest = hashlib.sha256()
        for i, (name, (store, k)) in enumerate(zip(self.names, self.files, strict=True)):
            line = f"{name}\0{store.size(k)}\n"
            if self.labels is not None and self.classes is not None:
                label = self.classes[self.labels[i]]
                line += "" if f"{label}/" in name else f"{label}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        for i in spaced(len(self), 16):
            try:
                digest.update(self.read(i))
            except (Unreadable, OSError):  # listed as a bad image where it is read
                digest.update(b"\0")
        self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint


class Row(NamedTuple):
    """A file of an input, image or not."""

    prefix: str  # in front of its name, to tell it from those of other inputs
    inside: str  # its name, whose first folder may be its part or its class
    store: Store
    k: int


def is_image(name: str) -> bool:
    """Whether a file is an image by the end of its name."""
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def folder_rows(path: str, below: Mapping[str, int], title: str = "", mark: str = "") -> list[Row]:
    """Rows of a folder's files, named below ``title``."""
    store = Paths(path, list(below), list(below.values()))
    return [Row(mark, f"{title}{name}", store, k) for k, name in enumerate(below)]


def open_files(found: Sequence[Found]) -> Parts:
    """Open folders (searched to any depth), archives and single image files as one source.

    One path names its images by their path inside it; several put their own names in front, and
    their position before names that are the same.

    Raises:
        DataError: A path is not an image, an archive is damaged, or there is no image at all.
    """
    several = len(found) > 1
    titles = [name or _base(path) for path, name in found]
    counts = Counter(titles)
    folders = {path for path, _ in found if _is_folder(path)}
    packed = [path for path, _ in found if is_archive(path) and path not in folders]
    archives = dict(zip(packed, open_archives(packed), strict=True))
    loose: list[str] = []
    single = Paths("", loose)
    rows: list[Row] = []
    for k, ((path, name), title) in enumerate(zip(found, titles, strict=True)):
        mark = f"{k}-" if counts[title] > 1 else ""
        if path in folders:
            below = place.files_below(path)
            rows += folder_rows(path, below, f"{title}/" if several else "", mark)
        elif path in archives:
            archive, prefix = archives[path], f"{mark}{title}/" if several else ""
            rows += [Row(prefix, inside, archive, j) for j, inside in enumerate(archive.names)]
        elif is_image(path) or name:  # what else a pattern matches is counted
            rows.append(Row(mark, title, single, len(loose)))
            loose.append(path)
        else:
            unpacked, end = os.path.splitext(path)
            if end.lower() in (".gz", ".bz2", ".xz", ".zst"):
                raise DataError(
                    f"'{path}' is compressed", tip=f"decompress it once, and give '{unpacked}'"
                )
            raise DataError(
                f"'{path}' is not an image file",
                tip=f"image files end in {', '.join(sorted(IMAGE_EXTENSIONS))}; arrays in .npy, "
                ".npz; archives in .tar, .zip; tables in .parquet; lists in .csv, .tsv, .txt",
            )
    return open_rows(rows, [path for path, _ in found])


def open_rows(rows: Sequence[Row], paths: Sequence[str]) -> Parts:
    """Make a source of the images among ``rows``, or two where their names say train and test.

    Raises:
        DataError: There is no image; ``paths`` are named in the message.
    """
    stores = {id(row.store): row.store for row in rows}.values()
    archives = [store for store in stores if isinstance(store, Archive)]
    used = {extension for archive in archives for extension in archive.used}
    images = [row for row in rows if is_image(row.inside)]
    images.sort(key=lambda row: row.prefix + row.inside)
    others = Counter(_extension(row.inside) for row in rows if not is_image(row.inside))
    where = f"'{paths[0]}'" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    if not images:
        raise DataError(f"no image in {where}: {_found(others)}", tip=_no_image_tip(others))
    notes = [note for archive in archives for note in archive.notes]
    ranked = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    if ignored := [f"{n} {kind}" for kind, n in ranked if kind not in used]:
        more = f" and {len(ignored) - 5} more kinds" if len(ignored) > 5 else ""
        notes.append(f"other files ignored: {', '.join(ignored[:5])}{more}")
    names, titles, words = _divide(rows, images, archives)
    if names is None:
        source, more_notes = _source(images)
        return Parts(source, notes=[*notes, *more_notes])
    sources = []
    for name, title in zip(names, titles, strict=True):
        chosen = [row for row, word in zip(images, words, strict=True) if word == name]
        if not chosen:
            raise DataError(f"no image in {title} of {where}", tip="add some, or rename it")
        source, more_notes = _source([_without(name, row) for row in chosen])
        sources.append(source)
        notes += more_notes
    return Parts(sources[0], sources[1], titles, [*notes, *unused(words, names)])


def _divide(
    rows: Sequence[Row], images: Sequence[Row], archives: Sequence[Archive]
) -> tuple[tuple[str, str] | None, tuple[str, str], list[str | None]]:
    """The parts, their titles and the part of each image, by top folders or names of shards.

    What is given beside them and says nothing of parts is for training.
    """
    names = choose(_top(row.inside) for row in rows)
    if names is not None:
        divided = {id(row.store) for row in rows if _top(row.inside) in names}
        words = [_top(row.inside) if id(row.store) in divided else names[0] for row in images]
        return names, (f"{names[0]}/", f"{names[1]}/"), words
    if all(isinstance(row.store, Archive) for row in images):
        by_store = {id(archive): part_of_file(archive.path) for archive in archives}
        names = choose(by_store.values())
        if names is not None:
            return names, names, [by_store[id(row.store)] or names[0] for row in images]
    return None, ("", ""), []


def _source(rows: Sequence[Row]) -> tuple[FileSource, Sequence[str]]:
    numbered = number(_labels(rows))
    names, files = [row.prefix + row.inside for row in rows], [(row.store, row.k) for row in rows]
    return FileSource(names, files, numbered), numbered.notes


def _without(part: str, row: Row) -> Row:
    top, _, rest = row.inside.partition("/")
    return row._replace(inside=rest) if top == part and rest else row


def _labels(rows: Sequence[Row]) -> list[str | None] | None:
    """What lies beside the images in their archive, else the top folder of each."""
    labels = [row.store.label(row.k) for row in rows]
    if any(label is not None for label in labels):
        return labels
    tops = [_top(row.inside) for row in rows]
    return tops if None not in tops and len(set(tops)) >= 2 else None


def _top(name: str) -> str | None:
    top, slash, _ = name.partition("/")
    return top if slash else None


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "(none)"


def _base(path: str) -> str:
    if place.is_url(path):
        return path.rstrip("/").rpartition("/")[2]
    return os.path.basename(os.path.realpath(path) if os.path.isdir(path) else path)


def _is_folder(path: str) -> bool:
    """As ``place.is_folder``, without a request for each of many files."""
    if place.is_url(path) and (is_image(path) or is_archive(path)):
        return False
    return place.is_folder(path)


def _found(others: Counter[str]) -> str:
    total = sum(others.values())
    if total == 0:
        return "it is empty"
    what = "1 file, which is not an image" if total == 1 else f"{total} files, none is an image"
    seen = ", ".join(f"{extension} ({count})" for extension, count in others.most_common(8))
    return f"found {what}; extensions seen: {seen}"


def _no_image_tip(others: Counter[str]) -> str:
    if others.keys() & {".heic", ".heif"}:
        return "HEIC is not supported: convert the files to JPEG or PNG first"
    if others.keys() & {".7z", ".rar", ".gz", ".tgz", ".xz", ".zst"}:
        return "unpack the archives and give the folder"
    return (
        "give images (JPEG, PNG, WebP, TIFF, ...) in a folder, .tar or .zip; "
        "an .npy or .npz file; .parquet; or a list of paths"
    )
