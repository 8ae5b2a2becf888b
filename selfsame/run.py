"""The run directory: a format with a version. Nothing else in selfsame writes there.

recipe.toml            the resolved recipe
run.json               command, options, versions, hardware, data fingerprint
metrics.jsonl          one line a logging interval      eval.jsonl   one line an evaluation
events.out.tfevents.*  both for TensorBoard             log.txt      what was said
bad_images.jsonl       images that could not be read
checkpoints/           see ``checkpoint``
backbone.safetensors   the encoder's weights            card.json    what they are
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from selfsame import __version__, events
from selfsame.errors import RunError, UsageError
from selfsame.files import atomic
from selfsame.types import BadImage

FORMAT = 1
FOLLOWED = ("metrics", "eval")  # rows that TensorBoard and other followers get


class RunDirectory:
    """A folder that holds one run. Appends are line by line; everything else is atomic."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.followers: list[Callable[[str, Sequence[Mapping[str, Any]]], None]] = []

    @classmethod
    def create(cls, path: str | Path) -> RunDirectory:
        """Make a new run directory.

        Raises:
            UsageError: the folder is not empty, or cannot be written.
        """
        run = cls(path)
        try:
            if run.path.is_dir() and any(run.path.iterdir()):
                done = (run.path / "recipe.toml").exists()
                raise UsageError(
                    f"{run.path} is not empty",
                    tip=("continue that run with --resume, or " if done else "")
                    + "name another folder with --out",
                )
            run.checkpoints.mkdir(parents=True)
            run.append("log", [])
        except OSError as error:
            raise UsageError(
                f"cannot write to {run.path}: {error.strerror or error}",
                tip="name a folder that you may write to with --out",
            ) from None
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

    def write(self, name: str, text: str) -> None:
        """Write a whole file: complete or absent."""
        try:
            with atomic(self.path / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except OSError as error:
            raise _refused(self.path / name, error) from error

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a whole JSON file: complete or absent."""
        self.write(name, json.dumps(value, indent=2) + "\n")

    def append(self, name: str, rows: Iterable[Mapping[str, Any] | str]) -> None:
        """Append rows to ``NAME.jsonl``, or lines to ``NAME.txt`` where they are text."""
        rows = list(rows)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        file = self.path / (f"{name}.txt" if name == "log" else f"{name}.jsonl")
        try:
            with file.open("a", encoding="utf-8") as stream:
                stream.writelines(line + "\n" for line in lines)
        except OSError as error:
            raise _refused(file, error) from error
        if name in FOLLOWED:
            self._tell(name, [row for row in rows if not isinstance(row, str)])

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of ``NAME.jsonl``. A last line cut short by a crash is left out."""
        file = self.path / f"{name}.jsonl"
        if not file.is_file():
            return []
        found = []
        for line in file.read_text("utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                found.append(json.loads(line))
        return found

    def rewind(self, step: int) -> None:
        """Forget rows of steps after ``step``: a resumed run writes them again."""
        for name in ("metrics", "eval", "bad_images"):
            if (self.path / f"{name}.jsonl").is_file():
                kept = [row for row in self.rows(name) if row.get("step", 0) <= step]
                self.write(f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
        found = [events.Event(*scalars(name, row)) for name in FOLLOWED for row in self.rows(name)]
        try:
            events.rewrite(self.path, (event for event in found if event.values))
        except OSError as error:
            raise _refused(self.path, error) from error

    def add_bad_images(self, found: Iterable[BadImage]) -> None:
        """Record unreadable images, each once."""
        known = {row["index"] for row in self.rows("bad_images")}
        self.append("bad_images", [image._asdict() for image in found if image.index not in known])

    def _tell(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Give new rows to TensorBoard's file and to whoever follows."""
        found = (events.Event(*scalars(name, row)) for row in rows)
        try:
            events.add(self.path, (event for event in found if event.values))
        except OSError as error:
            raise _refused(self.path, error) from error
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


def _refused(file: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot write {file}: {error.strerror or error}",
        tip="free some disk space, then continue with --resume",
    )


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
        "world_size": 1,
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
