"""Features on disk, by what they are features of: a second protocol takes seconds.

An entry's name is a hash of everything that its content depends on: weights, network, view, data.
So nothing has to be invalidated, and whatever cannot be read is computed again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from selfsame.encoder import Encoder
from selfsame.files import atomic, cache_folder
from selfsame.types import Source
from selfsame.views.presets import eval_crop

LIMIT = 2 * 2**30  # bytes that the cache may take; the entries used longest ago go first
FORMAT = 1  # of entries: raise it where the same key would mean other features

Entry = dict[str, Tensor]


class Cache:
    """Named sets of tensors in a folder, each complete or absent.

    Args:
        folder: where; by default ``cache_folder()``. Made when something is written.
        limit: bytes; an entry that is larger is not kept.
    """

    def __init__(self, folder: Path | None = None, limit: int = LIMIT) -> None:
        self.folder = folder or cache_folder() / "features"
        self.limit = limit
        self.reused = self.computed = 0  # entries, by this object
        self.refused: str | None = None  # why an entry could not be written

    def get(self, key: str, make: Callable[[], Entry]) -> Entry:
        """The entry of this key, made and kept where there is none."""
        file = self.folder / f"{key}.safetensors"
        try:
            found = load_file(file)
            os.utime(file)  # used now
        except Exception:  # none yet, or not readable: safetensors has errors of its own
            self.computed += 1
            made = make()
            self._keep(file, made)
            return made
        self.reused += 1
        return found

    def describe(self) -> str:
        """What happened, and what the folder takes, in words."""
        if self.refused:
            return self.refused
        return (
            f"{self.folder}: {self.reused} of {self.reused + self.computed} sets of features "
            f"reused, {self.size() / 2**20:.0f} of at most {self.limit / 2**20:.0f} MiB"
        )

    def size(self) -> int:
        """Bytes that it takes."""
        return sum(size for _, size, _ in self._entries())

    def _keep(self, file: Path, entry: Entry) -> None:
        need = sum(value.numel() * value.element_size() for value in entry.values())
        if need > self.limit:
            return
        mine = file.with_name(f"{file.stem}.{os.getpid()}")  # another process may write it, too
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(need)
            with atomic(mine) as temporary:
                save_file({name: value.contiguous() for name, value in entry.items()}, temporary)
            mine.replace(file)
        except Exception as error:  # a full disk, no rights: scoring goes on
            with suppress(OSError):
                mine.unlink(missing_ok=True)
            self.refused = f"{self.folder} cannot be written: {error}"

    def _make_room(self, need: int) -> None:
        entries = sorted(self._entries())
        taken = sum(size for _, size, _ in entries)
        for _, size, file in entries:
            if taken + need <= self.limit:
                return
            file.unlink(missing_ok=True)
            taken -= size

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Time of the last use, bytes and path of each."""
        found = []
        for file in self.folder.glob("*.safetensors") if self.folder.is_dir() else ():
            try:
                stat = file.stat()
            except OSError:  # gone since: another process made room
                continue
            found.append((stat.st_mtime, stat.st_size, file))
        return found


def encoder_key(encoder: Encoder) -> str | None:
    """Hash of all that an encoder's features depend on besides the images.

    None for a user's own module: its weights do not say what it computes from them.
    """
    if encoder.config is None:
        return None
    facts = (FORMAT, encoder.fingerprint(), eval_crop(encoder.image_size), encoder.device.type)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def entry_key(encoder: str, source: Source, what: str) -> str:
    """The name of the features called ``what`` of the images of a source."""
    parts = f"{encoder} {source.fingerprint()} {len(source)} {what}"
    return hashlib.sha256(parts.encode()).hexdigest()[:32]
