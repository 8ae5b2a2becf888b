"""Steps whose loss or gradient is not finite: left out without a trace, recorded, bounded."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from children import rows
from helpers import textures, tiny_recipe, tiny_teacher, write_photos
from torch import Tensor, nn

from selfsame import checkpoint, methods, optim
from selfsame import train as loop
from selfsame.api import pretrain
from selfsame.data import open_source
from selfsame.errors import RunError
from selfsame.guard import Limits
from selfsame.recipe import with_settings
from selfsame.types import Method, Output, Progress

Poison = Callable[[str, Collection[int]], None]
NAN = float("nan")


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """Let a method see views of NaN at some steps: loss, gradient, statistics and carry are bad."""

    def apply(name: str, steps: Collection[int]) -> None:
        kind = methods.find(name)
        forward = kind.forward

        def bad(self: Method, views: Mapping[str, Tensor], t: Progress) -> Output:
            if t.step in steps:
                lost = {k: v * NAN for k, v in views.items() if v.is_floating_point()}
                views = {**views, **lost}
            return forward(self, views, t)

        monkeypatch.setattr(kind, "forward", bad)

    return apply


def state(run: Path, step: int) -> dict[str, Any]:
    """The tensors of a checkpoint by name."""
    saved = checkpoint.load(run / "checkpoints" / f"step-{step:08d}")
    slots = saved["optimizer"]["state"]
    return saved["method"] | {
        f"{i}.{name}": value for i, slot in slots.items() for name, value in slot.items()
    }


def assert_same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("method", sorted(methods.METHODS))
def test_a_step_that_is_not_finite_leaves_no_trace(
    method: str, tmp_path: Path, poison: Poison
) -> None:
    """Weights, teachers, queues, centres, running statistics and the optimiser stay."""
    photos = write_photos(tmp_path / "photos", count=24, classes=2)
    for k, name in enumerate("ab"):  # the teacher's classes
        (photos / f"class{k}").rename(photos / name)
    recipe = tiny_recipe(method, steps=4)
    if methods.find(method).taught:
        recipe = with_settings(recipe, [f"method.teacher={tiny_teacher(2)}"])
    poison(method, {2})
    run = tmp_path / "run"
    options = {"save_every": 1, "log_every": 1, "device": "cpu", "quiet": True}
    assert pretrain(method, photos, out=run, recipe=recipe, **options).finished
    third, fourth = (rows(run)[i] for i in (2, 3))
    assert third["loss"] is None
    assert fourth["loss"] is not None
    (row,) = rows(run, "nonfinite")
    assert row["step"] == 3
    assert row["loss"] == "nan"
    assert len(row["index"]) == len(set(row["index"])) == recipe.batch_size
    assert row["name"] == [open_source(photos).name(i) for i in row["index"]]
    assert "NaN" not in (run / "metrics.jsonl").read_text()
    # two checkpoints are kept: 3 and 4 after the run to its end, 2 and 3 after one that stops there
    other = tmp_path / "other"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selfsame.train.save_is_due", lambda done, *_: _stop(done, 3))
        with pytest.raises(KeyboardInterrupt):
            pretrain(method, photos, out=other, recipe=recipe, log_every=1, quiet=True)
    assert_same(state(other, 2), state(run, 3))
    pretrain(method, photos, out=other, recipe=recipe, resume=True, **options)
    assert_same(state(other, 4), state(run, 4))
    assert rows(other, "nonfinite") == rows(run, "nonfinite")


def _stop(done: int, step: int) -> bool:
    """Save until a step, and stop dead before it is saved."""
    if done == step:
        raise KeyboardInterrupt
    return True


def test_too_many_in_a_row_end_the_run_wherever_it_was_stopped(
    tmp_path: Path, poison: Poison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfsame.guard.IN_A_ROW", 4)
    poison("simclr", {1, *range(3, 30)})
    recipe = tiny_recipe("simclr", steps=30)
    go = partial(pretrain, "simclr", textures(16), recipe=recipe, save_every=1, quiet=True)
    with pytest.raises(RunError, match=r"at step 7 the loss is nan .* 4 steps in a row") as caught:
        go(out=tmp_path / "whole")
    assert "nonfinite.jsonl; the checkpoint of step 6 is kept" in str(caught.value)
    assert "optim.lr" in str(caught.value.tip)
    assert not (tmp_path / "whole" / "backbone.safetensors").exists()
    assert [row["step"] for row in rows(tmp_path / "whole", "nonfinite")] == [2, 4, 5, 6, 7]

    other = tmp_path / "other"
    with monkeypatch.context() as patch:
        patch.setattr("selfsame.train.save_is_due", lambda done, *_: _stop(done, 6))
        with pytest.raises(KeyboardInterrupt):
            go(out=other)
    with pytest.raises(RunError, match=r"at step 7 the loss is nan .* 4 steps in a row"):
        go(out=other, resume=True)
    assert rows(other, "nonfinite") == rows(tmp_path / "whole", "nonfinite")
    assert_same(state(other, 6), state(tmp_path / "whole", 6))


def test_too_many_in_all_end_the_run(
    tmp_path: Path, poison: Poison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfsame.guard.IN_A_ROW", 3)
    poison("simclr", {2, 4, 6, 8, 10, 12, 14})
    recipe = tiny_recipe("simclr", steps=30)
    with pytest.raises(RunError, match=r"at step 13 .* and 6 steps were not finite"):
        pretrain("simclr", textures(16), out=tmp_path / "run", recipe=recipe, quiet=True)


def test_limits_grow_with_the_run_and_a_run_of_nothing_fails() -> None:
    assert Limits.of(5) == (5, 20)
    assert Limits.of(200) == (10, 20)
    assert Limits.of(100_000) == (10, 1000)


def test_a_diverging_run_stops_and_is_never_saved(tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = tiny_recipe("simclr", steps=30, optim__lr=1e30, optim__warmup=0, optim__name="sgd")
    with pytest.raises(RunError, match="not finite") as caught:
        pretrain("simclr", textures(16), out=run, recipe=recipe, save_every=1, quiet=True)
    assert "learning rate" in str(caught.value.tip)
    newest = checkpoint.latest(run / "checkpoints")
    if newest is not None:
        saved = checkpoint.load(newest)["method"]
        assert all(torch.isfinite(v).all() for v in saved.values() if v.is_floating_point())
    assert not (run / "backbone.safetensors").exists()
    for line in (run / "metrics.jsonl").read_text().splitlines() if rows(run) else []:
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_a_device_that_is_asked_now_and_then_ends_with_the_same_bits(
    tmp_path: Path, poison: Poison, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the bad steps are found late, and the run goes back and finds them again."""
    poison("byol", {4, 5, 13})
    recipe = tiny_recipe("byol", steps=16)
    go = partial(pretrain, "byol", textures(16), recipe=recipe, log_every=7, save_every=3)
    go(out=tmp_path / "careful", quiet=True)
    asked: list[bool] = []
    steps = loop._train

    def noted(*args: Any, careful: bool) -> tuple[int, bool]:
        asked.append(careful)
        return steps(*args, careful=careful)

    monkeypatch.setattr("selfsame.judge.EVALUATIONS", 1)  # each asks, too
    monkeypatch.setattr(loop, "_train", noted)
    monkeypatch.setattr("selfsame.api.train", partial(loop.train, careful=False))
    go(out=tmp_path / "carefree", quiet=True)
    assert asked == [False, True]
    assert_same(state(tmp_path / "carefree", 16), state(tmp_path / "careful", 16))
    for name in ("metrics", "nonfinite"):
        assert rows(tmp_path / "carefree", name) == rows(tmp_path / "careful", name)
    assert "step 6 or one before it is not finite" in (tmp_path / "carefree/log.txt").read_text()


def test_what_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module.register_buffer("mask", torch.tensor([0.0, float("-inf")]))  # as attention has them
    optimizer = optim.build(module, optim.Optim(name="adamw"), 4)
    module(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    checkpoint.save(tmp_path, 1, module, optimizer)
    assert (tmp_path / "step-00000001").is_dir()
    slot = optimizer.state[module[0].weight]
    for value, name in (
        (module[0].weight.data, "0.weight"),
        (module[1].running_mean, "1.running_mean"),
        (slot["exp_avg"], "the optimiser's exp_avg of parameter 0"),
    ):
        kept = value[0].clone()
        value[0] = NAN
        with pytest.raises(RunError, match=f"after step 2 the values of {name} are not") as caught:
            checkpoint.save(tmp_path, 2, module, optimizer)
        assert "from step 1 in a new run" in str(caught.value.tip)
        value[0] = kept
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
