"""Files and folders that are complete or absent, whenever the process or the machine stops."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from selfsame.errors import RunError, UsageError

SUMS = "SHA256SUMS"  # in the format of coreutils: `sha256sum -c SHA256SUMS` checks a folder, too

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_NOT_HERE = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # file systems that flush no folders


def cache_folder() -> Path:
    """Where what can be made again is kept: ``$SELFSAME_CACHE``, or the user's own cache."""
    if chosen := os.environ.get("SELFSAME_CACHE"):
        return Path(chosen)
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "selfsame"
    home = Path.home()
    user = home / "Library/Caches" if sys.platform == "darwin" else home / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or user) / "selfsame"


@contextmanager
def atomic(final: Path) -> Iterator[Path]:
    """Give a temporary path to write a file or fill a folder at, and move it to ``final``.

    What was written is flushed to the disk before the rename; where the block raises, it is
    removed and ``final`` stays as it was.
    """
    temporary = temporary_of(final)
    _remove(temporary)
    try:
        yield temporary
        for path in [temporary, *temporary.rglob("*")]:
            sync(path)
        if final.is_dir():  # a folder cannot be replaced in one go: it waits beside
            _replace_folder(temporary, final)
        else:
            temporary.replace(final)
        sync(final.parent)
    except BaseException:
        with suppress(OSError):  # the first error counts; the next writer removes what is left
            _remove(temporary)
        raise


# what nobody means to replace by a table or a page
PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".avif")


def check_output(path: Path) -> None:
    """Refuse a file to write that would take the place of more than a file of its kind.

    Raises:
        UsageError: it is a folder, or a picture.
    """
    if path.is_dir():  # which would be replaced, with all that is in it
        raise UsageError(f"{path} is a folder", tip="name a file to write, in a folder that exists")
    if path.suffix.lower() in PICTURES and path.exists():
        raise UsageError(f"{path} is a picture and would be replaced", tip="name another file")


@contextmanager
def output(path: Path) -> Iterator[Path]:
    """`atomic` for a file that the user named, with errors that say so.

    Raises:
        UsageError: it is a folder or a picture, which would be lost, or cannot be written.
    """
    check_output(path)
    try:
        with atomic(path) as temporary:
            yield temporary
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror or error}",
            tip="name a file in a folder that exists and that you may write to",
        ) from None


def temporary_of(final: Path) -> Path:
    """Where ``atomic`` lets ``final`` be written."""
    return final.with_name(f".tmp-{final.name}")


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk, where the system can."""
    folder = path.is_dir()
    if folder and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if folder or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (folder and error.errno in _NOT_HERE):
            raise
    finally:
        os.close(descriptor)


def seal(folder: Path) -> None:
    """Note the checksums of a folder's files in it, so that `damage` can find what has decayed."""
    lines = [
        f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, in words; None where it is as it was written."""
    try:
        lines = (folder / SUMS).read_text("utf-8").splitlines()
        if not lines:
            return f"{SUMS} is empty"
        for line in lines:
            expected, _, name = line.partition("  ")
            if _sha256(folder / name) != expected:
                return f"{name} is not what was written (its SHA-256 differs)"
    except (OSError, ValueError) as error:
        return reason(error)
    return None


def remove(folder: Path) -> None:
    """Delete a folder, which is never seen half empty; what cannot be deleted stays."""
    aside = folder.with_name(f".tmp-{folder.name.removeprefix('.tmp-')}")
    with suppress(OSError):
        folder.replace(aside)
    shutil.rmtree(aside, ignore_errors=True)


def reason(error: BaseException) -> str:
    """Why a file could not be written or read: the system's words where there are any."""
    system = _system(error)
    if system is not None:
        return str(system.strerror)
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def refused(what: str, error: BaseException, then: str = "continue with --resume") -> RunError:
    """The error of something that could not be written. ``what`` is a file, or a thing in words."""
    system = _system(error)
    if system is not None and system.errno in _FORBIDDEN:
        first = "make the folder writable"
    elif system is not None and system.errno in _FULL:
        first = "free some disk space"
    else:
        first = "check the disk and the space on it"
    return RunError(f"cannot write {what}: {reason(error)}", tip=f"{first}, then {then}")


def _system(error: BaseException | None) -> OSError | None:
    """The system's error in a chain: libraries that write files raise one of their own over it."""
    while error is not None and not (isinstance(error, OSError) and error.strerror):
        error = error.__cause__ or error.__context__
    return error


def _replace_folder(temporary: Path, final: Path) -> None:
    aside = final.with_name(f".tmp-old-{final.name}")
    _remove(aside)
    final.replace(aside)
    try:
        temporary.replace(final)
    except BaseException:
        aside.replace(final)
        raise
    _remove(aside)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
