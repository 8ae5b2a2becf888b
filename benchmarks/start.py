"""Seconds from the command to the end of the first optimiser step, beside lightly.

    scripts/bench start [--quick] [--rounds 5] [--install]

``selfsame pretrain simclr FOLDER --size 32 --steps 1`` against ``lightly_simclr.py``, the script of
lightly's documentation, on the same 2,000 PNGs, batch 64, one thread for torch, each with its own
precision. Each is started anew and takes its turn. Its step is done when selfsame has written its
first row of metrics, or the script its file; then the process is ended. Times are of the clock and
of the CPU, workers included (from /proc, in hundredths of a second, so this needs Linux); medians
over rounds, ratios within a round.

A step's work differs by what the stem of the ResNet-18 leaves of 32 px: the CIFAR stem, selfsame's
choice, maps of 32x32; the ImageNet stem, the script's, maps of 8x8. Both run with both.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import ROOT, Cost, about, cpu_of, fields, peers, ratio, write
from PIL import Image
from rich.console import Console
from rich.table import Table

from selfsame import demo

PATIENCE = 600.0  # seconds
STEMS = ("cifar", "imagenet")
KEYS = ("wall", "cpu")


def command_of(name: str, stem: str, folder: Path, out: Path) -> tuple[list[str], Path]:
    """A contestant's command, and the file that says that its step is done."""
    if name == "lightly":
        out.mkdir()
        done = out / "done"
        script = ROOT / "benchmarks" / "lightly_simclr.py"
        words = [str(folder), str(done), stem, "32", "64", "1"]
        return [sys.executable, str(script), *words], done
    command = [sys.executable, "-m", "selfsame", "pretrain", "simclr", str(folder), "--size", "32"]
    command += ["--steps", "1", "--batch-size", "64", "--out", str(out)]
    return [*command, "--set", f"backbone.options.stem={stem}"], out / "metrics.jsonl"


def cpu_of_session(leader: int) -> float:
    """CPU seconds of all processes of a session."""
    total = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            total += cpu_of(stat) * (int(fields(stat)[3]) == leader)
        except OSError:  # it has just ended
            continue
    return total


def first_step(command: list[str], done: Path, environment: dict[str, str]) -> Cost:
    """Start a command, wait for the end of its first step, end it."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not (done.exists() and done.stat().st_size):
            if process.poll() is not None or time.perf_counter() - begin > PATIENCE:
                assert process.stderr is not None
                sys.exit(f"no step was done by {' '.join(command)}:\n{process.stderr.read()}")
            time.sleep(0.005)
        return Cost(time.perf_counter() - begin, cpu_of_session(process.pid))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def measure(
    names: Sequence[str], rounds: int, temporary: Path
) -> dict[tuple[str, str], list[Cost]]:
    """Costs by stem and contestant: ``rounds``, after a first one that is not counted."""
    folder = temporary / "images"
    folder.mkdir()
    tiles = demo.sample().train.images  # type: ignore[attr-defined]
    for i in range(2000):
        Image.fromarray(tiles[i]).save(folder / f"{i:04}.png")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        # Compiled modules of all packages are there after the first turn, however they came here.
        "PYTHONPYCACHEPREFIX": str(temporary / "compiled"),
        "PYTHONDONTWRITEBYTECODE": "",
    }
    found: dict[tuple[str, str], list[Cost]] = {}
    for turn in range(rounds + 1):
        for stem in STEMS:
            for name in names:
                command, done = command_of(name, stem, folder, temporary / f"{name}-{stem}-{turn}")
                cost = first_step(command, done, environment)
                if turn:
                    found.setdefault((stem, name), []).append(cost)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rounds; not kept")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--install", action="store_true", help="install peers that are missing")
    options = parser.parse_args()
    names = ["selfsame", *({"lightly"} & set(peers(options.install)))]
    rounds = 2 if options.quick else options.rounds
    result: dict[str, Any] = {"about": about() | {"rounds": rounds}, "rows": []}
    with tempfile.TemporaryDirectory() as temporary:
        costs = measure(names, rounds, Path(temporary))
    table = Table(title="seconds to the end of the first step", title_justify="left")
    table.add_column("stem")
    table.add_column("contestant")
    for column in ("wall, s", "ratio", "CPU, s", "ratio"):
        table.add_column(column, justify="right")
    for (stem, name), found in costs.items():
        row: dict[str, Any] = {"stem": stem, "contestant": name}
        for key in KEYS:
            own, other = (
                [getattr(cost, key) for cost in each] for each in (found, costs[stem, names[-1]])
            )
            row[key] = round(statistics.median(own), 2)
            row[f"{key}_ratio"] = round(ratio(own, other), 3)
            row[f"{key}_all"] = [round(value, 2) for value in own]
        result["rows"].append(row)
        cells = [f"{row[key]:.2f}" for k in KEYS for key in (k, f"{k}_ratio")]
        table.add_row(stem, name, *cells)
    Console().print(table)
    write("start", result, keep=not options.quick)


if __name__ == "__main__":
    main()
