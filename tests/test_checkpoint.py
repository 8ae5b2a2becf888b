"""Checkpoints and rows on a disk that decays, fills up or refuses."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from children import rows
from faults import Faults
from helpers import textures, tiny_recipe
from safetensors.torch import load_file
from torch import nn

from selfsame import checkpoint, encoder, optim
from selfsame.api import pretrain
from selfsame.errors import RunError, UsageError
from selfsame.files import SUMS, atomic, damage, reason, refused, seal
from selfsame.run import RunDirectory


def go(out: Path, *, resume: bool = False, **options: Any) -> Any:
    return pretrain(
        "simclr",
        textures(16),
        out=out,
        recipe=tiny_recipe("simclr", steps=4),
        resume=resume,
        log_every=1,
        device="cpu",
        **options,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    go(out, save_every=2, quiet=True)
    return out


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


@pytest.mark.parametrize("how", ["a bit", "cut short", "empty", "gone", "sums cut short"])
def test_the_checkpoint_before_a_damaged_one_serves(
    how: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    newest = run / "checkpoints" / "step-00000004"
    file = newest / "state.pt"
    if how == "a bit":
        flip(file, random.randrange(8 * file.stat().st_size))
    elif how == "cut short":
        os.truncate(file, file.stat().st_size // 2)
    elif how == "empty":
        os.truncate(file, 0)
    elif how == "gone":
        file.unlink()
    else:
        os.truncate(newest / SUMS, 30)
    capsys.readouterr()
    assert go(run, resume=True).finished
    said = capsys.readouterr().err
    assert f"damaged    cannot read the checkpoint {newest}: " in said
    assert "going back to the one before it\ncontinuing from step 2 of 4\n" in said
    assert sorted(p.name for p in newest.parent.iterdir()) == ["step-00000002", "step-00000004"]
    assert damage(newest) is None
    ours, theirs = (load_file(x / "backbone.safetensors") for x in (run, whole))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert rows(run) == rows(whole)


def test_a_damaged_checkpoint_is_dropped_by_the_next_that_is_saved(
    whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole / "checkpoints", tmp_path / "c")
    flip(tmp_path / "c" / "step-00000004" / "state.pt", 4000)
    (tmp_path / "c" / ".tmp-step-00000009").mkdir()  # of a process that was killed
    module = nn.Linear(2, 2)
    checkpoint.save(tmp_path / "c", 3, module, optim.build(module, optim.Optim(), 4))
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["step-00000002", "step-00000003"]


def test_where_all_are_damaged_nothing_is_begun(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for each in (run / "checkpoints").iterdir():
        flip(each / "state.pt", 8000)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != "log.txt"}
    with pytest.raises(RunError, match=r"cannot read the checkpoint .*step-00000002") as caught:
        go(run, resume=True, quiet=True)
    assert f"delete {run / 'checkpoints'}" in str(caught.value.tip)
    assert {p: p.read_bytes() for p in before} == before


def test_a_reader_takes_the_newest_good_checkpoint(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "card.json").unlink()
    assert encoder.load(run, device="cpu").dim == 64
    flip(run / "checkpoints" / "step-00000004" / "state.pt", 5000)
    assert encoder.load(run, device="cpu").dim == 64
    assert "step-00000004" in capsys.readouterr().err
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UsageError, match="has no checkpoint yet"):
        encoder.load(run, device="cpu")


def test_a_reader_begins_again_where_the_run_went_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoints that were listed are dropped before they are read."""
    folder = tmp_path / "c"
    shutil.copytree(whole / "checkpoints", folder)
    load = checkpoint.load

    def later(path: Path) -> dict[str, Any]:
        monkeypatch.setattr(checkpoint, "load", load)
        for old in list(folder.iterdir()):
            old.rename(folder / f"step-{checkpoint.step_of(old) + 10:08d}")
        return load(path)

    monkeypatch.setattr(checkpoint, "load", later)
    said: list[str] = []
    state = checkpoint.load_latest(folder, said.append)
    assert state is not None
    assert state["step"] == 4
    assert said == []


def test_any_flipped_bit_of_a_sealed_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    files = [tmp_path / "a b", tmp_path / "deep" / "c"]
    for file in files:
        file.write_bytes(os.urandom(50))
    seal(tmp_path)
    assert damage(tmp_path) is None
    for file in [*files, tmp_path / SUMS]:
        content = file.read_bytes()
        for bit in range(0, 8 * len(content), 7):
            flip(file, bit)
            assert damage(tmp_path), (file, bit)
            file.write_bytes(content)
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "-c", SUMS], cwd=tmp_path, check=True, capture_output=True)


def test_a_file_or_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """Every operation of a replacement fails once; what was there is there, or what replaced it."""
    for folder in (False, True):
        for number in range(1, 40):
            place = tmp_path / f"{folder}-{number}"
            final = place / "it"
            (final if folder else place).mkdir(parents=True)
            (final / "x" if folder else final).write_text("old")
            with Faults(place, "error", number) as faults:
                try:
                    with atomic(final) as temporary:
                        if folder:
                            temporary.mkdir()
                        (temporary / "x" if folder else temporary).write_text("new")
                except OSError as error:
                    assert error.errno == errno.EIO
            found = (final / "x" if folder else final).read_text()
            assert found == "new" if not faults.injected else found in ("old", "new"), faults.log
        assert faults.injected == 0  # all operations had their turn


def test_rows_are_whole_or_absent(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.append("metrics", [{"step": 1}])
    with Faults(tmp_path, "full", 2), pytest.raises(RunError, match="No space left") as caught:
        run.append("metrics", [{"step": 2}, {"step": 3}])
    assert "free some disk space" in str(caught.value.tip)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    with Faults(tmp_path, "short", 1):
        run.append("metrics", [{"step": 2, "loss": float("inf"), "more": 1.0}])
    assert run.rows("metrics") == [{"step": 1}, {"step": 2, "loss": None, "more": 1.0}]
    long = json.dumps({"step": 3, "name": "x" * 10_000})
    for half in ('{"st', long, "\0\0\0"):  # a crash, of the machine for the last
        with (tmp_path / "metrics.jsonl").open("a") as stream:
            stream.write(half)
        assert [row["step"] for row in run.rows("metrics")][-1] == 2
    run.append("metrics", [{"step": 4}])
    assert [row["step"] for row in run.rows("metrics")] == [1, 2, 4]
    run.rewind(2)
    assert [row["step"] for row in run.rows("metrics")] == [1, 2]


@pytest.mark.parametrize(
    ("code", "tip"),
    [(errno.ENOSPC, "free some disk space"), (errno.EROFS, "writable"), (errno.EIO, "check the")],
)
def test_the_tip_fits_the_error(code: int, tip: str) -> None:
    system = OSError(code, os.strerror(code))
    library = RuntimeError("[enforce fail at inline_container.cc:595]\nstack")
    library.__context__ = system
    for error in (system, library):
        assert reason(error) == os.strerror(code)
        assert tip in str(refused("it", error).tip)
    assert reason(RuntimeError("one\ntwo")) == "one"
