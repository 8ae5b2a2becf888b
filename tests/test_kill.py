"""Killed at any moment, on a disk that fails at any moment: a run goes on to the same bits.

Most faults strike in this process, where `Faults` leaves on the disk what a killed one would leave;
others are SIGKILL to real processes, from inside an operation and from outside. Both print how many
there were.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from children import STEPS, arguments, command, rows, start_and_wait
from faults import KINDS, Faults, Killed
from helpers import textures, tiny_recipe, write_photos

from selfsame import checkpoint
from selfsame.api import pretrain
from selfsame.cli import main
from selfsame.errors import SelfsameError
from selfsame.files import damage

FAULTS_PROGRAM = str(Path(__file__).parent / "faults.py")


def train(out: Path, *, resume: bool = True) -> None:
    """Three steps, each with a checkpoint, a line of metrics and an evaluation."""
    pretrain(
        "simclr",
        textures(16),
        out=out,
        recipe=tiny_recipe("simclr", steps=3),
        val=[(image, i % 2) for i, image in enumerate(textures(12, seed=1))],
        save_every=1,
        log_every=1,
        resume=resume,
        device="cpu",
        quiet=True,
    )


def remains(run: Path) -> dict[str, Any]:
    """All that a finished run leaves but for the clock: bytes of files, values, rows."""
    newest = checkpoint.latest(run / "checkpoints")
    assert newest is not None
    state = checkpoint.load(newest)
    evaluations = {str(sorted(row.items())) for row in rows(run, "eval")}  # the last may be twice
    files = ("backbone.safetensors", "card.json", "recipe.toml")
    return {
        "state": list(tensors(state)),
        "names": sorted(p.name for p in run.iterdir() if not p.name.startswith("events.")),
        "checkpoints": sorted(p.name for p in (run / "checkpoints").iterdir()),
        "metrics": rows(run),
        "eval": evaluations,
        **{name: (run / name).read_bytes() for name in files},
    }


def tensors(value: Any, name: str = "state") -> Iterable[tuple[str, Any]]:
    """The leaves of a checkpoint with their names; tensors as bytes."""
    if isinstance(value, torch.Tensor):
        yield name, (value.dtype, value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in items:
            yield from tensors(each, f"{name}.{key}")
    else:
        yield name, value


def strike(run: Path, kind: str, number: int) -> int:
    """One run with a fault, then on to its end; how many operations failed.

    Raises:
        AssertionError: what the fault left is not whole.
    """
    told = f"{kind} at operation {number}"
    with Faults(run, kind, number) as faults:
        try:
            train(run)
        except Killed:
            assert kind == "kill", told
        except SelfsameError as error:
            assert error.tip, told
            assert kind in ("full", "error", "readonly"), f"{told}: {error}"
            reason = {"full": "No space left", "error": "Input/output", "readonly": "Read-only"}
            assert reason[kind] in str(error), f"{told}: {error}"
    told += f" ({faults.log[number - 1]})" if number <= len(faults.log) else " (never reached)"
    whole = {p.name for p in (run / "checkpoints").glob("step-*")}
    assert all(damage(run / "checkpoints" / name) is None for name in whole), told
    saved = [line for line in faults.log[: number - 1] if line.startswith("replace checkpoints/")]
    done = [line.rpartition(".tmp-")[2] for line in saved if "state" not in line]
    newest = max(done, default=None)
    assert newest is None or max(whole, default="") >= newest, f"{told}: lost {newest}"
    train(run)
    return faults.injected


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    """What an undisturbed run leaves, and its operations."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with Faults(run) as faults:
        train(run, resume=False)
    return remains(run), faults.log


def check(run: Path, expected: dict[str, Any], told: str) -> None:
    found = remains(run)
    for key, value in expected.items():
        if key == "state":
            for (name, ours), (other, theirs) in zip(found[key], value, strict=True):
                assert (name, ours) == (other, theirs), f"{name} differs: {told}"
        else:
            assert found[key] == value, f"{key}: {told}"


def moments(log: list[str]) -> list[int]:
    """One operation, from 1, of each sort that follow each other; of many writes the first two."""
    chosen = []
    for i, line in enumerate(log):
        if log[max(0, i - 2) : i] != [line, line]:
            chosen.append(i + 1)
    return chosen


