from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from written import tiff

from selfsame.data import (
    Images,
    Subset,
    count_channels,
    measure_levels,
    measure_norm,
    open_source,
    suggest_canvas,
)
from selfsame.errors import DataError, UsageError
from selfsame.types import BadImage, Batch, Source

Folder = Callable[..., Path]


class Counted:
    """A source that counts how often each image is read."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.labels, self.classes = source.labels, source.classes
        self.reads = np.zeros(len(source), int)
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.source)

    def name(self, i: int) -> str:
        return self.source.name(i)

    def read(self, i: int) -> bytes | np.ndarray:
        with self.lock:
            self.reads[i] += 1
        return self.source.read(i)

    def fingerprint(self) -> str:
        return self.source.fingerprint()


@pytest.fixture
def damaged(make_folder: Folder) -> Path:
    """Images 0..5 of class a and 6..11 of class b, with 2, 5, 6 and 11 unreadable."""
    root = make_folder({"a": 6, "b": 6})
    (root / "a/02.png").write_text("hello")
    (root / "a/05.png").write_bytes((root / "a/05.png").read_bytes()[:60])
    (root / "b/00.png").write_bytes(b"")
    (root / "b/05.png").unlink()
    (root / "b/05.png").symlink_to(root / "nowhere.png")
    return root


def replaced(batch: Batch) -> list[int]:
    return batch.images[:, 0, 0, 0].tolist()


def assert_same(one: Batch, two: Batch) -> None:
    for left, right in zip(one, two, strict=True):
        assert left is not None
        assert right is not None
        assert left.dtype == right.dtype
        assert torch.equal(left, right)


def test_a_batch_is_placed_top_left(make_folder: Folder) -> None:
    with Images(open_source(make_folder({"a": 2, "b": 2})), canvas=24) as images:
        batch = images.batch(torch.tensor([3, 0, 3]))
    assert batch.images.shape == (3, 3, 24, 24)
    assert batch.images.dtype == torch.uint8
    assert batch.sizes.tolist() == [[16, 20]] * 3
    assert batch.sizes.dtype == torch.int32
    assert batch.index.tolist() == [3, 0, 3]
    assert batch.label is not None
    assert batch.label.tolist() == [1, 0, 1]
    assert batch.label.dtype == torch.int64
    assert (batch.images[:, 0, :16, :20] == torch.tensor([3, 0, 3]).view(3, 1, 1)).all()
    assert (batch.images[:, 1, :16, :20] == torch.arange(20)).all()
    assert (batch.images[:, :, 16:] == 0).all()
    assert (batch.images[:, :, :, 20:] == 0).all()


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
@pytest.mark.skipif(torch.accelerator.is_available(), reason="networks take no cores here")
def test_threads_that_decode_give_way_to_the_network(make_folder: Folder) -> None:
    class Watched(Counted):
        def read(self, i: int) -> bytes | np.ndarray:
            seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
            return super().read(i)

    seen: list[int] = []
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with Images(Watched(open_source(make_folder({"a": 4}))), canvas=24) as images:
        images.batch(torch.arange(4))
    assert set(seen) == {max(own, 10)}
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


def test_no_labels_no_label(make_folder: Folder) -> None:
    with Images(open_source(make_folder({"": 2})), canvas=8) as images:
        batch = images.batch(torch.tensor([1]))
    assert batch.label is None
    assert batch.sizes.tolist() == [[6, 8]]


EXPECTED = [0, 1, 3, 3, 4, 7, 7, 7, 8, 9, 10, 0]  # which image stands for each of 0..11


@pytest.mark.parametrize("cache_bytes", [0, None])
@pytest.mark.parametrize("workers", [1, 2, 8])
def test_replacement_depends_on_the_index_alone(
    damaged: Path, workers: int, cache_bytes: int | None
) -> None:
    source = open_source(damaged)
    generator = torch.Generator().manual_seed(workers)
    reports: list[BadImage] = []
    with Images(
        source, canvas=24, workers=workers, cache_bytes=cache_bytes, on_bad=reports.append
    ) as images:
        for size in (12, 1, 5, 3, 12):
            for index in torch.randperm(12, generator=generator).split(size):
                batch = images.batch(index)
                assert replaced(batch) == [EXPECTED[i] for i in index]
                assert batch.index.equal(index)
                assert batch.label is not None
                assert batch.label.tolist() == [int(EXPECTED[i] >= 6) for i in index]
                assert (batch.sizes == torch.tensor([16, 20])).all()
        assert images.bad == [
            BadImage(2, "a/02.png", "not an image (starts with 'hello')"),
            BadImage(5, "a/05.png", "truncated"),
            BadImage(6, "b/00.png", "empty file (0 bytes)"),
            BadImage(11, "b/05.png", "cannot read the file: No such file or directory"),
        ]
        assert sorted(reports) == images.bad  # once each


def test_only_bad_images_that_were_met_are_listed(damaged: Path) -> None:
    with Images(open_source(damaged), canvas=24) as images:
        images.batch(torch.tensor([0, 2]))
        assert [bad.index for bad in images.bad] == [2]


def test_a_bad_image_is_read_once(damaged: Path) -> None:
    source = Counted(open_source(damaged))
    with Images(source, canvas=24, cache_bytes=0, workers=1) as images:
        for _ in range(3):
            images.batch(torch.arange(12))
    assert source.reads[[2, 5, 6, 11]].tolist() == [1, 1, 1, 1]
    assert source.reads[8] == 3


def test_two_threads_that_meet_a_bad_image_report_it_once(damaged: Path) -> None:
    both = threading.Barrier(2)

    class Together(Counted):
        def read(self, i: int) -> bytes | np.ndarray:
            if i == 2:
                both.wait(timeout=10)
            return super().read(i)

    reports: list[BadImage] = []
    source = Together(open_source(damaged))
    with Images(source, canvas=24, workers=2, cache_bytes=0, on_bad=reports.append) as images:
        assert replaced(images.batch(torch.tensor([2, 2]))) == [3, 3]
        assert reports == images.bad
    assert len(reports) == 1
    assert source.reads[2] == 2


@pytest.mark.parametrize("call", [lambda i: i.batch(torch.tensor([1, 0])), lambda i: i.check()])
def test_all_bad(tmp_path: Path, call: Callable[[Images], object]) -> None:
    for k in range(4):
        (tmp_path / f"{k}.jpg").write_text("hello" if k else "")
    with Images(open_source(tmp_path), canvas=24) as images:
        with pytest.raises(DataError) as caught:
            call(images)
        assert len(images.bad) == 4
    assert str(caught.value) == (
        "none of the 4 images is readable: 0.jpg: empty file (0 bytes); "
        "1.jpg: not an image (starts with 'hello'); 2.jpg: not an image (starts with 'hello')"
    )
    assert caught.value.tip


def test_check(damaged: Path) -> None:
    with Images(open_source(damaged), canvas=24) as images:
        assert images.check() == (12, 4)
        assert len(images.bad) == 4
    with Images(open_source(damaged), canvas=24) as images:
        assert images.check(2) == (2, 1)  # 0 and 11


def test_check_looks_further_before_it_gives_up(damaged: Path) -> None:
    with Images(Subset(open_source(damaged), np.array([2, 0, 5])), canvas=24) as images:
        assert images.check(2) == (2, 2)


def test_errors_of_a_data_set_are_bad_images() -> None:
    class Broken:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> np.ndarray:
            if i == 1:
                raise KeyError("row 1")
            return np.full((8, 8, 3), i, np.uint8)

    with Images(open_source(Broken()), canvas=8) as images:
        assert replaced(images.batch(torch.arange(3))) == [0, 2, 2]
        assert images.bad == [BadImage(1, "Broken[1]", "KeyError: 'row 1'")]


def test_the_cache_decodes_once_and_changes_nothing(damaged: Path) -> None:
    source = Counted(open_source(damaged))
    index = torch.tensor([3, 2, 2, 11, 7])
    with (
        Images(source, canvas=24) as cached,
        Images(open_source(damaged), canvas=24, cache_bytes=0) as fresh,
    ):
        for _ in range(3):
            cached.batch(torch.arange(12))
        # 3, 7 and 0 are read again where they stand for the bad ones before them.
        assert source.reads.sum() <= 12 + 5
        before = source.reads.copy()
        first = cached.batch(index)
        assert_same(first, fresh.batch(index))
        first.images.zero_()  # a batch is the consumer's own
        assert_same(cached.batch(index), fresh.batch(index))
        assert (source.reads == before).all()


def test_the_cache_is_used_only_where_everything_fits(make_folder: Folder) -> None:
    root = make_folder({"": 4})
    for limit, reads in ((4 * 3 * 8 * 8, 4), (4 * 3 * 8 * 8 - 1, 8)):
        source = Counted(open_source(root))
        with Images(source, canvas=8, cache_bytes=limit) as images:
            for _ in range(2):
                images.batch(torch.arange(4))
        assert source.reads.sum() == reads


@pytest.mark.parametrize(
    ("shape", "channels", "canvas"),
    [
        ((10, 8, 8, 3), 3, 8),
        ((10, 8, 8, 3), 3, 11),
        ((10, 8, 6, 1), 3, 8),
        ((10, 8, 6, 1), 1, 8),
        ((10, 8, 6, 4), 4, 8),
        ((10, 8, 8, 3), 1, 8),  # conversion and scaling go image by image
        ((10, 8, 8, 4), 3, 8),
        ((10, 20, 16, 3), 3, 8),
        ((10, 20, 16, 3), 1, 8),
    ],
)
def test_arrays_agree_with_decoding_one_by_one(
    shape: tuple[int, ...], channels: int, canvas: int
) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    index = torch.tensor([9, 0, 4, 4])
    source = open_source(array)
    for rows in (np.arange(10), np.arange(10)[::-1]):
        with (
            Images(Subset(source, rows), canvas=canvas, channels=channels) as fast,
            Images(Counted(Subset(source, rows)), canvas=canvas, channels=channels) as slow,
        ):
            for left, right in zip(fast.batch(index)[:3], slow.batch(index)[:3], strict=True):
                assert left is not None
                assert torch.equal(left, right)


def test_arrays_that_fit_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfsame.data.images.decode", lambda *_, **__: pytest.fail("decoded"))
    with Images(open_source(np.zeros((4, 8, 8, 3), np.uint8)), canvas=8) as images:
        assert images.batch(torch.arange(4)).images.shape == (4, 3, 8, 8)
        assert images.check() == (0, 0)


@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.int64, np.float32, np.float16, bool])
def test_arrays_of_any_type_are_scaled(tmp_path: Path, kind: type) -> None:
    array = np.random.default_rng(0).integers(0, 2, (5, 6, 8, 7)).astype(kind)
    array[0] = 0
    np.savez(tmp_path / "a.npz", images=array, labels=np.arange(5))
    np.save(tmp_path / "a.npy", array)
    for spec in (array, torch.from_numpy(array), tmp_path / "a.npz", tmp_path / "a.npy"):
        if isinstance(spec, torch.Tensor) and kind is np.uint16:
            continue
        with Images(open_source(spec), canvas=9, channels=6, levels=(0, 1)) as images:
            batch = images.batch(torch.arange(5))
        assert (batch.images[:, :, :8, :7].numpy() == 255 * array).all()
        assert batch.images[:, :, 8:].max() == 0


def test_the_type_of_an_array_is_in_its_fingerprint() -> None:
    array = np.zeros((4, 8, 8), np.uint8)
    kinds = (np.uint8, np.uint16, np.int16, np.float32)
    prints = {open_source(array.astype(kind)).fingerprint() for kind in kinds}
    assert len(prints) == len(kinds)
    assert open_source(array).fingerprint() == "ba17ab4e89187f36"  # as ever


@pytest.mark.parametrize(
    ("pictures", "expected"),
    [
        ([np.full((4, 4), 9, np.uint8)], None),
        ([np.full((4, 4), 200, np.uint16)], (0, 255)),
        ([np.full((4, 4), 256, np.uint16)], (0, 511)),
        ([np.full((4, 4), 1000, np.uint16), np.full((4, 4), 4095, np.uint16)], (0, 4095)),
        ([np.full((4, 4), 4096, np.int32)], (0, 8191)),
        ([np.full((4, 4), 65535, np.uint16), np.full((4, 4), 7, np.uint8)], (0, 65535)),
        ([np.full((4, 4), 70000, np.int32)], (0, 2**17 - 1)),
        ([np.array([[-5, 3]], np.int16), np.array([[0, 40]], np.int16)], (-5, 40)),
        ([np.full((4, 4), 0.5, np.float32)], (0, 1)),
        ([np.array([[0.5, 90]]), np.array([[-2, 3]], np.float32)], (-2, 90)),
        ([np.array([[np.nan, 9000]]), np.array([[0.25, 0.5]])], (0, 1)),  # bad ones do not count
        ([np.full((4, 4), 90.0)], None),
        ([np.full((4, 4), 300, np.uint16), np.full((4, 4), 0.5)], None),
    ],
)
def test_measure_levels(
    pictures: list[np.ndarray], expected: tuple[float, float] | None, tmp_path: Path
) -> None:
    class Pictures:
        labels = classes = None

        def __len__(self) -> int:
            return len(pictures)

        def read(self, i: int) -> np.ndarray:
            return pictures[i]

    assert measure_levels(Pictures()) == expected  # type: ignore[arg-type]


def test_measured_levels_keep_the_relative_brightness_of_files(tmp_path: Path) -> None:
    for k, value in enumerate((819, 1638, 4095)):
        Image.fromarray(np.full((8, 8), value, np.uint16)).save(tmp_path / f"{k}.png")
    Image.new("L", (8, 8), 77).save(tmp_path / "3.jpg")
    (tmp_path / "4.png").write_text("hello")
    source = open_source(tmp_path)
    assert measure_levels(source) == (0, 4095)
    assert measure_levels(source, sample=1) == (0, 1023)
    with Images(source, canvas=8, channels=1, levels=measure_levels(source)) as images:
        seen = images.batch(torch.arange(4)).images[:, 0, 0, 0].tolist()
    assert seen == [51, 102, 255, 77]


@pytest.mark.parametrize("levels", [(5, 5), (9, 1), (0, float("nan"))])
def test_levels_that_are_no_range(levels: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="the first is not the smaller one") as caught:
        Images(open_source(np.zeros((4, 8, 8), np.uint16)), canvas=8, levels=levels)
    assert "(0, 4095)" in str(caught.value.tip)


def test_count_channels(tmp_path: Path, make_folder: Folder) -> None:
    assert count_channels(open_source(make_folder({"": 3}))) is None
    for own, expected in ((1, None), (3, None), (4, None), (2, 2), (5, 5), (12, 12)):
        assert count_channels(open_source(np.zeros((6, 20, 20, own), np.uint8))) == expected
    folder = tmp_path / "deep"
    folder.mkdir()
    for name in ("a.tif", "b.tif"):
        pixels = np.zeros((8, 8, 5), np.uint16)
        (folder / name).write_bytes(tiff(pixels, planarconfig="contig"))
    assert count_channels(open_source(folder)) == 5
    with Images(open_source(folder), canvas=8, channels=5) as images:
        assert images.batch(torch.arange(2)).images.shape == (2, 5, 8, 8)
    Image.new("RGB", (8, 8)).save(folder / "c.tif")
    assert count_channels(open_source(folder)) is None  # they differ


def test_measure_norm(tmp_path: Path) -> None:
    rng, seen = np.random.default_rng(0), []
    for k in range(20):
        pixels = rng.integers(0, 200, (6 + k, 30 - k, 3), np.uint8)
        pixels[..., 2] = 40
        Image.fromarray(pixels).save(tmp_path / f"{k:02}.png")
        seen.append(pixels.reshape(-1, 3))
    values = np.concatenate(seen) / 255
    with Images(open_source(tmp_path), canvas=40) as images:
        norm = measure_norm(images)
        np.testing.assert_allclose(norm.mean, values.mean(0))
        np.testing.assert_allclose(norm.std[:2], values.std(0)[:2])
        assert norm.std[2] == 1 / 255
        few = measure_norm(images, sample=2)
        ends = np.concatenate([seen[0], seen[-1]]) / 255
        np.testing.assert_allclose(few.mean, ends.mean(0))


def test_measure_norm_of_unreadable_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    with Images(open_source(tmp_path), canvas=8) as images, pytest.raises(DataError):
        measure_norm(images)


def test_too_few_channels_is_an_error_at_once() -> None:
    source = open_source(np.zeros((4, 8, 8, 3), np.uint8))
    with (
        Images(source, canvas=8, channels=5) as images,
        pytest.raises(DataError, match="does not give 5 channels"),
    ):
        images.check()


@pytest.mark.parametrize("index", [[-1], [4], [0, 7]])
def test_indices_outside(index: list[int]) -> None:
    with (
        Images(open_source(np.zeros((4, 8, 8, 3), np.uint8)), canvas=8) as images,
        pytest.raises(UsageError, match="outside the 4 images") as caught,
    ):
        images.batch(torch.tensor(index))
    assert caught.value.tip == "indices are 0..3"


@pytest.mark.parametrize("options", [{"canvas": 0}, {"canvas": 8, "workers": 0}])
def test_options_that_are_not_positive(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="not positive"):
        Images(open_source(np.zeros((4, 8, 8, 3), np.uint8)), **options)


@pytest.mark.parametrize(
    ("sizes", "view", "expected"),
    [
        ([(32, 32)], 32, 32),
        ([(28, 28)], 224, 28),  # exactly: all have one small size
        ([(45, 60)], 32, 60),
        ([(28, 28), (30, 29)], 224, 32),  # several sizes: a multiple of 8
        ([(500, 375), (60, 60)], 224, 448),
        ([(500, 375)], 224, 448),
        ([(300, 300), (200, 310)], 224, 312),
    ],
)
def test_suggest_canvas(
    tmp_path: Path, sizes: list[tuple[int, int]], view: int, expected: int
) -> None:
    for k, size in enumerate(sizes * 2):
        Image.new("L", size).save(tmp_path / f"{k}.png")
    (tmp_path / "bad.png").write_text("hello")
    assert suggest_canvas(open_source(tmp_path), view) == expected


def test_suggest_canvas_without_a_readable_header(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("hello")
    assert suggest_canvas(open_source(tmp_path), 30) == 64


def test_suggest_canvas_of_arrays() -> None:
    assert suggest_canvas(open_source(np.zeros((4, 32, 32, 3), np.uint8)), 32) == 32


def test_an_array_with_gaps_is_not_copied() -> None:
    """Three terabytes, were they copied: one image a billion times."""
    one = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    with Images(open_source(np.broadcast_to(one, (10**9, 32, 32, 3))), canvas=32) as images:
        batch = images.batch(torch.tensor([0, 10**9 - 1]))
    assert (batch.images.permute(0, 2, 3, 1).numpy() == one).all()
