"""Files and folders that are complete or absent, whenever the process or the machine stops."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    temporary = final.with_name(f".tmp-{final.name}")
    _remove(temporary)
    try:
        yield temporary
        for path in [temporary, *temporary.rglob("*")]:
            _sync(path)
        if final.is_dir():
            _remove(final)
        temporary.replace(final)
        _sync(final.parent)
    except BaseException:
        _remove(temporary)
        raise


def _sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk, where the system can."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
