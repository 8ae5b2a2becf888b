"""One process at a time: a lock of the operating system, which goes with the process that has it.

Nothing has to be cleaned up after a crash: what a dead process leaves behind is a file, not a lock.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from selfsame.errors import UsageError

_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)

if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int) -> None:
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # far behind what the file says
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
else:
    import fcntl

    def _take(descriptor: int) -> None:
        # flock, not lockf: that one forgets the lock when any descriptor of the file is closed,
        # and never refuses the same process. NFS turns it into a lock across its clients.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def locked(file: Path, what: str) -> Iterator[bool]:
    """Hold a lock while the block runs. ``file`` says who has it and is removed at the end.

    Args:
        file: in a folder that exists.
        what: the thing that is locked, for the error.

    Yields:
        Whether there is a lock: some network file systems have none.

    Raises:
        UsageError: another process has it, or another run of this process.
        OSError: ``file`` cannot be written.
    """
    descriptor, held = _open(file, what)
    try:
        holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(holder).encode() + b"\n")
        yield held
    finally:
        try:
            if _is(file, descriptor):
                with suppress(OSError):  # Windows removes no file that is open
                    file.unlink()
        finally:
            os.close(descriptor)


def _open(file: Path, what: str) -> tuple[int, bool]:
    """A descriptor of the file, and whether it is locked."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _take(descriptor)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return descriptor, False
            os.close(descriptor)
            if error.errno in _BUSY:
                raise _busy(file, what) from None
            raise
        if _is(file, descriptor):
            return descriptor, True
        os.close(descriptor)  # its last holder removed the file just now: take the new one


def _is(file: Path, descriptor: int) -> bool:
    """Whether the file of that name is the one that is open."""
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _busy(file: Path, what: str) -> UsageError:
    try:
        holder = json.loads(file.read_text("utf-8"))
        pid, host = holder["pid"], holder["host"]
        who = f"process {pid} on {host} since {holder['since']}"
        stop = f"stop it (kill {pid} on {host})"
    except (OSError, ValueError, KeyError, TypeError):
        who, stop = "another process", "stop it"
    return UsageError(
        f"{what} is in use by {who}", tip=f"wait for it, {stop}, or name another folder with --out"
    )
