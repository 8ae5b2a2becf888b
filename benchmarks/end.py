"""Seconds from the command to its end, from JPEG files, beside lightly.

    scripts/bench end [--quick] [--steps 24] [--size 128] [--batch 32] [--rounds 3] [--install]

``selfsame pretrain simclr FOLDER`` against ``lightly_simclr.py``, the script of lightly's
documentation: ResNet-18 with its ImageNet stem on the same 2,000 JPEGs of 500x375 (256 pictures
under several names), each as a user runs it: its own precision (selfsame takes bfloat16 where the
CPU has it; lightly's example is in float32), its own threads, two decoding workers. selfsame's time
includes what it does around its steps: the plan, the checkpoint, the measurement of health.

Each contestant runs ``--steps`` steps and, apart, ``SHORT`` of them: the difference is what a step
costs once all runs, and the time of ``TARGET`` steps is the short run and so many steps more. The
images of the measured steps are all new, so selfsame's cache of decoded images gains nothing.
Medians over rounds, ratios within a round; CPU seconds are those of all processes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, Cost, about, peers, ratio, write
from data import picture
from rich.console import Console
from rich.table import Table

from selfsame import demo

SHORT, TARGET = 2, 200  # steps
FILES, PICTURES = 2000, 256


def make_folder(folder: Path) -> None:
    """Write the JPEGs."""
    folder.mkdir()
    tiles = demo.sample().train.images  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    for i in range(FILES):
        if i < PICTURES:
            picture(rng, tiles, (500, 375)).save(folder / f"{i:04}.jpg", quality=90)
        else:
            os.link(folder / f"{i % PICTURES:04}.jpg", folder / f"{i:04}.jpg")


def command_of(name: str, folder: Path, out: Path, size: int, batch: int, steps: int) -> list[str]:
    """A contestant's command."""
    numbers = [str(number) for number in (size, batch, steps)]
    if name == "lightly":
        out.mkdir()
        script = ROOT / "benchmarks" / "lightly_simclr.py"
        return [sys.executable, str(script), str(folder), str(out / "done"), "imagenet", *numbers]
    command = [sys.executable, "-m", "selfsame", "pretrain", "simclr", str(folder)]
    command += ["--recipe", "paper", "--backbone", "resnet18", "--out", str(out)]
    for flag, number in zip(("--size", "--batch-size", "--steps"), numbers, strict=True):
        command += [flag, number]
    return [*command, "--set", "backbone.options.stem=imagenet"]


def run(command: list[str], environment: dict[str, str]) -> Cost:
    """Seconds of a command, with those of the processes it waits for."""
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - begin
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{errors.read().decode()}")
    return Cost(wall, usage.ru_utime + usage.ru_stime)


def measure(
    names: Sequence[str], options: argparse.Namespace, temporary: Path
) -> dict[tuple[str, int], list[Cost]]:
    """Costs by contestant and steps, of every round."""
    folder = temporary / "images"
    make_folder(folder)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        # Compiled modules of all packages are there after the first turn, however they came here.
        "PYTHONPYCACHEPREFIX": str(temporary / "compiled"),
        "PYTHONDONTWRITEBYTECODE": "",
    }
    found: dict[tuple[str, int], list[Cost]] = {}
    lengths = [(-1, SHORT)]  # a first one that is not counted
    lengths += [(turn, n) for turn in range(options.rounds) for n in (SHORT, options.steps)]
    for turn, steps in lengths:
        for name in names:
            out = temporary / f"{name}-{turn}-{steps}"
            command = command_of(name, folder, out, options.size, options.batch, steps)
            cost = run(command, environment)
            if turn >= 0:
                found.setdefault((name, steps), []).append(cost)
    return found


def parts(short: Sequence[float], whole: Sequence[float], steps: int) -> dict[str, list[float]]:
    """Seconds of both lengths, of a further step, and of ``TARGET`` steps, of every round."""
    step = [(b - a) / (steps - SHORT) for a, b in zip(short, whole, strict=True)]
    target = [a + (TARGET - SHORT) * each for a, each in zip(short, step, strict=True)]
    return {
        f"{SHORT} steps": list(short),
        f"{steps} steps": list(whole),
        "a further step": step,
        f"{TARGET} steps, reckoned": target,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of few steps; not kept")
    parser.add_argument("--steps", type=int, default=24, help=f"of the long run, above {SHORT}")
    parser.add_argument("--size", type=int, default=128, help="side of the views, pixels")
    parser.add_argument("--batch", type=int, default=32, help="images a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--install", action="store_true", help="install peers that are missing")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.steps = 1, SHORT + 2
    if not SHORT < options.steps <= FILES // options.batch:
        parser.error(f"--steps is above {SHORT} and at most {FILES // options.batch}: one epoch")
    names = ["selfsame", *({"lightly"} & set(peers(options.install)))]
    case = {key: getattr(options, key) for key in ("steps", "size", "batch", "rounds")}
    result: dict[str, Any] = {"about": about() | case, "rows": []}
    with tempfile.TemporaryDirectory() as temporary:
        costs = measure(names, options, Path(temporary))
    seconds = {}
    for name in names:
        for key in Cost._fields:
            short, whole = (
                [getattr(cost, key) for cost in costs[name, steps]]
                for steps in (SHORT, options.steps)
            )
            seconds[name, key] = parts(short, whole, options.steps)
    title = f"seconds, ResNet-18 at {options.size} px, batch {options.batch}, from JPEG files"
    table = Table(title=title, title_justify="left")
    table.add_column("of")
    table.add_column("contestant")
    for column in ("wall, s", "lightly's over it", "CPU, s", "lightly's over it"):
        table.add_column(column, justify="right")
    for part in seconds[names[0], "wall"]:
        for name in names:
            row: dict[str, Any] = {"part": part, "contestant": name}
            for key in Cost._fields:
                own, other = seconds[name, key][part], seconds[names[-1], key][part]
                row[key] = round(statistics.median(own), 2)
                row[f"{key}_ratio"] = round(ratio(other, own), 2)
                row[f"{key}_all"] = [round(value, 2) for value in own]
            result["rows"].append(row)
            cells = [f"{row[k]:.2f}" for key in Cost._fields for k in (key, f"{key}_ratio")]
            table.add_row(part, name, *cells)
    Console().print(table)
    write("end", result, keep=not options.quick)


if __name__ == "__main__":
    main()
