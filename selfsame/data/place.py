"""Files by path or URL: reading, listing, and the patterns that name many of them at once.

A URL (``s3://``, ``https://``, ``memory://``, ``file://`` ...) is read through fsspec, which local
paths never import.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

from selfsame.errors import DataError, UsageError, nearest

T = TypeVar("T")

MAX_BRACES = 100_000  # paths that one pattern may stand for

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://")
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_WILD = re.compile(r"[*?\[]")
_WILD_URL = re.compile(r"[*\[]")  # what follows a ? is a query


class Found(NamedTuple):
    """A path that was given, or that a pattern stands for."""

    path: str
    name: str | None = None  # below the fixed part of the pattern, with forward slashes


def is_url(path: str) -> bool:
    """Whether a path is a URL."""
    return _URL.match(path) is not None


def absolute(data: Any) -> list[str] | None:
    """Paths and URLs of what ``open_source`` takes, to be found again; None for what is in memory.

    A pattern stays one.
    """
    several = data if isinstance(data, list | tuple) else [data]
    if not all(isinstance(path, str | os.PathLike) for path in several):
        return None
    texts = [os.fspath(path) for path in several]
    return [t if is_url(t) else os.path.abspath(os.path.expanduser(t)) for t in texts]


def find(spec: str) -> list[Found]:
    """The paths that a path, a URL or a pattern stands for, in order.

    ``{000..015}`` and ``{a,b}`` are expanded first, then ``*``, ``?``, ``[abc]`` and ``**``. A
    path that exists is taken by its letters.

    Raises:
        DataError: A path is missing, or nothing matches a pattern.
        UsageError: A URL that cannot be read here, or braces that stand for too many paths.
    """
    if not is_url(spec) and os.path.exists(spec):
        return [Found(spec)]
    found = []
    starts = [match.start() for match in (_BRACES.search(spec), _wild(spec)) if match]
    base = spec[: spec.replace(os.sep, "/").rfind("/", 0, min(starts, default=0)) + 1]
    for path in _expanded(spec):
        if _wild(path) and (is_url(path) or not os.path.exists(path)):
            found += _matching(path.replace(os.sep, "/"), base.replace(os.sep, "/"))
        else:
            require(path)
            found.append(Found(path))
    return found


def require(path: str) -> None:
    """Check that a path or URL exists.

    Raises:
        DataError: It does not; the tip names the nearest sibling of a path.
    """
    if exists(path):
        return
    if is_url(path):
        raise DataError(f"'{path}' does not exist", tip="check its spelling and your access")
    folder, base = os.path.split(os.path.normpath(path))
    folder = folder or os.curdir
    if not os.path.isdir(folder):
        tip = f"the folder '{folder}' does not exist either"
    elif close := nearest(base, os.listdir(folder)):
        tip = f"did you mean '{os.path.normpath(os.path.join(folder, close))}'?"
    else:
        tip = f"nothing in '{folder}' has a similar name"
    raise DataError(f"'{path}' does not exist", tip=tip)


def exists(path: str) -> bool:
    """Whether there is a file or folder at a path or URL."""
    if is_url(path):
        return bool(_ask(path, lambda system, inner: system.exists(inner)))
    return os.path.exists(path)


def is_folder(path: str) -> bool:
    """Whether a path or URL is that of a folder."""
    if is_url(path):
        return bool(_ask(path, lambda system, inner: system.isdir(inner)))
    return os.path.isdir(path)


def join(root: str, name: str) -> str:
    """The path or URL of a name below ``root``; a name that is complete by itself stays."""
    if is_url(name) or not is_url(root):
        return name if is_url(name) else os.path.join(root, name)
    return f"{root.rstrip('/')}/{name}"


def parent(path: str) -> str:
    """The folder that a file lies in."""
    if is_url(path):
        return path.rpartition("/")[0]
    return os.path.dirname(path) or os.curdir


def hidden(name: str) -> bool:
    """Whether a name below a folder or in an archive is one that systems hide."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def files_below(root: str) -> dict[str, int]:
    """Names of the files below a folder without hidden ones, each with its size in bytes.

    The size is -1 where it was not asked for (local files).

    Raises:
        DataError: A folder cannot be listed.
    """
    if not is_url(root):
        return dict.fromkeys(_walk(root, "", ()), -1)
    start = len(_remote(root)[1].rstrip("/"))
    entries = _ask(root, lambda system, inner: system.find(inner, detail=True))
    names = {path[start:].strip("/"): info.get("size") for path, info in entries.items()}
    return {
        name: -1 if size is None else int(size) for name, size in names.items() if not hidden(name)
    }


