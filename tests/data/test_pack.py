from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import textures, tiny_settings, unpack, write_photos
from PIL import Image

import selfsame
from selfsame import methods
from selfsame.data import Images, Subset, open_labelled, open_source
from selfsame.data.pack import PackSource, write_pack
from selfsame.errors import DataError, UsageError
from selfsame.types import Norm, Source
from selfsame.views import make_views

CANVAS = 40  # pixels: between the sizes of the pictures
NORM = Norm((0.5,) * 3, (0.25,) * 3)


def photo(i: int, width: int, height: int) -> Image.Image:
    """A picture with detail at every scale; no two are alike."""
    rng = np.random.default_rng(i)
    image = Image.new("RGB", (width, height))
    for side in (3, 9, 31):
        layer = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
        image = Image.blend(image, layer.resize((width, height), Image.Resampling.BICUBIC), 0.5)
    return image


def save(image: Image.Image, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def many(root: Path, count: int = 6, size: tuple[int, int] | None = None) -> Path:
    """JPEG files in two classes; without a size, of several on both sides of the canvas."""
    for i in range(count):
        width, height = size or (20 + 9 * i, 64 - 7 * i)
        save(photo(i, width, height), root / f"class{i % 2}" / f"{i:03}.jpg")
    return root


def odd(root: Path) -> Path:
    """One picture of each mode and orientation."""
    rgb = photo(0, 50, 30)
    ramp = np.linspace(0, 65535, 30 * 20).reshape(30, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(rgb, root / "rotated.jpg", exif=exif)
    save(rgb.convert("L"), root / "gray.png")
    save(rgb.convert("RGBA").rotate(30), root / "transparent.png")
    save(rgb.convert("CMYK"), root / "cmyk.jpg")
    save(rgb.quantize(16), root / "palette.gif")
    save(Image.fromarray(ramp.astype(np.uint16)), root / "sixteen.png")
    save(Image.fromarray((ramp / 65535).astype(np.float32)), root / "float.tif")
    return root


def parts(root: Path) -> Path:
    many(root / "train", 6)
    many(root / "test", 4)
    return root


def npz(path: Path) -> Path:
    x = textures(9, 20)
    y = np.array(["a", "b", "c"] * 3)
    np.savez(path, x_train=x[:6], y_train=y[:6], x_test=x[6:], y_test=y[6:])
    return path


def cifar(root: Path) -> Path:
    root.mkdir()
    records = np.random.default_rng(0).integers(0, 256, (10, 3073), np.uint8)
    records[:, 0] = np.arange(10) % 2
    (root / "data_batch_1.bin").write_bytes(records[:8].tobytes())
    (root / "test_batch.bin").write_bytes(records[8:].tobytes())
    (root / "batches.meta.txt").write_text("plane\ncar\n")
    return root


SOURCES: dict[str, Callable[[Path], Any]] = {
    "folders of classes": lambda at: many(at / "a"),
    "one size": lambda at: many(at / "a", size=(36, 30)),
    "train and test": lambda at: parts(at / "a"),
    "modes": lambda at: odd(at / "a"),
    "list": lambda at: [many(at / "a") / "class0", at / "a/class1/001.jpg"],
    "npz": lambda at: npz(at / "a.npz"),
    "cifar": lambda at: cifar(at / "a"),
    "gray arrays": lambda at: textures(5, 20)[..., 0],
    "wide arrays": lambda at: textures(5, 30)[:, :, :22],
    "large arrays": lambda at: textures(5, 50),
    "planes first": lambda at: torch.from_numpy(textures(5, 20)).permute(0, 3, 1, 2).contiguous(),
    "data set": lambda at: SimpleDataset([(photo(i, 20 + i, 50), i % 2) for i in range(5)]),
}


class SimpleDataset:
    """Pairs of a picture and a label."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


def pack(data: Any, out: Path, **options: Any) -> Path:
    selfsame.pack(data, out, **{"canvas": CANVAS, "quiet": True} | options)
    return out


def opened(path: Path) -> PackSource:
    source = open_source(path)
    assert isinstance(source, PackSource)
    return source


def assert_same(one: Source, two: Source, **options: Any) -> None:
    """The same names, labels and canvases, of deep images at the pack's levels."""
    levels = one.facts["levels"] if isinstance(one, PackSource) else None
    options = {"canvas": CANVAS, "levels": levels} | options
    assert len(one) == len(two)
    assert [one.name(i) for i in range(len(one))] == [two.name(i) for i in range(len(two))]
    index = torch.arange(len(one)).flip(0)
    with (
        Images(one, **options) as left,
        Images(two, **options) as right,
    ):
        for a, b in zip(left.batch(index), right.batch(index), strict=True):
            assert (a is None) == (b is None)
            assert a is None or (a.dtype == b.dtype and torch.equal(a, b))  # type: ignore[union-attr]
        assert left.bad == right.bad == []


# --- what comes back


@pytest.mark.parametrize("kind", SOURCES)
def test_a_pack_is_its_source(kind: str, tmp_path: Path) -> None:
    data = SOURCES[kind](tmp_path)
    path = pack(data, tmp_path / "x.pack")
    source, original = opened(path), open_source(data)
    assert isinstance(source, Source)
    if kind == "data set":
        original.read_labels()  # type: ignore[attr-defined]
    for channels in (1, 3):  # color is stored, and turned into gray as the original is
        assert_same(source, original, channels=channels)
    fits = all(max(source.read(i).shape[:2]) < CANVAS for i in range(len(source)))  # type: ignore[union-attr]
    if fits:
        assert_same(source, original, canvas=CANVAS + 11)
    assert source.classes == original.classes
    if original.labels is None:
        assert source.labels is None
    else:
        assert source.labels is not None
        assert source.labels.dtype == np.int64
        assert source.labels.tolist() == original.labels.tolist()


@pytest.mark.parametrize("kind", SOURCES)
def test_labelled_data_is_split_as_the_original_is(kind: str, tmp_path: Path) -> None:
    data = SOURCES[kind](tmp_path)
    path = pack(data, tmp_path / "x.pack")
    try:
        expected = open_labelled(data)
    except DataError as error:
        with pytest.raises(DataError) as caught:
            open_labelled(path)
        assert str(caught.value) == str(error)
        return
    found = open_labelled(path)
    assert found.how == expected.how
    for one, two in zip(found[:2], expected[:2], strict=True):
        assert one.classes == two.classes
        assert_same(one, two)


def test_a_note_names_the_part_that_is_left(tmp_path: Path) -> None:
    notes: list[str] = []
    open_source(pack(npz(tmp_path / "a.npz"), tmp_path / "x.pack"), notes)
    assert notes == ["only the part x_train; x_test is left for evaluation"]


def test_the_views_are_the_same(tmp_path: Path) -> None:
    data = many(tmp_path / "a")
    path = pack(data, tmp_path / "x.pack")
    recipe = methods.recipe("simclr", "small", 32)
    made = []
    for source in (open_source(data), open_source(path)):
        with Images(source, canvas=CANVAS) as images:
            batch = images.batch(torch.tensor([5, 0, 3, 3]))
        made.append(make_views(recipe.views, batch, seed=3, epoch=2, norm=NORM, device="cpu"))
    assert made[0].keys() == made[1].keys()
    for name, views in made[0].items():
        assert torch.equal(views, made[1][name])


def test_a_run_has_the_same_weights_and_can_be_resumed(tmp_path: Path) -> None:
    data = write_photos(tmp_path / "photos", count=16, side=70)
    path = pack(data, tmp_path / "x.pack", canvas=64)
    again = pack(data, tmp_path / "moved.pack", canvas=64)

    def run(spec: Path, name: str, **options: Any) -> selfsame.Result:
        return selfsame.pretrain(
            "simclr",
            spec,
            out=tmp_path / name,
            steps=3,
            batch_size=8,
            size=32,
            settings=tiny_settings(),
            save_every=1,
            quiet=True,
            **options,
        )

    original, packed = run(data, "original"), run(path, "packed")
    shutil.rmtree(packed.run / "checkpoints/step-00000003")
    resumed = run(again, "packed", resume=True)
    assert "continuing from step 2 of 3" in (packed.run / "log.txt").read_text()
    expected = original.encoder.state_dict()
    for result in (packed, resumed):
        weights = result.encoder.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in expected.items())
    other = pack(many(tmp_path / "b", 16, (64, 64)), tmp_path / "other.pack", canvas=64)
    with pytest.raises(UsageError, match="the data is not what"):
        run(other, "packed", resume=True)


@pytest.mark.parametrize("kind", ["one size", "folders of classes"])
@pytest.mark.parametrize("cache_bytes", [0, 3 * CANVAS**2 * 4, None])
def test_with_and_without_a_cache(kind: str, cache_bytes: int | None, tmp_path: Path) -> None:
    data = SOURCES[kind](tmp_path)
    source = opened(pack(data, tmp_path / "x.pack"))
    for _ in range(2):
        assert_same(source, open_source(data), cache_bytes=cache_bytes)
    rows = np.array([4, 1, 2])
    assert_same(Subset(source, rows), Subset(open_source(data), rows), cache_bytes=cache_bytes)


def test_a_smaller_canvas_scales_once_more(tmp_path: Path) -> None:
    data = many(tmp_path / "a", size=(64, 48))
    path = pack(data, tmp_path / "x.pack")
    batches = []
    for spec in (data, path):
        with Images(open_source(spec), canvas=20) as images:
            batches.append(images.batch(torch.arange(6)))
    assert batches[0].sizes.equal(batches[1].sizes)
    error = (batches[0].images.float() - batches[1].images.float()).abs().mean()
    assert 0 < error < 3  # levels; 1.96 was seen


def test_raw_records_that_fit_are_views_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = opened(pack(many(tmp_path / "a"), tmp_path / "a.pack"))
    equal = opened(pack(many(tmp_path / "b", size=(30, 20)), tmp_path / "b.pack"))
    monkeypatch.setattr(Image, "fromarray", lambda *_: pytest.fail("went through Pillow"))
    assert several.images is None
    assert equal.images is not None
    for source in (several, equal):
        pixels = source.read(2)
        assert isinstance(pixels, np.ndarray)
        assert not pixels.flags.writeable
        assert np.shares_memory(pixels, source._content)
        with Images(source, canvas=CANVAS) as images:
            images.batch(torch.arange(6))
            assert images.check() == (6, 0)
    assert np.shares_memory(equal.images, equal._content)


def test_gray_is_stored_once_and_repeated(tmp_path: Path) -> None:
    data = textures(200, 20)[..., 0]
    gray = pack(data, tmp_path / "gray.pack", channels=1)
    three = pack(data, tmp_path / "three.pack")
    assert gray.stat().st_size < 0.5 * three.stat().st_size
    for canvas in (20, 24):
        for channels in (1, 3):
            assert_same(opened(gray), open_source(data), channels=channels, canvas=canvas)


def test_arrays_of_many_channels(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, (4, 50, 30, 13), np.uint8)
    source = opened(pack(data, tmp_path / "x.pack"))
    assert source.images is not None
    assert source.images.shape == (4, 40, 24, 13)
    assert_same(source, open_source(data), channels=13)
    with pytest.raises(DataError, match="does not give 3 channels"):
        pack(data, tmp_path / "y.pack", channels=3)


def test_a_pack_of_a_pack(tmp_path: Path) -> None:
    data = parts(tmp_path / "a")
    whole = pack(data, tmp_path / "x.pack")
    again = pack(whole, tmp_path / "y.pack")
    for one, two in zip(open_labelled(again)[:2], open_labelled(data)[:2], strict=True):
        assert_same(one, two)


def test_names_of_any_kind(tmp_path: Path) -> None:
    names = ["a b.png", "ночь/山.png", "ü\udcff.png"]

    class Named:
        labels = np.array([-1, 1, -1])  # one of three images has a label
        classes = None

        def __len__(self) -> int:
            return 3

        def name(self, i: int) -> str:
            return names[i]

        def read(self, i: int) -> np.ndarray:
            return np.zeros((4, 4), np.uint8)

        def fingerprint(self) -> str:
            return "a short hash"

    packed = opened(pack(Named(), tmp_path / "x.pack"))
    assert [packed.name(i) for i in range(3)] == names
    assert packed.labels is not None
    assert packed.labels.tolist() == [-1, 1, -1]


# --- JPEG


def test_jpeg_is_smaller_and_near(tmp_path: Path) -> None:
    data = many(tmp_path / "a", 12, size=(80, 60))
    raw = pack(data, tmp_path / "raw.pack", canvas=80)
    sizes = [raw.stat().st_size]
    for quality, bound in ((95, 1.5), (50, 6.0)):  # levels; 1.26 and 4.81 were seen
        path = pack(data, tmp_path / "j.pack", canvas=80, encode="jpeg", quality=quality)
        source = opened(path)
        assert isinstance(source.read(0), bytes)
        assert source.images is None
        with Images(open_source(raw), canvas=80) as left, Images(source, canvas=80) as right:
            one, two = (images.batch(torch.arange(12)) for images in (left, right))
        assert one.sizes.equal(two.sizes)
        error = (one.images.float() - two.images.float()).abs().mean().item()
        assert 0.1 < error < bound
        sizes.append(path.stat().st_size)
    assert sizes[2] < sizes[1] < sizes[0]


def test_gray_jpeg(tmp_path: Path) -> None:
    data = np.stack([np.asarray(photo(i, 40, 40).convert("L")) for i in range(4)])
    source = opened(pack(data, tmp_path / "x.pack", encode="jpeg", channels=1))
    with Image.open(io.BytesIO(source.read(0))) as image:  # type: ignore[arg-type]
        assert (image.mode, image.size) == ("L", (40, 40))


# --- the file


def test_the_file_is_as_documented(tmp_path: Path) -> None:
    path = pack(parts(tmp_path / "a"), tmp_path / "x.pack")
    content = path.read_bytes()
    magic, version, crc, start, length, count = struct.unpack("<8sIIQQQ", content[:40])
    assert (magic, version, count) == (b"\x89SELFPK\n", 1, 10)
    assert content[40:60] == bytes(20)
    assert struct.unpack("<I", content[60:64]) == (zlib.crc32(content[:60]),)
    assert (start % 64, start + length) == (0, len(content))
    index = content[start:]
    assert zlib.crc32(index) == crc
    names, end, seen = index[48 * count :], 64, []
    for k in range(count):
        row = struct.unpack("<QQqQIIII", index[48 * k : 48 * (k + 1)])
        at, size, label, name, name_length, height, width, record_crc = row
        assert (at, size) == (-(-end // 64) * 64, 3 * height * width)
        assert max(height, width) <= CANVAS
        assert content[end:at].count(0) == at - end
        end = at + size
        assert zlib.crc32(content[at:end]) == record_crc
        seen.append((names[name : name + name_length].decode(), label))
    assert content[end:start].count(0) == start - end
    assert seen[:3] == [("class0/000.jpg", 0), ("class0/002.jpg", 0), ("class0/004.jpg", 0)]
    assert seen[-1] == ("class1/003.jpg", 1)
    facts = json.loads(names[sum(len(name) for name, _ in seen) :])
    assert facts == {
        "selfsame": selfsame.__version__,
        "encode": "raw",
        "quality": None,
        "levels": None,
        "channels": 3,
        "canvas": CANVAS,
        "parts": [
            {
                "name": f"{part}/",
                "images": number,
                "classes": ["class0", "class1"],
                "source": open_source(tmp_path / "a" / part).fingerprint(),
            }
            for part, number in (("train", 6), ("test", 4))
        ],
        "bad": [],
    }


@pytest.mark.parametrize("encode", ["raw", "jpeg"])
def test_the_same_data_gives_the_same_bytes(encode: str, tmp_path: Path) -> None:
    data = parts(tmp_path / "a")
    shutil.copytree(data, tmp_path / "copy")
    one = pack(data, tmp_path / "x.pack", encode=encode, workers=1)
    two = pack(tmp_path / "copy", tmp_path / "y.pack", encode=encode, workers=8)
    assert one.read_bytes() == two.read_bytes()
    assert open_source(one).fingerprint() == open_source(two).fingerprint()
    save(photo(99, 30, 30), data / "train/class0/000.jpg")
    three = pack(data, tmp_path / "z.pack", encode=encode)
    assert open_source(three).fingerprint() != open_source(one).fingerprint()
    train, test = (open_labelled(one)[k].fingerprint() for k in (0, 1))
    assert train != test


def test_in_more_than_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = many(tmp_path / "a")
    one = pack(data, tmp_path / "x.pack")
    monkeypatch.setattr("selfsame.data.pack._BUFFER", 3 * CANVAS**2 * 2)
    two = pack(data, tmp_path / "y.pack")
    assert one.read_bytes() == two.read_bytes()


# --- what is damaged


def damage(root: Path) -> Path:
    many(root)
    (root / "class0/002.jpg").write_text("hello")
    (root / "class1/001.jpg").write_bytes((root / "class1/001.jpg").read_bytes()[:300])
    return root


def test_bad_images_are_left_out_and_listed(tmp_path: Path) -> None:
    data = damage(tmp_path / "a")
    done = selfsame.pack(data, tmp_path / "x.pack", canvas=CANVAS, quiet=True)
    assert done["images"] == 4
    assert done["bytes"] == (tmp_path / "x.pack").stat().st_size
    assert done["bad"] == [
        {"part": "", "name": "class0/002.jpg", "reason": "not an image (starts with 'hello')"},
        {"part": "", "name": "class1/001.jpg", "reason": "truncated"},
    ]
    source = opened(tmp_path / "x.pack")
    assert source.facts["bad"] == done["bad"]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert_same(source, Subset(open_source(data), np.array([0, 2, 4, 5])))


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    data = parts(tmp_path / "a")
    for file in (data / "test").rglob("*.jpg"):
        file.write_text("hello")
    with pytest.raises(DataError, match="none of the 4 images is readable"):
        pack(data, tmp_path / "x.pack")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


REGIONS = ("magic", "format", "header", "record", "table", "names", "facts")


def region(content: bytes, name: str) -> int:
    """A byte in the middle of a region of a pack."""
    start, length = struct.unpack("<QQ", content[16:32])
    count = int.from_bytes(content[32:40], "little")
    table = 48 * count
    return {
        "magic": 3,
        "format": 8,
        "header": 20,
        "record": 64 + 1000,
        "table": start + table // 2,
        "names": start + table + 5,
        "facts": start + length - 40,
    }[name]


@pytest.mark.parametrize("name", REGIONS)
def test_a_truncated_pack_is_refused(name: str, tmp_path: Path) -> None:
    path = pack(many(tmp_path / "a"), tmp_path / "x.pack")
    content = path.read_bytes()
    for length in (region(content, name), region(content, name) + 1):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"is not a pack|is damaged|is not whole") as caught:
            open_source(path)
        assert caught.value.tip
    path.write_bytes(content + b"x")
    with pytest.raises(DataError, match="is not whole"):
        open_source(path)


def test_an_empty_file_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pack"
    for content in (b"", b"hello", bytes(100)):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is not a pack") as caught:
            open_source(path)
        assert caught.value.tip == "write one: selfsame pack DATA -o NAME.pack"


@pytest.mark.parametrize("bit", [0, 7])
@pytest.mark.parametrize("name", [name for name in REGIONS if name != "record"])
def test_a_flipped_bit_in_header_or_index_is_refused(name: str, bit: int, tmp_path: Path) -> None:
    path = pack(many(tmp_path / "a"), tmp_path / "x.pack")
    content = bytearray(path.read_bytes())
    content[region(bytes(content), name)] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is not a pack|is damaged") as caught:
        open_source(path)
    assert caught.value.tip


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    path = pack(many(tmp_path / "a"), tmp_path / "x.pack")
    content = bytearray(path.read_bytes())
    content[8] = 2
    content[60:64] = zlib.crc32(content[:60]).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(DataError, match="is a pack of format 2; this version reads format 1"):
        open_source(path)


@pytest.mark.parametrize("subset", [False, True])
@pytest.mark.parametrize("encode", ["raw", "jpeg"])
@pytest.mark.parametrize("kind", ["one size", "folders of classes"])
def test_a_flipped_bit_in_a_record_is_a_bad_image(
    kind: str, encode: str, subset: bool, tmp_path: Path
) -> None:
    data = SOURCES[kind](tmp_path)
    path = pack(data, tmp_path / "x.pack", encode=encode)
    whole = opened(path)
    row = whole._table[2]
    expected, label = whole.read(3), whole.labels
    content = bytearray(path.read_bytes())
    content[int(row["start"]) + int(row["length"]) - 1] ^= 1
    path.unlink()  # the map of the old file stays as it is
    path.write_bytes(content)
    source: Source = opened(path)
    if subset:
        source = Subset(source, np.arange(6))
    with Images(source, canvas=CANVAS) as images:
        for _ in range(2):
            batch = images.batch(torch.tensor([2, 3, 0]))
            assert torch.equal(batch.images[0], batch.images[1])
            assert label is not None
            assert batch.label is not None
            assert batch.label.tolist() == label[[3, 3, 0]].tolist()
        reason = "damaged in the pack (its CRC-32 is wrong)"
        assert images.bad == [(2, source.name(2), reason)]
        assert images.check() == (6, 1)
    assert np.array_equal(source.read(3), expected) or encode == "jpeg"


# --- where it cannot be written


@pytest.mark.parametrize("old", [False, True])
def test_an_interrupted_writer_leaves_what_was_there(
    old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = many(tmp_path / "a")
    if old:
        before = pack(data, tmp_path / "x.pack").read_bytes()

    def interrupted(path: Path, *args: Any, **options: Any) -> None:
        def stop(done: int) -> None:
            if done:
                raise KeyboardInterrupt

        write_pack(path, *args, **options | {"progress": stop})

    monkeypatch.setattr("selfsame.api.write_pack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(data, tmp_path / "x.pack", canvas=20)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a", "x.pack"] if old else names == ["a"]
    if old:
        assert (tmp_path / "x.pack").read_bytes() == before


def test_a_full_disk_is_noticed_before_and_while_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = many(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2000))
        with pytest.raises(UsageError, match="needs about 0 MiB, and 0 MiB are free") as caught:
            pack(data, tmp_path / "x.pack")
        assert "--encode jpeg" in str(caught.value.tip)

    # The limit on the size of a file stands for the disk.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        with pytest.raises(UsageError, match=r"cannot write .*x.pack: File too large"):
            pack(data, tmp_path / "x.pack")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize(
    ("out", "options", "message", "tip"),
    [
        ("x.tar", {}, "'*x.tar' does not end in .pack", "write '*x.pack'"),
        ("x.pack", {"encode": "png"}, "unknown encoding 'png'", "legal values: jpeg, raw"),
        ("x.pack", {"quality": 0}, "quality is 0", "1 to 100"),
        ("x.pack", {"encode": "jpeg", "channels": 4}, "JPEG has 1 or 3 channels", "raw"),
        ("x.pack", {"canvas": 0}, "one is not positive", "1 or more"),
        ("no/x.pack", {}, "cannot write *no/x.pack: No such file", "a folder that exists"),
        ("full.pack", {}, "*full.pack is a folder", "name a file"),
    ],
)
def test_wrong_use(
    out: str, options: dict[str, Any], message: str, tip: str, tmp_path: Path
) -> None:
    data = many(tmp_path / "full.pack")  # a folder of photos may have such a name
    with pytest.raises(UsageError) as caught:
        pack(data, tmp_path / out, **options)
    for wanted, said in ((message, str(caught.value)), (tip, str(caught.value.tip))):
        assert all(word in said for word in wanted.split("*")), said
    assert len(open_source(data)) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full.pack"]


def test_the_canvas_is_what_views_of_224_can_show(tmp_path: Path) -> None:
    for size, canvas in (((600, 100), 448), ((300, 200), 300), ((30, 20), 30)):
        data = many(tmp_path / str(canvas), 2, size=size)
        assert selfsame.pack(data, tmp_path / "x.pack", quiet=True)["canvas"] == canvas


# --- real files


@pytest.mark.skipif("SELFSAME_DATA" not in os.environ, reason="SELFSAME_DATA names no data folder")
def test_awkward_files(tmp_path: Path) -> None:
    unpack(Path(os.environ["SELFSAME_DATA"]) / "awkward-images.tar", tmp_path / "a")
    shutil.rmtree(tmp_path / "a/bomb")  # decoded elsewhere; one takes seconds
    original = open_source(tmp_path / "a")
    path = pack(tmp_path / "a", tmp_path / "x.pack", canvas=100)
    with Images(original, canvas=100) as images:
        good = torch.cat([batch.index for batch in images.readable(64)])
        bad = [{"part": "", "name": b.name, "reason": b.reason} for b in images.bad]
    source = opened(path)
    assert len(bad) > 20
    assert source.facts["bad"] == bad
    assert_same(source, Subset(original, good.numpy()), canvas=100)
