from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfsame.data import Images, Loader, batch_indices, open_source
from selfsame.errors import DataError, UsageError


def pictures(n: int = 20) -> np.ndarray:
    images = np.zeros((n, 8, 8, 3), np.uint8)
    images[:] = np.arange(n, dtype=np.uint8)[:, None, None, None]
    return images


@pytest.fixture
def images() -> Iterator[Images]:
    with Images(open_source(pictures()), canvas=8) as images:
        yield images


def loader_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("selfsame-loader")]


def test_every_step_once_in_order(images: Images) -> None:
    with Loader(images, 6, seed=3, start=0, total=8) as loader:
        got = list(loader)
    assert len(loader) == len(got) == 8
    for step, (epoch, batch) in enumerate(got):
        expected_epoch, index = batch_indices(3, step, 20, 6)
        assert epoch == expected_epoch == step // 3
        assert batch.index.equal(index)
        assert batch.images[:, 0, 0, 0].tolist() == index.tolist()


@pytest.mark.parametrize("prefetch", [1, 2, 5])
def test_a_later_start_gives_the_tail(images: Images, prefetch: int) -> None:
    with (
        Loader(images, 6, seed=3, start=0, total=9) as whole,
        Loader(images, 6, seed=3, start=4, total=9, prefetch=prefetch) as tail,
    ):
        for (e0, b0), (e1, b1) in zip(list(whole)[4:], tail, strict=True):
            assert e0 == e1
            assert b0.index.equal(b1.index)
            assert b0.images.equal(b1.images)


def test_ranks_share_the_global_batch(images: Images) -> None:
    with Loader(images, 6, seed=0, start=0, total=2) as whole:
        parts = [
            list(Loader(images, 6, seed=0, start=0, total=2, rank=rank, world=3))
            for rank in range(3)
        ]
        for step, (_, batch) in enumerate(whole):
            together = torch.cat([part[step][1].index for part in parts])
            assert together.equal(batch.index)


def test_can_be_iterated_again(images: Images) -> None:
    with Loader(images, 6, seed=0, start=0, total=3) as loader:
        first = [batch.index.tolist() for _, batch in loader]
        assert [batch.index.tolist() for _, batch in loader] == first
    assert list(Loader(images, 6, seed=0, start=3, total=3)) == []


def test_leaving_early_ends_the_thread(images: Images) -> None:
    before = len(loader_threads())
    for _ in Loader(images, 6, seed=0, start=0, total=1000):
        assert len(loader_threads()) == before + 1
        break
    assert len(loader_threads()) == before
    loader = Loader(images, 6, seed=0, start=0, total=1000)
    iterator = iter(loader)
    next(iterator)
    loader.close()
    assert len(loader_threads()) == before
    with pytest.raises(StopIteration):
        next(iterator)


def test_an_error_in_the_loop_ends_the_thread(images: Images) -> None:
    before = len(loader_threads())

    def fail() -> None:
        with Loader(images, 6, seed=0, start=0, total=1000) as loader:
            for _ in loader:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        fail()
    assert caught.traceback  # it still holds the frame of the loop
    assert len(loader_threads()) == before


def test_errors_reach_the_consumer(tmp_path: Path) -> None:
    for k in range(4):
        (tmp_path / f"{k}.png").write_text("hello")
    with (
        Images(open_source(tmp_path), canvas=8) as images,
        Loader(images, 2, seed=0, start=0, total=4) as loader,
        pytest.raises(DataError, match="none of the 4 images is readable"),
    ):
        next(iter(loader))
    assert not loader_threads()


class Slow(Images):
    """Records which batches were prepared, and takes its time for each."""

    def __init__(self, seconds: float) -> None:
        super().__init__(open_source(pictures()), canvas=8)
        self.seconds = seconds
        self.prepared = 0

    def batch(self, index: torch.Tensor):  # type: ignore[no-untyped-def]
        time.sleep(self.seconds)
        self.prepared += 1
        return super().batch(index)


def test_runs_ahead_by_the_prefetch_and_no_further() -> None:
    with Slow(0) as images, Loader(images, 5, seed=0, start=0, total=100, prefetch=3) as loader:
        iterator = iter(loader)
        next(iterator)
        time.sleep(0.2)
        assert images.prepared == 4  # the one that was taken, and three ahead


def test_waited_counts_the_time_of_the_consumer() -> None:
    with Slow(0.05) as images, Loader(images, 5, seed=0, start=0, total=4) as loader:
        for _ in loader:
            pass
        assert 0.15 < loader.waited < 1
    with Slow(0) as images, Loader(images, 5, seed=0, start=0, total=4) as loader:
        for _ in loader:
            time.sleep(0.05)
        assert loader.waited < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 21}, "a batch of 21 is larger than the data set of 20 images"),
        ({"batch_size": 6, "world": 4}, "cannot be divided among 4 processes"),
        ({"batch_size": 6, "prefetch": 0}, "prefetch 0"),
        ({"batch_size": 6, "rank": 2, "world": 2}, "rank 2 of 2"),
    ],
)
def test_options_that_cannot_work(images: Images, options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Loader(images, seed=0, start=0, total=1, **options)
    assert caught.value.tip


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc to read memory from")
def test_memory_does_not_grow_over_an_epoch(tmp_path: Path) -> None:
    """3,000 pictures are 79 MiB as canvases; five batches in flight are 8.4 MiB."""
    side, size, count = 96, 64, 3000
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((side, side)).save(tmp_path / "0.jpg")
    for k in range(1, count):
        (tmp_path / f"{k}.jpg").hardlink_to(tmp_path / "0.jpg")
    code = (
        "import os, torch\n"
        "from selfsame.data import Images, Loader, open_source\n"
        "def resident():\n"
        "    pages = open('/proc/self/statm').read().split()[1]\n"
        "    return int(pages) * os.sysconf('SC_PAGE_SIZE') / 2**20\n"
        f"images = Images(open_source({str(tmp_path)!r}), canvas={side}, cache_bytes=0)\n"
        f"images.batch(torch.arange({size}))\n"
        "start, seen = resident(), []\n"
        f"for _ in Loader(images, {size}, seed=0, start=0, total={count // size}, prefetch=3):\n"
        "    seen.append(resident())\n"
        "print(max(seen) - start, seen[-1] - seen[len(seen) // 10])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    peak, growth = map(float, done.stdout.split())
    in_flight = 5 * size * 3 * side**2 / 2**20  # three ahead, the next one, the one in the loop
    # 8 runs: peak 8.9 to 9.0 MiB, growth 0.0 to 3.4 MiB
    assert peak < in_flight + 4
    assert growth < 6


def test_the_interpreter_exits_from_an_open_loader(tmp_path: Path) -> None:
    for k in range(8):
        Image.new("RGB", (64, 64), (k, 0, 0)).save(tmp_path / f"{k}.png")
    code = (
        "import sys\n"
        "from selfsame.data import Images, Loader, open_source\n"
        f"images = Images(open_source({str(tmp_path)!r}), canvas=64, cache_bytes=0)\n"
        "iterator = iter(Loader(images, 4, seed=0, start=0, total=10**9))\n"
        "print(len(next(iterator)[1].images))\n"
        "print({'torchvision', 'timm', 'sklearn'} & set(sys.modules))\n"  # slow to import
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\nset()\n", "")
