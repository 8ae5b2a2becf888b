"""Seconds from the command to its end, from JPEG files, beside lightly.

    scripts/bench end [--quick] [--cases "32 px"] [--steps 24] [--rounds 3] [--install]

``selfsame pretrain simclr FOLDER`` against ``lightly_simclr.py``, the script of lightly's
documentation: ResNet-18 with its ImageNet stem on the same JPEGs of 500x375 (256 pictures under
many names), each as a user runs it: its own precision (selfsame takes bfloat16 where the CPU has
it; lightly's example is in float32), its own threads, two decoding workers. selfsame's time
includes what it does around its steps: the plan, the checkpoint, the measurement of health.

Two cases: the size and the batch of lightly's own example, where reading images takes as long as
the network, and 128 px, where the network takes nearly all of the time.

Each contestant runs a case's steps and, apart, ``SHORT`` of them: the difference is what a step
costs once all runs, and the time of ``TARGET`` steps is the short run and so many steps more, or
that of the long run where it has so many. There are as many files as images are asked for, so
selfsame's cache of decoded images gains nothing. Medians over rounds, ratios within a round; CPU
seconds are those of all processes.
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
from typing import Any, NamedTuple

import numpy as np
from common import ROOT, Cost, about, peers, ratio, write
from data import picture
from rich.console import Console
from rich.table import Table

from selfsame import demo

SHORT, TARGET = 2, 200  # steps
PICTURES = 256


class Case(NamedTuple):
    """Work for both contestants."""

    title: str
    size: int  # side of the views, pixels
    batch: int  # images a step
    steps: int  # of the long run


CASES = (
    Case("32 px, batch 128, as in lightly's example", 32, 128, TARGET),
    Case("128 px, batch 32", 128, 32, 24),
)


def make_folder(folder: Path, files: int) -> None:
    """Write the JPEGs."""
    folder.mkdir()
    tiles = demo.sample().train.images  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    for i in range(files):
        if i < PICTURES:
            picture(rng, tiles, (500, 375)).save(folder / f"{i:05}.jpg", quality=90)
        else:
            os.link(folder / f"{i % PICTURES:05}.jpg", folder / f"{i:05}.jpg")


def command_of(name: str, folder: Path, out: Path, case: Case, steps: int) -> list[str]:
    """A contestant's command."""
    numbers = [str(number) for number in (case.size, case.batch, steps)]
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
    names: Sequence[str], case: Case, rounds: int, folder: Path, temporary: Path
) -> dict[tuple[str, int], list[Cost]]:
    """Costs by contestant and steps, of every round."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        # Compiled modules of all packages are there after the first turn, however they came here.
        "PYTHONPYCACHEPREFIX": str(temporary / "compiled"),
        "PYTHONDONTWRITEBYTECODE": "",
    }
    found: dict[tuple[str, int], list[Cost]] = {}
    lengths = [(-1, SHORT)]  # a first one that is not counted
    lengths += [(turn, n) for turn in range(rounds) for n in (SHORT, case.steps)]
    for turn, steps in lengths:
        for name in names:
            out = temporary / f"{name}-{case.size}-{turn}-{steps}"
            cost = run(command_of(name, folder, out, case, steps), environment)
            if turn >= 0:
                found.setdefault((name, steps), []).append(cost)
    return found


def parts(short: Sequence[float], whole: Sequence[float], steps: int) -> dict[str, list[float]]:
    """Seconds of both lengths, of a further step, and of ``TARGET`` steps, of every round."""
    step = [(b - a) / (steps - SHORT) for a, b in zip(short, whole, strict=True)]
    target = [a + (TARGET - SHORT) * each for a, each in zip(short, step, strict=True)]
    long = {} if steps == TARGET else {f"{steps} steps": list(whole)}
    name = f"{TARGET} steps" if steps == TARGET else f"{TARGET} steps, reckoned"
    return {f"{SHORT} steps": list(short), **long, "a further step": step, name: target}


def rows_of(
    names: Sequence[str], case: Case, costs: dict[tuple[str, int], list[Cost]]
) -> list[dict[str, Any]]:
    """What is reported of a case: medians, every value, and ratios to the last contestant."""
    seconds = {}
    for name in names:
        for key in Cost._fields:
            short, whole = (
                [getattr(cost, key) for cost in costs[name, steps]] for steps in (SHORT, case.steps)
            )
            seconds[name, key] = parts(short, whole, case.steps)
    rows = []
    for part in seconds[names[0], "wall"]:
        for name in names:
            row: dict[str, Any] = {"case": case.title, "part": part, "contestant": name}
            for key in Cost._fields:
                own, other = seconds[name, key][part], seconds[names[-1], key][part]
                row[key] = round(statistics.median(own), 2)
                row[f"{key}_ratio"] = round(ratio(other, own), 2)
                row[f"{key}_all"] = [round(value, 2) for value in own]
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of few steps; not kept")
    parser.add_argument("--cases", default="", help="only those whose title has these words")
    parser.add_argument("--steps", type=int, help=f"of the long runs, above {SHORT}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--install", action="store_true", help="install peers that are missing")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.steps = 1, options.steps or SHORT + 2
    if options.steps is not None and options.steps <= SHORT:
        parser.error(f"--steps is above {SHORT}")
    cases = [case for case in CASES if options.cases in case.title]
    if not cases:
        parser.error(f"no case is called {options.cases}")
    if options.steps is not None:
        cases = [case._replace(steps=options.steps) for case in cases]
    names = ["selfsame", *({"lightly"} & set(peers(options.install)))]
    result: dict[str, Any] = {"about": about() | {"rounds": options.rounds}, "rows": []}
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        folder = temporary / "images"
        make_folder(folder, max(case.batch * case.steps for case in cases))
        for case in cases:
            costs = measure(names, case, options.rounds, folder, temporary)
            rows = rows_of(names, case, costs)
            table = Table(title=f"seconds, ResNet-18, from JPEG files: {case.title}")
            table.add_column("of")
            table.add_column("contestant")
            for column in ("wall, s", "lightly's over it", "CPU, s", "lightly's over it"):
                table.add_column(column, justify="right")
            for row in rows:
                cells = [f"{row[k]:.2f}" for key in Cost._fields for k in (key, f"{key}_ratio")]
                table.add_row(row["part"], row["contestant"], *cells)
            Console().print(table)
            result["rows"] += rows
    write("end", result, keep=not options.quick)


if __name__ == "__main__":
    main()