def sweep(
    tmp_path: Path, whole: tuple[dict[str, Any], list[str]], faults: Iterable[tuple[str, int]]
) -> None:
    expected, log = whole
    count: Counter[str] = Counter()
    for kind, number in faults:
        run = tmp_path / f"{kind}-{number}"
        count[kind] += strike(run, kind, number)
        check(run, expected, f"{kind} at operation {number}: {log[number - 1]}")
    short = count.pop("short")
    words = ", ".join(f"{n} x {kind}" for kind, n in count.items())
    print(
        f"\n{sum(count.values())} faults injected ({words}) and {short} writes cut short, "
        f"in runs of {len(log)} operations"
    )


def test_faults_at_some_operations_change_nothing(
    tmp_path: Path, whole: tuple[dict[str, Any], list[str]]
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    choose = random.Random(seed)
    sweep(tmp_path, whole, [(kind, choose.choice(moments(whole[1]))) for kind in KINDS * 2])


@pytest.mark.slow
def test_faults_at_every_operation_change_nothing(
    tmp_path: Path, whole: tuple[dict[str, Any], list[str]]
) -> None:
    """Six minutes on one core."""
    chosen = moments(whole[1])
    faults = [(kind, number) for kind in KINDS if kind != "short" for number in chosen]
    sweep(tmp_path, whole, [*faults, ("short", 1)])


def kill_from_outside(photos: Path, run: Path, step: int) -> int:
    """SIGKILL a process of the run when it has logged a step."""
    process = start_and_wait(command(photos, run, "--resume"), run, step)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return process.returncode


def kill_from_inside(photos: Path, run: Path, number: int) -> int:
    """A process of the run that is killed in the middle of an operation on the disk."""
    words = [sys.executable, FAULTS_PROGRAM, str(run), "kill", str(number)]
    done = subprocess.run(
        [*words, *arguments(photos, run, "--resume")], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def test_real_processes_that_are_killed_end_with_the_same_bits(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    choose = random.Random(seed)
    photos, run, other = write_photos(tmp_path / "photos", count=30), tmp_path / "a", tmp_path / "b"
    assert kill_from_inside(photos, run, choose.randrange(30, 300)) == -signal.SIGKILL
    assert kill_from_outside(photos, run, choose.randrange(10, 30)) == -signal.SIGKILL
    for each in (run, other):
        assert main(arguments(photos, each, "--resume")) == 0
    check(run, remains(other), f"seed {seed}")
    print("2 processes killed")


@pytest.mark.slow
def test_fifty_processes_that_are_killed_end_with_the_same_bits(tmp_path: Path) -> None:
    """Four minutes on one core. Every other one is killed at a random time, whatever it does.

    Half of those while they start, half within the steps that follow, so that a run ends before it
    is killed on no machine.
    """
    seed = random.randrange(2**32)
    choose = random.Random(seed)
    photos, run, other = write_photos(tmp_path / "photos", count=30), tmp_path / "a", tmp_path / "b"
    steps = 20 * STEPS
    inside = outside = 0
    while inside + outside < 50:
        more = arguments(photos, run, "--resume", "--save-every", "1", steps=steps)
        if (inside + outside) % 2:
            number = str(choose.randrange(1, 400))
            words = [sys.executable, FAULTS_PROGRAM, str(run), "kill", number, *more]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            assert done.returncode == -signal.SIGKILL, f"seed {seed}: {done.stderr}"
            inside += 1
        else:
            told = [sys.executable, "-m", "selfsame", *more]
            if choose.random() < 0.5:
                process = subprocess.Popen(told, stderr=subprocess.PIPE, text=True)
                time.sleep(choose.uniform(0, 2))
            else:
                done_so_far = rows(run)[-1]["step"] if rows(run) else 0
                process = start_and_wait(told, run, done_so_far + choose.randrange(1, 4))
                time.sleep(choose.uniform(0, 0.1))
            process.kill()
            process.communicate()
            assert process.returncode == -signal.SIGKILL, f"seed {seed}: the run was over"
            outside += 1
        for path in (run / "checkpoints").glob("step-*"):
            assert damage(path) is None, f"seed {seed}"
    for each in (run, other):
        words = command(photos, each, "--resume", "--save-every", "1", steps=steps)
        subprocess.run(words, check=True, capture_output=True)
    check(run, remains(other), f"seed {seed}")
    print(f"\n{inside} processes killed inside an operation, {outside} at a random time")
