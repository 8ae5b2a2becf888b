"""Signals: a run saves and stops, whatever it is at, and the same command goes on from there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from children import command, rows, start_and_wait
from helpers import textures, tiny_recipe, write_photos

from selfsame import checkpoint, interrupt
from selfsame.api import pretrain
from selfsame.cli import main
from selfsame.data import Images
from selfsame.interrupt import SIGNALS, Interrupt
from selfsame.methods.simclr import SimCLR

STEPS = 6
VAL = [(image, i % 2) for i, image in enumerate(textures(12, seed=1))]


def go(out: Path, *, resume: bool = False, **options: Any) -> Any:
    return pretrain(
        "simclr",
        textures(16),
        out=out,
        recipe=tiny_recipe("simclr", steps=STEPS),
        log_every=1,
        resume=resume,
        device="cpu",
        quiet=True,
        **options,
    )


@pytest.fixture(scope="module", autouse=True)
def _time_for_every_evaluation() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selfsame.evals.online.FREE", 1e9)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert go(out, val=VAL).finished
    return out


def assert_same(run: Path, whole: Path) -> None:
    assert (run / "backbone.safetensors").read_bytes() == (
        whole / "backbone.safetensors"
    ).read_bytes()
    assert rows(run) == rows(whole)


def steps(run: Path) -> list[str]:
    return sorted(p.name for p in (run / "checkpoints").iterdir())


def at(method: Any, name: str, when: int, then: Callable[[], None], patch: Any) -> None:
    """Do something when a function is called for the n-th time, from 1, before it does its work."""
    calls = 0
    function = getattr(method, name)

    def wrapped(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == when:
            then()
        return function(*args, **options)

    patch.setattr(method, name, wrapped)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_a_step_saves_after_it(
    number: int, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with monkeypatch.context() as patch:
        at(SimCLR, "after_step", 3, partial(signal.raise_signal, number), patch)
        result = go(tmp_path / "run")
    assert (result.finished, result.steps, result.signal) == (False, 3, number)
    assert steps(tmp_path / "run") == ["step-00000003"]
    assert [signal.getsignal(each) for each in SIGNALS] == before
    result = go(tmp_path / "run", resume=True)
    assert (result.finished, result.steps, result.signal) == (True, STEPS, None)
    assert_same(tmp_path / "run", whole)


def test_a_signal_in_an_evaluation_leaves_it_and_the_next_run_makes_up_for_it(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    told: list[str] = []

    def interrupted() -> None:
        signal.raise_signal(signal.SIGTERM)
        told.append("the evaluation went on")

    for when in (4, 1):  # in the fourth; then again in the one that makes up for it
        with monkeypatch.context() as patch:
            at(sys.modules["selfsame.evals.online"], "knn", when, interrupted, patch)
            result = go(run, val=VAL, resume=True)
        assert (result.finished, result.steps, told) == (False, 4, [])
        assert steps(run) == ["step-00000004"]
        assert [r["step"] for r in rows(run, "eval") if r["protocol"] == "knn"] == [1, 2, 3]
    assert go(run, val=VAL, resume=True).finished
    assert_same(run, whole)
    ours, theirs = ([r for r in rows(x, "eval") if r["protocol"] == "knn"] for x in (run, whole))
    assert ours == theirs


def test_a_signal_in_the_last_evaluation_leaves_the_run_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop = partial(signal.raise_signal, signal.SIGTERM)
        at(sys.modules["selfsame.evals.online"], "knn", STEPS, stop, patch)
        result = go(run, val=VAL)
    assert (result.finished, result.steps) == (False, STEPS)
    assert go(run, val=VAL, resume=True).finished
    assert [r["step"] for r in rows(run, "eval") if r["protocol"] == "knn"][-1] == STEPS


def test_a_signal_while_the_first_images_are_read(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reading is done by another thread, the main one waits for it."""
    stop = partial(os.kill, os.getpid(), signal.SIGTERM)
    with monkeypatch.context() as patch:
        at(Images, "batch", 3, stop, patch)  # two are for the estimate of the memory
        result = go(tmp_path / "run")
    assert (result.finished, result.steps) == (False, 1)
    assert steps(tmp_path / "run") == ["step-00000001"]
    assert go(tmp_path / "run", resume=True).finished
    assert_same(tmp_path / "run", whole)


