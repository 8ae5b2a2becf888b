"""What a teacher says, kept on the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import textures, tiny_recipe
from torch import Tensor

from selfsame import plan
from selfsame.api import pretrain
from selfsame.data.arrays import ArraySource
from selfsame.errors import RunError
from selfsame.memo import Memo, rounded
from selfsame.plan import Choices
from selfsame.recipe import with_settings

SHAPES = {"pooled": (3,), "stage0": (2, 2, 2)}


def rows(numbers: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    every = {k: torch.randn(10, *shape, generator=generator) for k, shape in SHAPES.items()}
    return {name: value[numbers] for name, value in every.items()}


def never() -> dict[str, Tensor]:
    raise AssertionError("these rows were there")


def test_rows_are_computed_once_and_are_the_same_when_read(tmp_path: Path) -> None:
    some, others = torch.tensor([4, 1, 7]), torch.tensor([1, 2])
    memo = Memo(tmp_path / "m", 10, SHAPES)
    first = memo.get(some, lambda: rows(some))
    for again in (memo, Memo(tmp_path / "m", 10, SHAPES)):  # another process reads the same
        back = again.get(some[[2, 0]], never)
        for name in SHAPES:
            assert torch.equal(back[name], first[name][[2, 0]])
            assert torch.equal(first[name], rounded(rows(some)[name]))
    memo.get(others, lambda: rows(others))  # one of them is missing
    memo.get(torch.tensor([4, 1, 7, 2]), never)
    assert (memo.computed, memo.reused) == (5, 6)


def test_damaged_rows_are_computed_again(tmp_path: Path) -> None:
    some = torch.arange(10)
    Memo(tmp_path, 10, SHAPES).get(some, lambda: rows(some))
    file = tmp_path / "pooled.bin"
    data = bytearray(file.read_bytes())
    data[3 * 2 * 3] ^= 1  # of row 3
    file.write_bytes(data)
    memo = Memo(tmp_path, 10, SHAPES)
    memo.get(some[:3], never)
    back = memo.get(some[3:4], lambda: rows(some[3:4]))
    assert memo.computed == 1
    assert torch.equal(back["pooled"], rounded(rows(some[3:4])["pooled"]))


def test_space_for_all_rows_is_taken_at_once(tmp_path: Path) -> None:
    memo = Memo(tmp_path / "m", 100_000, SHAPES)
    assert memo.bytes == 100_000 * (2 * 11 + 4)
    memo.get(torch.tensor([99_999]), lambda: rows(torch.tensor([9])))
    files = [f.stat() for f in (tmp_path / "m").glob("*.bin")]
    assert sum(s.st_size for s in files) == memo.bytes
    assert sum(s.st_blocks * 512 for s in files) >= memo.bytes


def test_a_disk_that_is_too_small_is_an_error_before_anything_is_computed(tmp_path: Path) -> None:
    memo = Memo(tmp_path / "m", 2**50, SHAPES)
    with pytest.raises(RunError, match="cannot keep"):
        memo.get(torch.arange(2), never)
    assert not list((tmp_path / "m").glob("*.bin"))


def test_a_folder_that_cannot_be_written_is_an_error_with_a_tip(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot keep") as caught:
        Memo(tmp_path / "file" / "m", 10, SHAPES).get(torch.arange(2), never)
    assert "--no-cache" in str(caught.value.tip)


@pytest.fixture
def forward_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images that teachers were shown."""
    from selfsame.nn.teacher import Teacher

    seen: list[int] = []
    say = Teacher.say

    def counted(self: Teacher, x: Tensor, asks: object) -> dict[str, Tensor]:
        seen.append(len(x))
        return say(self, x, asks)  # type: ignore[arg-type]

    monkeypatch.setattr(Teacher, "say", counted)
    return seen


@pytest.mark.parametrize("name", ["kd", "attention_transfer", "distill", "deit"])
def test_keeping_changes_no_bit_and_saves_the_teacher(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forward_passes: list[int]
) -> None:
    monkeypatch.setenv("SELFSAME_CACHE", str(tmp_path / "cache"))
    source = ArraySource(textures(16), np.arange(16) % 4, ["a", "b", "c", "d"])
    recipe = with_settings(tiny_recipe(name, steps=8), ["view_sets=2"])
    options = {"recipe": recipe, "quiet": True, "device": "cpu"}

    def learnt(out: str, **more: object) -> tuple[Tensor, int]:
        forward_passes.clear()
        result = pretrain(name, source, out=tmp_path / out, **options, **more)
        weights = torch.cat([p.flatten() for p in result.encoder.parameters()])
        return weights, sum(forward_passes)

    plain, all_passes = learnt("plain", keep_teacher=False)
    first, filled = learnt("first")
    second, read = learnt("second")
    assert torch.equal(plain, first)
    assert torch.equal(plain, second)
    # 8 steps of 8 are 4 epochs of 16 in 2 sets; what the plan looks at comes on top
    assert all_passes >= 64
    assert filled < all_passes
    assert read <= 2  # the shapes


def test_views_come_again_after_as_many_epochs_as_there_are_sets() -> None:
    recipe = with_settings(tiny_recipe("kd"), ["view_sets=3"])
    source = ArraySource(textures(16), np.arange(16) % 4, ["a", "b", "c", "d"])
    with (made := plan.make("kd", source, Choices(recipe=recipe), "cpu")).images:
        method, batch = made.build(), made.images.batch(torch.arange(4))
        seen = [made.views(method, batch, epoch) for epoch in range(5)]
    for a, b in ((0, 3), (1, 4)):
        assert torch.equal(seen[a]["global"], seen[b]["global"])
        assert torch.equal(seen[a]["set"], seen[b]["set"])
    assert not torch.equal(seen[0]["global"], seen[1]["global"])
