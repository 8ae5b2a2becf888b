"""The run directory: a format with a version. Nothing else in selfsame writes there.

recipe.toml            the resolved recipe
run.json               command, options, versions, hardware, data fingerprint
metrics.jsonl          one line a logging interval      eval.jsonl   one line an evaluation
events.out.tfevents.*  both for TensorBoard             log.txt      what was said
bad_images.jsonl       images that could not be read
nonfinite.jsonl        steps that were skipped because the loss or the gradient was not finite:
                       ``step`` (steps done, this one included), ``loss`` and ``grad_norm`` (text:
                       "nan", "inf" or a number), and the images of the step: ``index``, their
                       positions in the data, and ``name``, their paths
checkpoints/           see ``checkpoint``
backbone.safetensors   the encoder's weights            card.json    what they are
lock                   who writes here now

Values that JSON has no word for are null.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from io import FileIO
from pathlib import Path
from typing import Any

from selfsame import __version__, dist, events
from selfsame.errors import UsageError
from selfsame.files import atomic, refused, sync
from selfsame.lock import locked
from selfsame.types import BadImage

FORMAT = 1
LOCK = "lock"
UNBORN = {LOCK, "checkpoints", "log.txt", "run.json", ".tmp-run.json", ".tmp-recipe.toml"}
"""What a run may have written before its recipe, without which it is none."""
ROWS = ("metrics", "eval", "bad_images", "nonfinite")
FOLLOWED = ("metrics", "eval")  # rows that TensorBoard and other followers get


class RunDirectory:
    """A folder that holds one run. Appends are line by line; everything else is atomic.

    Of several processes rank 0 writes; on the others every word that writes does nothing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.followers: list[Callable[[str, Sequence[Mapping[str, Any]]], None]] = []

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Keep other runs out while the block runs; readers need no lock.

        The folder is made where there is none. Yields whether the file system has locks. Of
        several processes, rank 0 holds the lock.

        Raises:
            UsageError: another process trains here, or the folder cannot be written.
        """
        if not dist.is_main():
            yield True
            return
        with ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                held = stack.enter_context(locked(self.path / LOCK, str(self.path)))
            except OSError as error:
                raise _cannot_use(self.path, error) from None
            yield held

    @classmethod
    def create(cls, path: str | Path) -> RunDirectory:
        """Make a new run directory, or begin anew one whose making was cut short.

        Raises:
            UsageError: the folder is not empty, or cannot be written.
        """
        run = cls(path)
        if not dist.is_main():
            return run
        try:
            found = {file.name for file in run.path.iterdir()} if run.path.is_dir() else set()
            if not found <= UNBORN or (run.checkpoints.is_dir() and any(run.checkpoints.iterdir())):
                done = "recipe.toml" in found
                raise UsageError(
                    f"{run.path} is not empty",
                    tip=("continue that run with --resume, or " if done else "")
                    + "name another folder with --out",
                )
            for name in found - {LOCK, "checkpoints"}:
                (run.path / name).unlink()
            run.checkpoints.mkdir(parents=True, exist_ok=True)
            run.append("log", [])
        except OSError as error:
            raise _cannot_use(run.path, error) from None
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """Open an existing run directory.

        Raises:
            UsageError: there is none, or it is of a newer format.
        """
        run = cls(path)
        if not (run.path / "recipe.toml").is_file():
            raise UsageError(
                f"{run.path} is no run directory: it has no recipe.toml",
                tip="leave --resume out to start a new run there",
            )
        found = run.info().get("format", FORMAT)
        if found > FORMAT:
            raise UsageError(
                f"{run.path} was written by a newer selfsame (format {found}, here {FORMAT})",
                tip="upgrade selfsame",
            )
        return run

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    @property
    def recipe(self) -> Path:
        """The resolved recipe's file."""
        return self.path / "recipe.toml"

    def info(self) -> dict[str, Any]:
        """What ``run.json`` says; empty where there is none yet."""
        file = self.path / "run.json"
        return dict(json.loads(file.read_text("utf-8"))) if file.is_file() else {}

    def classes(self) -> list[str] | None:
        """What a classifier that the run trains calls its classes, where it has names."""
        found: list[str] | None = self.info().get("classes")
        return found

    def write(self, name: str, text: str) -> None:
        """Write a whole file: complete or absent."""
        if not dist.is_main():
            return
        try:
            with atomic(self.path / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except OSError as error:
            raise refused(str(self.path / name), error) from error

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a whole JSON file: complete or absent."""
        self.write(name, json.dumps(value, indent=2) + "\n")

    def append(self, name: str, rows: Iterable[Mapping[str, Any] | str]) -> None:
        """Append rows to ``NAME.jsonl``, or lines to ``NAME.txt`` where they are text.

        All of them or, where the disk refuses, none; half a line that a crash left is dropped.
        """
        if not dist.is_main():
            return
        rows = list(rows)
        lines = [row if isinstance(row, str) else _json(row) for row in rows]
        file = self._file(name)
        try:
            with file.open("a+b", buffering=0) as stream:
                size = _end_of_lines(stream)
                rest = memoryview("".join(line + "\n" for line in lines).encode())
                try:
                    while rest:
                        rest = rest[stream.write(rest) :]
                except OSError:
                    stream.truncate(size)
                    raise
        except OSError as error:
            raise refused(str(file), error) from error
        if name in FOLLOWED:
            self._tell(name, [row for row in rows if not isinstance(row, str)])

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of ``NAME.jsonl``. A last line cut short by a crash is left out."""
        file = self._file(name)
        if not file.is_file():
            return []
        found = []
        for line in file.read_text("utf-8", errors="replace").splitlines(keepends=True):
            if line.endswith("\n"):
                found.append(json.loads(line))
        return found

    def sync(self) -> None:
        """Flush the rows to the disk, so that a checkpoint does not outlive those before it."""
        if not dist.is_main():
            return
        try:
            for name in ROWS:
                if (file := self._file(name)).is_file():
                    sync(file)
        except OSError as error:
            raise refused(str(file), error) from error

    def rewind(self, step: int) -> None:
        """Forget rows of steps after ``step``: a resumed run writes them again."""
        if not dist.is_main():
            return
        for name in ROWS:
            if self._file(name).is_file():
                kept = [row for row in self.rows(name) if row.get("step", 0) <= step]
                self.write(f"{name}.jsonl", "".join(_json(row) + "\n" for row in kept))
        found = [events.Event(*scalars(name, row)) for name in FOLLOWED for row in self.rows(name)]
        try:
            events.rewrite(self.path, (event for event in found if event.values))
        except OSError as error:
            raise refused(str(self.path), error) from error

    def add_bad_images(self, found: Iterable[BadImage]) -> None:
        """Record unreadable images, each once."""
        if not dist.is_main():
            return
        known = {row["index"] for row in self.rows("bad_images")}
        new = {image.index: image._asdict() for image in found if image.index not in known}
        self.append("bad_images", new.values())

    def _file(self, name: str) -> Path:
        return self.path / (f"{name}.txt" if name == "log" else f"{name}.jsonl")

    def _tell(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Give new rows to TensorBoard's file and to whoever follows."""
        found = (events.Event(*scalars(name, row)) for row in rows)
        try:
            events.add(self.path, (event for event in found if event.values))
        except OSError as error:
            raise refused(str(self.path), error) from error
        for follower in self.followers:
            follower(name, rows)


def scalars(name: str, row: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
    """The step and the numbers of a row of ``NAME.jsonl``, under names for dashboards.

    ``train/loss``; ``eval/health/rankme``; ``eval/model/knn`` and ``eval/raw pixels/knn`` where
    there are controls.
    """
    if name == "metrics":
        groups = {"train": row}
    elif isinstance(results := row.get("results"), Mapping):
        groups = {f"eval/{who}": scores for who, scores in results.items()}
    else:
        groups = {f"eval/{row.get('protocol', name)}": row}
    values = {
        f"{group}/{key}": float(value)
        for group, each in groups.items()
        for key, value in each.items()
        if key != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return int(row.get("step", 0)), values


def _cannot_use(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"cannot write to {path}: {error.strerror or error}",
        tip="name a folder that you may write to, on a disk with space, with --out",
    )


def _end_of_lines(stream: FileIO) -> int:
    """The size of a file in bytes, after half a line at its end was cut off."""
    end = size = stream.seek(0, os.SEEK_END)
    while end:
        stream.seek(max(0, end - 4096))
        block = stream.read(end - stream.tell())
        if newline := block.rfind(b"\n") + 1:
            end += newline - len(block)
            break
        end -= len(block)
    if end != size:
        stream.truncate(end)
    return end


def _json(row: Mapping[str, Any]) -> str:
    """One line of JSON; numbers that it has no word for are null."""
    try:
        return json.dumps(row, allow_nan=False)
    except ValueError:
        lost = {k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)}
        return json.dumps({k: None if k in lost else v for k, v in row.items()})


def environment(device: str) -> dict[str, Any]:
    """What a run depends on besides its recipe and data: versions, command, machine."""
    versions = {"selfsame": __version__, "python": sys.version.split()[0]}
    for package in ("torch", "torchvision", "timm", "numpy", "pillow"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "format": FORMAT,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": sys.argv,
        "versions": versions,
        "commit": _commit(),
        "hardware": device,
        "world_size": dist.world_size(),
    }


def _commit() -> str | None:
    """The commit of the source tree that selfsame runs from, None for an installed copy."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
