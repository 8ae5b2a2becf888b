"""The C that the package ships, compiled on the machine that runs it.

A library is made by the machine's C compiler when it is first asked for and kept in the cache
folder, a file for each source, compiler and processor. There is none where there is no compiler, or
where ``SELFSAME_NATIVE=0``; what asks then does the same with PyTorch.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from selfsame.files import cache_folder

_FLAGS = "-std=c11 -O3 -fno-math-errno -fno-trapping-math -fPIC -shared"


@cache
def library(source: Path, flags: str = "") -> ctypes.CDLL | None:
    """The compiled ``source``, None where there is none.

    Args:
        source: A C file without other files of its own.
        flags: For the compiler, beside those that all have.
    """
    if os.environ.get("SELFSAME_NATIVE", "1") == "0":
        return None
    try:
        return ctypes.CDLL(str(_compiled(source, f"{_FLAGS} {flags}".strip())))
    except (OSError, subprocess.SubprocessError):
        return None


def _compiled(source: Path, flags: str) -> Path:
    """The library, from the cache folder or made now.

    Raises:
        OSError: There is no compiler, or no place to write.
        subprocess.SubprocessError: It fails.
    """
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if shutil.which(compiler[0]) is None:
        raise FileNotFoundError(compiler[0])
    key = source.read_bytes() + f"{compiler} {flags} {_processor()}".encode()
    named = f"{source.stem}-{hashlib.sha256(key).hexdigest()[:16]}.so"
    made = cache_folder() / named
    if not made.is_file():
        made.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=made.parent) as folder:  # others may compile it, too
            draft = Path(folder) / named
            words = [*flags.split(), str(source), "-o", str(draft), "-lm"]
            try:
                _run([*compiler, "-march=native", *words])
            except subprocess.CalledProcessError:  # not every compiler knows the processor
                _run([*compiler, *words])
            draft.replace(made)
    return made


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)


@lru_cache(maxsize=1)
def _processor() -> str:
    """What the compiler's choice of instructions depends on: homes are shared by machines."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    features = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return f"{platform.machine()} {platform.processor()} {features}"
