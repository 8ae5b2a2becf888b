"""W&B and MLflow get what the run directory gets, and never end a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from helpers import tiny_settings, write_photos

import selfsame
from selfsame import trackers
from selfsame.cli import main
from selfsame.errors import UsageError
from selfsame.run import RunDirectory

pytestmark = pytest.mark.filterwarnings("ignore")  # of the services' own packages


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("trackers"), count=24)


def train(photos: Path, out: Path, steps: int, log: list[str], resume: bool = False) -> None:
    selfsame.pretrain(
        "simclr",
        str(photos),
        out=out,
        size=32,
        steps=steps,
        batch_size=8,
        log_every=1,
        settings=tiny_settings(),
        log=log,
        resume=resume,
        quiet=True,
    )


def test_mlflow_gets_every_row_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason='pip install "selfsame[mlflow]"')
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    out = tmp_path / "run"
    train(photos, out, 3, ["mlflow"])
    rows = RunDirectory(out).rows("metrics")
    number = json.loads((out / "trackers.json").read_text())["mlflow"]
    client = MlflowClient()
    found = client.get_run(number)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "run"
    assert found.data.params["method.name"] == "simclr"
    train(photos, out, 3, ["mlflow"], resume=True)  # which writes no row of metrics again
    history = client.get_metric_history(number, "train/loss")
    assert [(each.step, each.value) for each in history] == [
        (row["step"], row["loss"]) for row in rows
    ]
    assert "eval/health/rankme" in client.get_run(number).data.metrics


def test_wandb_offline_gets_every_row(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason='pip install "selfsame[wandb]"')
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = tmp_path / "run"
    train(photos, out, 3, ["wandb"])
    number = json.loads((out / "trackers.json").read_text())["wandb"]
    (stored,) = (out / "wandb").glob(f"offline-run-*/run-{number}.wandb")
    content = stored.read_bytes()
    for word in (b"train/loss", b"eval/health/rankme", b"method.temperature"):
        assert word in content, word


class Broken:
    """A service that is down."""

    def __init__(self, *_: object) -> None:
        self.id = "1"

    def log(self, step: int, values: object) -> None:
        raise ConnectionError("no route\nto host")

    def close(self, finished: bool) -> None:
        raise AssertionError("it was dropped")


def test_a_service_that_is_down_ends_no_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers.TRACKERS, "broken", Broken)
    monkeypatch.setattr(trackers, "_import", lambda name: None)
    out = tmp_path / "run"
    train(photos, out, 2, ["broken"])
    said = (out / "log.txt").read_text()
    assert said.count("broken gets nothing any more: no route\n") == 1
    assert len(RunDirectory(out).rows("metrics")) == 2


def test_wrong_names_are_refused_before_a_run_exists(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["pretrain", "simclr", str(photos), "--out", str(tmp_path / "a"), "--log"]
    assert main([*arguments, "wandbb"]) == 2
    assert capsys.readouterr().err == (
        "error: unknown tracker 'wandbb'\ntip: did you mean 'wandb'? legal values: mlflow, wandb\n"
    )
    assert main([*arguments, "tensorboard"]) == 2
    assert capsys.readouterr().err == (
        "error: TensorBoard needs no --log: every run directory has its event file\n"
        "tip: tensorboard --logdir runs\n"
    )
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match="wandb is not installed"):
        trackers.check(["wandb"])
    assert not (tmp_path / "a").exists()
