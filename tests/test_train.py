"""The engine under bad luck: killed, interrupted, out of disk, off the rails."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import textures, tiny_recipe, tiny_settings, write_photos
from safetensors.torch import load_file

from selfsame import checkpoint
from selfsame.api import pretrain
from selfsame.errors import DataError, RunError, UsageError
from selfsame.methods.simclr import SimCLR
from selfsame.types import Progress

STEPS = 40


def command(photos: Path, out: Path, *more: str) -> list[str]:
    settings = [word for s in tiny_settings() for word in ("--set", s)]
    return [
        *(sys.executable, "-m", "selfsame", "pretrain", "simclr", str(photos), "--out", str(out)),
        *("--steps", str(STEPS), "--batch-size", "8", "--recipe", "small", "--device", "cpu"),
        *("--save-every", "4", "--log-every", "1", *settings, *more),
    ]


def rows(run: Path, name: str = "metrics") -> list[dict[str, float]]:
    file = run / f"{name}.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [
        {k: v for k, v in row.items() if k not in ("images_per_second", "waiting")} for row in found
    ]


def start_and_wait(arguments: list[str], run: Path, step: int) -> subprocess.Popen[str]:
    """Start a run and return once it has logged ``step``."""
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        logged = rows(run)
        if logged and logged[-1]["step"] >= step:
            return process
        time.sleep(0.002)
    if process.poll() is None:
        process.kill()
    raise AssertionError(f"the run never reached step {step}: {process.communicate()[1]}")


def test_killed_at_three_random_steps_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", count=30)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    pretrain(
        "simclr",
        photos,
        out=whole,
        recipe="small",
        steps=STEPS,
        batch_size=8,
        settings=tiny_settings(),
        log_every=1,
        device="cpu",
        quiet=True,
    )
    seed = random.randrange(2**32)
    kills = sorted(random.Random(seed).sample(range(1, STEPS - 8), 3))
    for step in kills:
        more = ["--resume"] if broken.exists() else []
        process = start_and_wait(command(photos, broken, *more), broken, step)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    subprocess.run(command(photos, broken, "--resume"), check=True, capture_output=True)

    told = f"killed at steps {kills}, seed {seed}"
    assert rows(broken) == rows(whole), told
    ours, theirs = (load_file(run / "backbone.safetensors") for run in (broken, whole))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), f"{key}: {told}"
    last = checkpoint.load(checkpoint.latest(broken / "checkpoints") or broken)
    other = checkpoint.load(checkpoint.latest(whole / "checkpoints") or whole)
    for i, state in last["optimizer"]["state"].items():
        for key, value in state.items():
            assert torch.equal(value, other["optimizer"]["state"][i][key]), told


def test_ctrl_c_ends_cleanly_with_a_checkpoint_that_continues(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", count=30)
    run = tmp_path / "run"
    process = start_and_wait(command(photos, run, "--save-every", "1000"), run, 5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "continue with --resume" in said
    assert "Traceback" not in said
    newest = checkpoint.latest(run / "checkpoints")
    assert newest is not None
    assert checkpoint.step_of(newest) == rows(run)[-1]["step"] >= 5
    assert (run / "backbone.safetensors").exists()


def test_a_full_disk_keeps_what_was_saved(tmp_path: Path) -> None:
    """The limit on the size of a file stands for the disk: writing past it fails with an errno."""
    run = tmp_path / "run"
    recipe = tiny_recipe("simclr", steps=4)
    data = textures(16)
    pretrain("simclr", data, out=run, recipe=recipe, save_every=2, quiet=True)
    size = (run / "checkpoints" / "step-00000004" / "state.pt").stat().st_size
    for left in ("step-00000004",):
        for file in (run / "checkpoints" / left).iterdir():
            file.unlink()
        (run / "checkpoints" / left).rmdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
    try:
        with pytest.raises(RunError, match="cannot save the checkpoint of step 4") as caught:
            pretrain("simclr", data, out=run, recipe=recipe, resume=True, quiet=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "from step 2" in str(caught.value.tip)
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000002"]
    pretrain("simclr", data, out=run, recipe=recipe, resume=True, quiet=True)
    assert rows(run)[-1]["step"] == 4


def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = tiny_recipe("simclr", steps=30, optim__lr=1e30, optim__warmup=0, optim__name="sgd")
    with pytest.raises(RunError, match="the loss is") as caught:
        pretrain("simclr", textures(16), out=run, recipe=recipe, save_every=1, quiet=True)
    assert "optim.lr" in str(caught.value.tip)
    newest = checkpoint.latest(run / "checkpoints")
    if newest is not None:
        state = checkpoint.load(newest)["method"]
        assert all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point())
    assert not (run / "backbone.safetensors").exists()


def test_resuming_with_another_recipe_names_what_differs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = tiny_recipe("simclr", steps=2)
    data = textures(16)
    pretrain("simclr", data, out=run, recipe=recipe, quiet=True)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match=r"method\.temperature: 0\.2 -> 0\.3") as caught:
        pretrain(
            "simclr", data, out=run, resume=True, settings=["method.temperature=0.3"], quiet=True
        )
    assert "seed" not in str(caught.value)
    with pytest.raises(UsageError, match=r"seed: 0 -> 5"):
        pretrain("simclr", data, out=run, resume=True, seed=5, quiet=True)
    with pytest.raises(UsageError, match="the data is not what"):
        pretrain("simclr", textures(17), out=run, resume=True, quiet=True)
    with pytest.raises(UsageError, match="not empty") as caught:
        pretrain("simclr", data, out=run, recipe=recipe, quiet=True)
    assert "--resume" in str(caught.value.tip)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_half_a_launch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="RANK, MASTER_ADDR, MASTER_PORT are not set"):
        pretrain("simclr", textures(16), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = tiny_recipe("simclr", steps=4)
    data = textures(16)
    pretrain("simclr", data, out=run, recipe=recipe, save_every=2, quiet=True)
    newest = checkpoint.latest(run / "checkpoints")
    assert newest is not None
    (newest / "state.pt").write_bytes((newest / "state.pt").read_bytes()[:100])
    with pytest.raises(RunError, match="cannot read the checkpoint") as caught:
        pretrain("simclr", data, out=run, resume=True, quiet=True)
    assert str(newest) in str(caught.value.tip)


def test_bad_images_are_listed_once_and_do_not_stop_a_run(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", count=20)
    (photos / "003.png").write_text("this is no picture")
    whole = (photos / "007.png").read_bytes()
    (photos / "007.png").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "run"
    pretrain("simclr", photos, out=out, recipe=tiny_recipe("simclr", steps=6), quiet=True)
    pretrain("simclr", photos, out=out, resume=True, quiet=True)
    found = rows(out, "bad_images")
    assert sorted(row["name"] for row in found) == ["003.png", "007.png"]
    assert all(row["reason"] for row in found)


def test_data_that_cannot_be_trained_on_leaves_no_run_behind(tmp_path: Path) -> None:
    out = tmp_path / "run"
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    for i in range(4):
        (tmp_path / "bad" / f"{i}.jpg").write_text("no picture")
    small = tmp_path / "small"
    write_photos(small, count=4)
    for data, error, words in (
        (tmp_path / "empty", DataError, "empty"),
        (tmp_path / "missing", DataError, "missing"),
        (tmp_path / "bad", DataError, "readable"),
    ):
        with pytest.raises(error, match=words) as caught:
            pretrain("simclr", data, out=out, quiet=True)
        assert caught.value.tip
    with pytest.raises(UsageError, match="batch"):
        pretrain("simclr", small, out=out, batch_size=64, quiet=True)
    with pytest.raises(UsageError, match="backbone 'resnet19'") as caught:
        pretrain("simclr", small, out=out, backbone="resnet19", quiet=True)
    assert "resnet18" in str(caught.value.tip) or "resnet1" in str(caught.value.tip)
    with pytest.raises(UsageError, match="method 'simcler'") as caught:
        pretrain("simcler", small, out=out, quiet=True)
    assert "simclr" in str(caught.value.tip)
    with pytest.raises(UsageError, match="temprature") as caught:
        pretrain("simclr", small, out=out, settings=["method.temprature=1"], quiet=True)
    assert "method.temperature" in str(caught.value.tip)
    assert not out.exists()
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UsageError, match="cannot write"):
        pretrain(
            "simclr",
            small,
            out=file / "run",
            recipe=tiny_recipe("simclr"),
            quiet=True,
            batch_size=4,
        )


def test_a_methods_hooks_are_called_when_they_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 images in batches of 8: an epoch is 3 steps; the head rests in the first epoch."""
    seen: list[tuple[int, list[int]]] = []
    weights: list[torch.Tensor] = []

    def draw(self: SimCLR, views: object, index: torch.Tensor, **key: int) -> dict[str, object]:
        return {"index": index, "epoch": torch.tensor(key["epoch"])}

    def before_epoch(self: SimCLR, t: Progress, images: object) -> list[torch.nn.Parameter]:
        batches = list(images)  # type: ignore[call-overload]
        assert all(x.shape[1:] == (3, 32, 32) for _, x in batches)
        seen.append((t.step, torch.cat([index for index, _ in batches]).tolist()))
        return [self.head[0].weight]

    def frozen(self: SimCLR, t: Progress) -> list[torch.nn.Parameter]:
        return list(self.head.parameters()) if t.epoch < 1 else []

    forward = SimCLR.forward

    def checked(self: SimCLR, views: dict[str, torch.Tensor], t: Progress) -> object:
        assert views["epoch"] == int(t.epoch)
        assert len(views["index"]) == views["global"].shape[1]
        weights.append(self.head[0].weight.detach().clone())
        return forward(self, views, t)

    for hook in (draw, before_epoch, frozen):
        monkeypatch.setattr(SimCLR, hook.__name__, hook)
    monkeypatch.setattr(SimCLR, "forward", checked)
    recipe = tiny_recipe("simclr", steps=7)
    pretrain("simclr", textures(30), out=tmp_path / "run", recipe=recipe, quiet=True)
    assert seen == [(step, list(range(30))) for step in (0, 3, 6)]
    steps = weights[-7:]  # the plan's memory estimate runs forward too
    assert all(torch.equal(w, steps[0]) for w in steps[:4])  # nor does weight decay move it
    assert not torch.equal(steps[4], steps[3])
