"""Image files in folders."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from selfsame.errors import DataError, nearest

IMAGE_EXTENSIONS = frozenset(
    f".{extension}"
    for extension in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "avif", "avifs", "gif"),
        *("bmp", "dib", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "pfm", "jp2", "j2k", "j2c"),
        *("jpx", "jpc", "ico", "psd", "qoi", "pcx", "sgi", "tga"),
    )
)


class FolderSource:
    """Image files, named by their path below the folder and sorted by that name.

    ``others`` counts the files that are not images, by extension. Where every image lies in one
    of at least two top-level subdirectories, those are the classes.
    """

    def __init__(self, files: Mapping[str, str], others: Mapping[str, int]) -> None:
        self.names = sorted(files)
        self.paths = [files[name] for name in self.names]
        self.others = dict(others)
        self.labels: np.ndarray | None = None
        self.classes: Sequence[str] | None = None
        tops = [name.split("/", 1)[0] for name in self.names if "/" in name]
        classes = sorted(set(tops))
        if len(classes) >= 2 and len(tops) == len(self.names):
            number = {name: k for k, name in enumerate(classes)}
            self.labels = np.array([number[top] for top in tops], np.int64)
            self.classes = classes

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        """Path below the folder, with forward slashes."""
        return self.names[i]

    def read(self, i: int) -> bytes:
        """The file's bytes."""
        with open(self.paths[i], "rb") as file:
            return file.read()

    def fingerprint(self) -> str:
        """Hash of names and file sizes; the same wherever the folder lies."""
        digest = hashlib.sha256()
        for name, path in zip(self.names, self.paths, strict=True):
            size = os.stat(path).st_size if os.path.exists(path) else -1
            digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]


def open_files(paths: Sequence[Path]) -> FolderSource:
    """Open directories (searched to any depth) and single image files as one source.

    One directory names its images by their path inside it; several put their own names in front.

    Raises:
        DataError: A path is missing or not an image, or there is no image at all.
    """
    files: dict[str, str] = {}
    others: Counter[str] = Counter()
    bases = [path.resolve().name for path in paths]
    for k, (path, base) in enumerate(zip(paths, bases, strict=True)):
        require(path)
        if bases.count(base) > 1:
            base = f"{k}-{base}"
        if path.is_dir():
            prefix = f"{base}/" if len(paths) > 1 else ""
            for name in _walk(str(path), "", ()):
                extension = os.path.splitext(name)[1].lower()
                if extension in IMAGE_EXTENSIONS:
                    files[prefix + name] = os.path.join(path, name)
                else:
                    others[extension or "(none)"] += 1
        elif path.suffix.lower() in IMAGE_EXTENSIONS:
            files[base] = str(path)
        else:
            raise DataError(
                f"'{path}' is not an image file",
                tip=f"image files end in {', '.join(sorted(IMAGE_EXTENSIONS))}; "
                "arrays in .npy or .npz",
            )
    if not files:
        where = ", ".join(f"'{path}'" for path in paths)
        raise DataError(f"no image in {where}: {_found(others)}", tip=_no_image_tip(others))
    return FolderSource(files, others)


def require(path: Path) -> None:
    """Check that a path exists.

    Raises:
        DataError: It does not; the tip names its nearest sibling.
    """
    if path.exists():
        return
    parent = path.parent
    if not parent.is_dir():
        tip = f"the folder '{parent}' does not exist either"
    elif close := nearest(path.name, os.listdir(parent)):
        tip = f"did you mean '{path.with_name(close)}'?"
    else:
        tip = f"nothing in '{parent}' has a similar name"
    raise DataError(f"'{path}' does not exist", tip=tip)


def _walk(root: str, inside: str, above: tuple[str, ...]) -> Iterator[str]:
    """Yield names of files below ``root`` without hidden ones; never enter a folder in itself."""
    here = os.path.realpath(os.path.join(root, inside))
    if here in above:
        return
    try:
        entries = list(os.scandir(here))
    except OSError as error:
        raise DataError(
            f"cannot list the folder '{os.path.join(root, inside)}': {error.strerror}",
            tip="check its permissions, or move it out of the data folder",
        ) from None
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        name = f"{inside}/{entry.name}" if inside else entry.name
        if entry.is_dir():
            yield from _walk(root, name, (*above, here))
        else:
            yield name


def _found(others: Counter[str]) -> str:
    total = sum(others.values())
    if total == 0:
        return "the folder is empty"
    what = "1 file, which is not an image" if total == 1 else f"{total} files, none is an image"
    seen = ", ".join(f"{extension} ({count})" for extension, count in others.most_common(8))
    return f"found {what}; extensions seen: {seen}"


def _no_image_tip(others: Counter[str]) -> str:
    if others.keys() & {".heic", ".heif"}:
        return "HEIC is not supported: convert the files to JPEG or PNG first"
    if others.keys() & {".tar", ".zip", ".gz", ".tgz"}:
        return "unpack the archive and give the folder"
    return "give a folder with images (JPEG, PNG, WebP, TIFF, ...), or an .npy or .npz file"
