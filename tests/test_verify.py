"""``selfsame doctor --verify-resume`` tells a run that resumes from one that does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import tiny_recipe, tiny_settings, write_photos

from selfsame.cli import main
from selfsame.verify import _distance, _same


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("verify") / "photos", count=24)


def test_a_run_that_resumes_is_found_the_same(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    options = [*(f"--set={setting}" for setting in tiny_settings()), "--batch-size", "8"]
    assert main(["doctor", str(photos), "--verify-resume", "moco", *options]) == 0
    said = capsys.readouterr().out
    assert "verify     moco, 8 images a step: 6 steps without a stop, and with one after 3" in said
    assert "agree bit for bit" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("apart", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_that_does_not_is_found_out(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    apart: bool,
) -> None:
    if not apart:  # new processes take most of the time
        monkeypatch.setattr("selfsame.verify._apart", lambda function, *args: function(*args))
    recipe = tmp_path / "forgetful.toml"
    text = tiny_recipe("simclr", steps=20).to_toml()
    recipe.write_text(text.replace('name = "simclr"', 'name = "forgetful:Forgetful"'))
    assert main(["doctor", str(photos), "--verify-resume", str(recipe)]) == 1
    said = capsys.readouterr()
    assert "forgetful:Forgetful, 8 images a step" in said.out
    assert "agree" not in said.out
    assert "error: a stop changes what is learnt: backbone." in said.err
    assert " differs by up to " in said.err
    assert "neither in the state dict nor a function of the seed and the step" in said.err


def test_it_needs_data_and_two_steps(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--verify-resume", "simclr"]) == 2
    assert "tip: selfsame doctor DATA --verify-resume simclr" in capsys.readouterr().err
    options = ["--batch-size", "8", "--set", "steps=1"]
    assert main(["doctor", str(photos), "--verify-resume", "simclr", *options]) == 2
    assert "a run of one step cannot be stopped" in capsys.readouterr().err


def test_bits_are_compared_not_numbers() -> None:
    nan, zero = torch.tensor(float("nan")), torch.zeros(2, 3)
    assert _same(nan, nan.clone())
    assert not _same(zero, -zero)
    assert not _same(zero, zero.double())
    assert not _same(zero, None)
    assert _same(zero.t(), zero.t().contiguous())
    assert not _same(1, 1.0)
    assert _distance(zero, zero + 0.5) == " by up to 0.5 (its values reach 0)"
