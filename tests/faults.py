"""Faults of a disk, put between Python and the operating system; the library knows nothing of it.

``with Faults(folder, "full", 12): ...`` lets the 12th operation on a file below the folder fail,
as would a full disk. As a program, ``python faults.py FOLDER KIND NUMBER ARGUMENTS...`` is
``python -m selfsame ARGUMENTS...`` with that fault. Kinds:

- "kill": the process is killed in the middle of the operation; of a write, half is done. Inside
  ``with`` it raises `Killed`, and from there on nothing reaches the disk: what a process does to
  tidy up is not done either. As a program, it is SIGKILL.
- "full": half of a write is done, then nothing more can be written (ENOSPC).
- "error": this one operation fails (EIO); of a write, half is done.
- "readonly": from there on nothing can be changed (EROFS).
- "short": from there on a write does half of what it is asked to. Nothing fails.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = ("kill", "full", "error", "readonly", "short")
CHANGES = ("replace", "rename", "mkdir", "unlink", "remove", "rmdir")  # of a path
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Killed(BaseException):
    """The process is no more."""


class Faults:
    """Counts the operations below a folder and lets one of them go wrong."""

    def __init__(
        self, folder: Path, kind: str = "short", number: int = 1 << 60, *, real: bool = False
    ) -> None:
        self.folder = str(folder.absolute())
        self.kind = kind
        self.number = number  # from 1
        self.real = real  # SIGKILL, not `Killed`
        self.log: list[str] = []  # what was done, in words
        self.injected = 0
        self.dead = False
        self._files: dict[int, str] = {}  # open descriptors
        self._system = {
            name: getattr(os, name)
            for name in (*CHANGES, "open", "close", "write", "fsync", "ftruncate")
        }
        self._open = io.open

    def __enter__(self) -> Faults:
        for name in CHANGES:
            setattr(os, name, self._guarded(name))
        os.open, os.close = self._open_descriptor, self._close  # type: ignore[assignment]
        os.write, os.fsync = self._write, self._fsync  # type: ignore[assignment]
        os.ftruncate = self._truncate  # type: ignore[assignment]
        io.open = builtins.open = self._open_file  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        for name, function in self._system.items():
            setattr(os, name, function)
        io.open = builtins.open = self._open

    def strike(self, what: str, path: str, *, write: bool = False) -> bool:
        """Count an operation; whether it is a write that must be cut short. May raise."""
        if self.dead:
            raise Killed
        self.log.append(f"{what} {os.path.relpath(path, self.folder)}")
        count = len(self.log)
        hit, after = count == self.number, count > self.number
        adds = write or what in ("mkdir", "create")
        if hit and write and self.kind in ("kill", "full", "error"):
            return True  # half of it first
        if self.kind == "short":
            self.injected += write and (hit or after)
            return write and (hit or after)
        if self.kind == "kill" and hit:
            self.die()
        if self.kind == "full" and (hit or after) and adds:
            self._fail(errno.ENOSPC)
        if self.kind == "error" and hit:
            self._fail(errno.EIO)
        if self.kind == "readonly" and (hit or after) and what != "fsync":
            self._fail(errno.EROFS)
        return False

    def cut(self) -> None:
        """What follows half a write."""
        if self.kind == "kill":
            self.die()
        if self.kind == "error":
            self._fail(errno.EIO)
        if self.kind == "full":
            self._fail(errno.ENOSPC)

    def die(self) -> None:
        self.injected += 1
        if self.real:
            os.kill(os.getpid(), signal.SIGKILL)
        self.dead = True
        raise Killed

    def below(self, path: Any) -> bool:
        """Whether a path is in the folder."""
        return isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(self.folder)

    def _fail(self, code: int) -> None:
        self.injected += 1
        raise OSError(code, os.strerror(code))

    def _guarded(self, name: str) -> Callable[..., Any]:
        function = self._system[name]

        def guarded(path: Any, *more: Any, **options: Any) -> Any:
            directory = options.get("dir_fd")  # as rmtree calls it
            if directory is not None:
                at = self._files.get(directory)
                whole = None if at is None else os.path.join(at, path)
            else:
                whole = path
            if whole is not None and self.below(whole):
                self.strike(name, os.fspath(whole))
            return function(path, *more, **options)

        return guarded

    def _open_descriptor(self, path: Any, flags: int, *more: Any, **options: Any) -> int:
        directory = options.get("dir_fd")
        whole = os.path.join(self._files[directory], path) if directory in self._files else path
        ours = self.below(whole)
        if ours and flags & WRITING:
            self.strike("create", os.fspath(whole))
        descriptor: int = self._system["open"](path, flags, *more, **options)
        if ours:
            self._files[descriptor] = os.path.abspath(whole)
        return descriptor

    def _close(self, descriptor: int) -> None:
        self._files.pop(descriptor, None)
        self._system["close"](descriptor)

    def _write(self, descriptor: int, data: Any) -> int:
        path = self._files.get(descriptor)
        if path is not None and self.strike("write", path, write=True) and len(data) > 1:
            done: int = self._system["write"](descriptor, memoryview(data)[: len(data) // 2])
            self.cut()
            return done
        return int(self._system["write"](descriptor, data))

    def _fsync(self, descriptor: int) -> None:
        path = self._files.get(descriptor)
        if path is not None:
            self.strike("fsync", path)
        # flushing costs most of the time and shows nothing: these machines do not lose power

    def _truncate(self, descriptor: int, size: int) -> None:
        path = self._files.get(descriptor)
        if path is not None:
            self.strike("truncate", path)
        self._system["ftruncate"](descriptor, size)

    def _open_file(self, file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
        if not self.below(file) or not set(mode) & set("wax+"):
            return self._open(file, mode, *more, **options)
        self.strike("create", os.fspath(file))
        raw = Raw(self, os.fspath(file), mode.replace("b", "").replace("t", "") + "b")
        buffering = more[0] if more else options.get("buffering", -1)
        if buffering == 0:
            return raw
        stream = io.BufferedWriter(raw)
        return stream if "b" in mode else io.TextIOWrapper(stream, options.get("encoding"))


class Raw(io.FileIO):
    """A file whose writes can go wrong."""

    def __init__(self, faults: Faults, path: str, mode: str) -> None:
        super().__init__(path, mode)
        self.faults = faults
        self.at = path

    def write(self, data: Any) -> int:
        data = memoryview(data).cast("B")
        if not len(data):
            return 0
        if self.faults.strike("write", self.at, write=True) and len(data) > 1:
            done = super().write(data[: len(data) // 2])
            self.faults.cut()
            return done
        return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        self.faults.strike("truncate", self.at)
        return super().truncate(size)


def main() -> int:
    """Run the command line with a fault."""
    from selfsame.cli import main as run

    folder, kind, number, *arguments = sys.argv[1:]
    with Faults(Path(folder), kind, int(number), real=True) as faults:
        code = run(arguments)
    print(f"operations {len(faults.log)} injected {faults.injected}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
