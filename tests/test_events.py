"""TensorBoard itself reads the event files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from selfsame import events
from selfsame.events import Event
from selfsame.run import RunDirectory

Scalars = dict[str, list[tuple[int, float]]]


@pytest.mark.parametrize(
    ("content", "wanted"),
    # RFC 3720, appendix B.4
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
    ],
)
def test_the_checksum_is_the_standards(content: bytes, wanted: int) -> None:
    assert events.crc32c(content) == wanted


def tensorboard_reads(folder: Path) -> Scalars:
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="pip install tensorboard"
    )
    found = accumulators.EventAccumulator(str(folder), {"scalars": 0})
    found.Reload()
    return {
        tag: [(each.step, each.value) for each in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


@pytest.mark.filterwarnings("ignore")  # of tensorboard's own imports
def test_tensorboard_reads_what_a_run_writes(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    run.rewind(0)
    for step in (1, 300, 2**40):
        run.append("metrics", [{"step": step, "epoch": 0.5, "loss": step / 8, "name": "no number"}])
    run.append("metrics", [{"step": 2**40 + 1, "loss": math.nan}])
    run.append("eval", [{"step": 300, "protocol": "health", "rankme": 12.5}])
    scores = {"model": {"knn": 0.5, "knn_interval": [0.4, 0.6]}, "raw pixels": {"knn": 0.25}}
    row = {"step": 300, "protocol": "knn", "model": "a", "data": "b", "results": scores}
    run.append("eval", [row])
    run.append("eval", [{"step": 300, "protocol": "verdict", "state": "x", "kind": None}])
    found = tensorboard_reads(run.path)
    assert found["train/loss"][:3] == [(1, 0.125), (300, 37.5), (2**40, 2**37)]
    assert math.isnan(found["train/loss"][3][1])
    assert found["eval/health/rankme"] == [(300, 12.5)]
    assert found["eval/model/knn"] == [(300, 0.5)]
    assert found["eval/raw pixels/knn"] == [(300, 0.25)]
    assert found.keys() == {
        *("train/loss", "train/epoch", "eval/health/rankme"),
        *("eval/model/knn", "eval/raw pixels/knn"),
    }


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_leaves_no_stale_steps(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    run.rewind(0)
    for step in range(1, 8):
        run.append("metrics", [{"step": step, "loss": float(step)}])
    (before,) = run.path.glob("events.out.tfevents.*")
    times = dict(events._times(before.read_bytes()))
    before.write_bytes(before.read_bytes()[:-3])  # as a crash leaves it
    run.rewind(4)
    for step in range(5, 7):
        run.append("metrics", [{"step": step, "loss": 10.0 * step}])
    _, after = sorted(run.path.glob("events.out.tfevents.*"))
    assert after.name > before.name
    assert before.stat().st_size == 0  # a running TensorBoard goes on from it
    found = tensorboard_reads(run.path)
    assert found == {"train/loss": [(1, 1), (2, 2), (3, 3), (4, 4), (5, 50), (6, 60)]}
    kept = dict(events._times(after.read_bytes()))
    assert all(kept[step] == times[step] for step in range(1, 5))


@pytest.mark.filterwarnings("ignore")
def test_a_running_tensorboard_forgets_what_was_taken_back(tmp_path: Path) -> None:
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="pip install tensorboard"
    )
    run = RunDirectory.create(tmp_path / "run")
    run.rewind(0)
    for step in range(1, 8):
        run.append("metrics", [{"step": step, "loss": float(step)}])
    watching = accumulators.EventAccumulator(str(run.path), {"scalars": 0})
    watching.Reload()
    assert len(watching.Scalars("train/loss")) == 7
    run.rewind(4)
    run.append("metrics", [{"step": 5, "loss": 50.0}])
    watching.Reload()
    assert [(e.step, e.value) for e in watching.Scalars("train/loss")] == [
        *[(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)],
        (5, 50.0),
    ]


def test_values_beyond_float32_and_an_empty_folder(tmp_path: Path) -> None:
    events.rewrite(tmp_path, [])
    assert list(tmp_path.iterdir()) == []
    events.add(tmp_path, [Event(1, {"a": 1e300, "b": -1e300})])
    (file,) = tmp_path.iterdir()
    assert [step for step, _ in events._times(file.read_bytes())] == [1]