def test_a_signal_while_a_checkpoint_is_written(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        at(checkpoint, "seal", 2, partial(signal.raise_signal, signal.SIGTERM), patch)
        result = go(tmp_path / "run", save_every=1)
    assert (result.finished, result.steps) == (False, 2)
    assert steps(tmp_path / "run") == ["step-00000001", "step-00000002"]
    assert go(tmp_path / "run", resume=True).finished
    assert_same(tmp_path / "run", whole)


def test_ctrl_c_twice_while_a_checkpoint_is_written(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        at(checkpoint, "seal", 2, twice, patch)
        patch.setattr(interrupt, "TWICE", -1.0)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "run", save_every=1)
    assert steps(tmp_path / "run") == ["step-00000001"]
    assert go(tmp_path / "run", resume=True).finished
    assert_same(tmp_path / "run", whole)


def test_another_signal_changes_nothing_the_same_again_ends_the_process() -> None:
    """Batch systems send SIGUSR1, then SIGTERM; only the second SIGTERM is meant to kill."""
    code = (
        "import signal; from selfsame import interrupt as module\n"
        "module.TWICE = -1.0\n"
        "with module.Interrupt() as interrupt:\n"
        "    signal.raise_signal(signal.SIGUSR1); signal.raise_signal(signal.SIGTERM)\n"
        "    assert interrupt.signal == signal.SIGUSR1\n"
        "    print('alive', flush=True)\n"
        "    signal.raise_signal(signal.SIGUSR1)\n"
        "    print('undead')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGUSR1, "alive\n"), done.stderr


def test_a_block_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt = Interrupt()
    with interrupt, interrupt.leaving():
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("it was not left")
    assert interrupt.signal == signal.SIGTERM
    with interrupt, interrupt.leaving():  # asked already: nothing more to say
        left = False
    assert not left
    with pytest.raises(ValueError, match="its own"), Interrupt().leaving():
        raise ValueError("its own")


def test_a_process_stops_with_a_checkpoint_and_an_exit_code_and_requeues(tmp_path: Path) -> None:
    photos, run = write_photos(tmp_path / "photos", count=30), tmp_path / "run"
    words = command(photos, run, "--save-every", "1000", "--resume")  # from nothing
    process = start_and_wait(words, run, 5)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM == 143
    assert "continue with --resume" in said
    assert "Traceback" not in said
    newest = checkpoint.latest(run / "checkpoints")
    assert newest is not None
    assert checkpoint.step_of(newest) == rows(run)[-1]["step"] >= 5
    assert (run / "backbone.safetensors").exists()
    assert not (run / "lock").exists()
    assert main(words[3:]) == 0
    assert [row["step"] for row in rows(run)] == list(range(1, 41))


@pytest.mark.parametrize("left", [[], ["run.json"], ["run.json", ".tmp-recipe.toml", "lock"]])
@pytest.mark.parametrize("resume", [True, False])
def test_a_run_that_was_killed_before_it_had_a_recipe_begins_anew(
    left: list[str], resume: bool, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "log.txt").write_text("data  half a li")
    for name in left:
        (run / name).write_text('{"half": a')
    assert go(run, resume=resume).finished
    assert not {"lock", ".tmp-recipe.toml"} & {p.name for p in run.iterdir()}
    assert "half" not in (run / "log.txt").read_text()


def test_resuming_a_run_that_is_over_does_nothing_anew(tmp_path: Path, whole: Path) -> None:
    before = torch.load(whole / "checkpoints" / f"step-{STEPS:08d}" / "state.pt")["step"]
    result = go(whole, resume=True)
    assert result.finished
    assert result.steps == before == STEPS
    assert [row["step"] for row in rows(whole)] == list(range(1, STEPS + 1))
