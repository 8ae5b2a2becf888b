"""The engine under bad luck: killed, interrupted, out of disk, off the rails."""

from __future__ import annotations

import resource
import signal
from pathlib import Path
from shutil import rmtree
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from children import rows
from helpers import textures, tiny_recipe, write_photos

from selfsame import optim
from selfsame.api import pretrain
from selfsame.errors import DataError, RunError, UsageError
from selfsame.judge import Judge
from selfsame.methods.simclr import SimCLR
from selfsame.run import RunDirectory
from selfsame.types import Method, Progress


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
        with pytest.raises(RunError, match="cannot write the checkpoint of step 4") as caught:
            pretrain("simclr", data, out=run, recipe=recipe, resume=True, quiet=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "from step 2" in str(caught.value.tip)
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000002"]
    pretrain("simclr", data, out=run, recipe=recipe, resume=True, quiet=True)
    assert rows(run)[-1]["step"] == 4


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


def test_speed_is_that_of_the_steps_whatever_is_judged_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]  # seconds: a step takes one, an evaluation a thousand
    clip = optim.clip

    def step(*args: Any) -> torch.Tensor:
        now[0] += 1
        return clip(*args)

    def judge(self: Judge, method: Method, step: int) -> None:
        now[0] += 1000

    def speeds() -> list[float]:
        return [row["images_per_second"] for row in RunDirectory.open(run).rows("metrics")]

    monkeypatch.setattr("selfsame.train.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(optim, "clip", step)
    monkeypatch.setattr(Judge, "__call__", judge)
    run, recipe, data = tmp_path / "run", tiny_recipe("simclr", steps=12), textures(16)
    options: dict[str, Any] = {"out": run, "save_every": 6, "log_every": 4, "quiet": True}
    pretrain("simclr", data, recipe=recipe, **options)
    assert speeds() == [8.0, 8.0, 8.0]
    rmtree(run / "checkpoints" / "step-00000012")
    pretrain("simclr", data, resume=True, **options)  # from step 6, in the middle of an interval
    assert speeds() == [8.0, 8.0, 8.0]


def test_half_a_launch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="RANK, MASTER_ADDR, MASTER_PORT are not set"):
        pretrain("simclr", textures(16), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


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
