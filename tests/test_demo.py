"""The sample that ships with selfsame, and the promise of ``selfsame demo``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from selfsame import demo
from selfsame.api import Result


def test_the_sample_is_what_it_says() -> None:
    data = demo.sample()
    assert (len(data.train), len(data.test)) == (8000, 2000)
    for part, each in ((data.train, 800), (data.test, 200)):
        assert part.labels is not None
        assert np.bincount(part.labels).tolist() == [each] * 10
        assert part.classes is not None
        assert part.classes[0] == "airplane"
        pixels = part.read(0)
        assert isinstance(pixels, np.ndarray)
        assert pixels.shape == (32, 32, 3)
    train = np.stack([np.asarray(data.train.read(i)) for i in range(len(data.train))])
    assert len(np.unique(train.reshape(len(train), -1), axis=0)) == len(train)
    assert 110 < train.mean() < 130  # CIFAR-10's mean is 120.7


def test_the_package_carries_at_most_12_megabytes() -> None:
    folder = Path(demo.__file__).parent / "assets"
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 12_000_000
    assert "Krizhevsky" in (folder / "README.md").read_text("utf-8")


def test_a_demo_that_is_stopped_goes_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: list[str] = []

    def stopped(method: str, *_: object, **options: object) -> Result:
        learnt.append(method)
        return Result(tmp_path, None, 3, False, {}, 2)  # type: ignore[arg-type]

    monkeypatch.setattr(demo, "pretrain", stopped)
    with pytest.raises(KeyboardInterrupt):
        demo.demo(tmp_path)
    assert learnt == ["simclr"]


@pytest.mark.slow
def test_the_demo_beats_its_best_control_by_five_points(tmp_path: Path) -> None:
    results = demo.demo(tmp_path / "demo", seed=1)["results"]
    learnt = results.pop("SimCLR, no labels")
    assert len(results) == 3
    assert learnt["knn"] >= max(scores["knn"] for scores in results.values()) + 0.05
