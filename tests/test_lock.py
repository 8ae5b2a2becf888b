"""Two runs in one directory are refused; what a dead process left refuses nobody."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import textures, tiny_recipe

from selfsame import lock
from selfsame.api import evaluate, pretrain
from selfsame.errors import UsageError
from selfsame.lock import locked
from selfsame.run import RunDirectory

HOLD = (
    "import sys; from pathlib import Path; from selfsame.lock import locked\n"
    "with locked(Path(sys.argv[1]), 'it'): print('held', flush=True); sys.stdin.read()"
)


def hold(file: Path) -> subprocess.Popen[str]:
    """Another process that has the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    run, data, recipe = tmp_path / "run", textures(16), tiny_recipe("simclr", steps=2)
    pretrain("simclr", data, out=run, recipe=recipe, quiet=True)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    other = hold(run / "lock")
    for resume in (True, False):
        with pytest.raises(UsageError) as caught:
            pretrain("simclr", data, out=run, recipe=recipe, resume=resume, quiet=True)
        who = f"process {other.pid} on {socket.gethostname()} since 20"
        assert f"{run} is in use by {who}" in str(caught.value)
        assert f"kill {other.pid}" in str(caught.value.tip)
    # readers need no lock
    val = [(image, i % 2) for i, image in enumerate(textures(12))]
    assert evaluate(run, val, protocols=["knn"], controls=False)["results"]
    same = [p for p in before if p.name != "eval.jsonl" and not p.name.startswith("events.")]
    assert {p: p.read_bytes() for p in same} == {p: before[p] for p in same}
    other.send_signal(signal.SIGKILL)
    other.communicate()
    assert str(other.pid) in (run / "lock").read_text()  # it could not tidy up
    pretrain("simclr", data, out=run, recipe=recipe, resume=True, quiet=True)
    assert not (run / "lock").exists()


def test_a_run_that_begins_is_protected_before_it_is_one(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    other = hold(run / "lock")
    with pytest.raises(UsageError, match="in use by process"):
        pretrain("simclr", textures(16), out=run, recipe=tiny_recipe("simclr"), quiet=True)
    other.communicate("")
    assert list(run.iterdir()) == []


def test_the_lock_excludes_other_runs_of_this_process_too(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with locked(file, "it") as held:
        assert held
        with pytest.raises(UsageError, match=f"it is in use by process {os.getpid()}"):
            locked(file, "it").__enter__()
        file.write_text("half a l")
        with pytest.raises(UsageError, match="it is in use by another process"):
            locked(file, "it").__enter__()
    assert not file.exists()


def test_a_lock_whose_file_was_deleted_leaves_the_new_one_alone(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with locked(file, "it"):
        file.unlink()  # somebody deleted the folder, and began a new run there
        with locked(file, "it"):
            pass
        with locked(file, "it"):
            new = file.read_text()
            first = locked(tmp_path / "other", "it")
            with first:
                pass
            assert file.read_text() == new
    assert not file.exists()


def test_of_many_takers_one_has_it_at_a_time(tmp_path: Path) -> None:
    """Holders remove the file while others open it: the lock must be that of the file there is."""
    code = (
        "import os, sys, time; from pathlib import Path\n"
        "from selfsame.lock import locked; from selfsame.errors import UsageError\n"
        "folder, wins, end = Path(sys.argv[1]), 0, time.monotonic() + 1.0\n"
        "while time.monotonic() < end:\n"
        "    try:\n"
        "        with locked(folder / 'lock', 'it'):\n"
        "            os.close(os.open(folder / 'inside', os.O_CREAT | os.O_EXCL))\n"
        "            os.unlink(folder / 'inside')\n"
        "            wins += 1\n"
        "    except UsageError:\n"
        "        pass\n"
        "print(wins)"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    takers = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    wins = [taker.communicate()[0] for taker in takers]
    assert all(taker.returncode == 0 for taker in takers)  # else two were inside at once
    assert sum(map(int, wins)) > 100


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_take", no_locks)
    run = tmp_path / "run"
    pretrain("simclr", textures(16), out=run, recipe=tiny_recipe("simclr", steps=1))
    assert f"no locks on this file system: start no other run in {run}" in capsys.readouterr().err
    assert not (run / "lock").exists()


def test_a_folder_that_cannot_be_written_is_an_error_with_a_tip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    run = tmp_path / "run"
    monkeypatch.setattr(lock.os, "open", refuse)
    with pytest.raises(UsageError, match=r"cannot write to .*Read-only file system") as caught:
        RunDirectory(run).lock().__enter__()
    assert "--out" in str(caught.value.tip)
    assert list(run.iterdir()) == []