def size(path: str) -> int:
    """Length of a file in bytes; -1 where it is missing."""
    try:
        if is_url(path):
            system, inner = _remote(path)
            known = system.size(inner)
            return -1 if known is None else int(known)
        return os.stat(path).st_size
    except OSError:
        return -1


def read(path: str, start: int = 0, length: int | None = None) -> bytes:
    """All bytes of a file, or exactly ``length`` of them from ``start``.

    Raises:
        OSError: It cannot be read, or ends before.
    """
    if is_url(path):
        system, inner = _remote(path)
        stop = None if length is None else start + length
        data = cast(bytes, system.cat_file(inner, start=start or None, end=stop))
    else:
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read(-1 if length is None else length)
    if length is not None and len(data) != length:  # a web server may ignore the range
        raise OSError(f"{len(data)} bytes at {start} instead of {length}")
    return data


def open_file(path: str) -> BinaryIO:
    """Open a file for reading and seeking.

    Raises:
        DataError: It cannot be opened.
    """
    try:
        if is_url(path):
            return cast(BinaryIO, _ask(path, lambda system, inner: system.open(inner, "rb")))
        return open(path, "rb")
    except OSError as error:
        raise DataError(
            f"cannot open '{path}': {error.strerror or error}", tip="check its permissions"
        ) from None


def _wild(path: str) -> re.Match[str] | None:
    return (_WILD_URL if is_url(path) else _WILD).search(path)


def _expanded(text: str) -> list[str]:
    """Replace the first braces by each of their values, then those that remain."""
    match = _BRACES.search(text)
    if match is None:
        return [text]
    first, last, words = match.groups()
    if words is not None:
        values = words.split(",")
    else:
        if abs(int(last) - int(first)) >= MAX_BRACES:
            raise UsageError(
                f"'{match[0]}' stands for more than {MAX_BRACES} paths", tip="give a folder"
            )
        step = 1 if int(first) <= int(last) else -1
        values = [str(n).zfill(len(first)) for n in range(int(first), int(last) + step, step)]
    tails = _expanded(text[match.end() :])
    if len(values) * len(tails) > MAX_BRACES:
        raise UsageError(f"'{text}' stands for more than {MAX_BRACES} paths", tip="give a folder")
    return [f"{text[: match.start()]}{value}{tail}" for value in values for tail in tails]


def _matching(pattern: str, base: str) -> list[Found]:
    """What a pattern with wildcards matches, named from ``base``, with which it begins."""
    if is_url(pattern):
        found = _ask(pattern, lambda system, inner: _remote_glob(system, inner, base))
    else:
        paths = sorted(path.replace(os.sep, "/") for path in glob.glob(pattern, recursive=True))
        found = [Found(path, path[len(base) :].rstrip("/")) for path in paths]
    if "**" in pattern:  # matches folders and what is in them
        found = [match for match in found if not is_folder(match.path)]
    if not found:
        where = f"'{base}'" if base else "the working directory"
        raise DataError(f"nothing matches '{pattern}'", tip=f"look at what is in {where}")
    return found


def _remote_glob(system: Any, pattern: str, base: str) -> list[Found]:
    start = len(_remote(base)[1].rstrip("/"))
    paths = sorted(system.glob(pattern))
    return [Found(system.unstrip_protocol(path), path[start:].strip("/")) for path in paths]


def _remote(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and its path there."""
    try:
        import fsspec
    except ImportError:
        raise UsageError(
            f"reading '{url}' needs fsspec", tip="pip install 'selfsame[remote]'"
        ) from None
    try:
        system, inner = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # a package of the protocol, or no such protocol
        tip = "install the package that it names" if isinstance(error, ImportError) else None
        raise UsageError(
            f"cannot read '{url}': {error}", tip=tip or "check the letters before ://"
        ) from None
    return system, inner


def _ask(url: str, question: Callable[[Any, str], T]) -> T:
    """Put a question to the file system of a URL.

    Raises:
        DataError: It cannot be answered; every protocol has errors of its own.
    """
    system, inner = _remote(url)
    try:
        return question(system, inner)
    except Exception as error:
        raise DataError(
            f"cannot read '{url}': {error or type(error).__name__}",
            tip="check its spelling and your access",
        ) from None


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
        if hidden(entry.name):
            continue
        name = f"{inside}/{entry.name}" if inside else entry.name
        if entry.is_dir():
            yield from _walk(root, name, (*above, here))
        else:
            yield name
