from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import unpack
from inputs import labels, names, noted, numbers, png, refused

from selfsame.data import Images, Loader, open_labelled, open_source
from selfsame.data.archive import MAX_MEMBER, Tar, Zip

Folder = Callable[..., Path]
needs_data = pytest.mark.skipif(
    "SELFSAME_DATA" not in os.environ, reason="SELFSAME_DATA names no data folder"
)


def write_tar(path: Path, files: Mapping[str, bytes], form: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_zip(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


# --- tar


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_form_of_tar(tmp_path: Path, form: int) -> None:
    long = "/".join(["a" * 60, "b" * 60, "c.png"])
    files = {"x/é.png" if form != tarfile.USTAR_FORMAT else "x/e.png": png(1), long: png(2)}
    source = open_source(write_tar(tmp_path / "a.tar", files, form))
    assert dict(zip(names(source), numbers(source), strict=True)) == {
        name: k + 1 for k, name in enumerate(files)
    }


def test_a_tar_of_a_folder_is_the_folder(make_folder: Folder, tmp_path: Path) -> None:
    root = make_folder({"cat": 3, "dog/big": 2})
    (root / "cat/notes.md").write_text("x")
    path = tmp_path / "photos.tar"
    subprocess.run(["tar", "-cf", path, "-C", root, "."], check=True)
    folder, packed = open_source(root), open_source(path)
    assert names(packed) == names(folder)
    assert labels(packed) == labels(folder) == ["cat"] * 3 + ["dog"] * 2
    assert packed.fingerprint() == folder.fingerprint()
    assert [packed.read(i) for i in range(5)] == [folder.read(i) for i in range(5)]
    assert noted(path)[1] == noted(root)[1] == ["other files ignored: 1 .md"]


def test_a_tar_is_read_by_many_threads(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{k:03}.png": png(k) for k in range(200)})
    source = open_source(path)
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(200), 5)).tolist()
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(source.read, order))
    assert read == [png(k) for k in order]


def test_parts_inside_a_tar(tmp_path: Path) -> None:
    files = {f"train/{c}/{k}.png": png(k) for k, c in enumerate("abab")}
    files |= {"val/b/9.png": png(9), "val/a/8.png": png(8), "extra/1.png": png(1)}
    path = write_tar(tmp_path / "a.tar", files)
    train, test, how = open_labelled(path)
    assert names(train) == ["a/0.png", "a/2.png", "b/1.png", "b/3.png"]
    assert (numbers(test), labels(test)) == ([8, 9], ["a", "b"])
    assert how.startswith("the data's own parts: train/ and val/; 4 train and 2 test images")
    assert noted(path)[1] == [
        "only the part train/; val/ is left for evaluation",
        "images in neither train nor val, not used: 1",
    ]


def test_what_says_nothing_of_parts_is_for_training(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"train/x/0.png": png(0), "test/x/1.png": png(1)})
    write_tar(tmp_path / "b.tar", {"photos/2.png": png(2)})
    source, notes = noted(str(tmp_path / "*.tar"))
    assert dict(zip(names(source), numbers(source), strict=True)) == {
        "a.tar/x/0.png": 0,
        "b.tar/photos/2.png": 2,
    }
    assert notes == ["only the part train/; test/ is left for evaluation"]
    for name in ("train-0", "val-0", "more"):
        write_tar(tmp_path / f"s/{name}.tar", {f"{name}.png": png(3)})
    assert [name.split("/")[1] for name in names(open_source(tmp_path / "s"))] == [
        "more.png",
        "train-0.png",
    ]


def test_webdataset_shards(tmp_path: Path) -> None:
    for k, part in enumerate(("train-000", "train-001", "val-000")):
        write_tar(
            tmp_path / f"{part}.tar",
            {
                name: content
                for i in range(2)
                for name, content in (
                    (f"{k}{i}.png", png(10 * k + i)),
                    (f"{k}{i}.cls", str(9 + i).encode()),
                    (f"{k}{i}.txt", b"a caption"),
                )
            },
        )
    for spec in (tmp_path, str(tmp_path / "*.tar"), [tmp_path / f for f in os.listdir(tmp_path)]):
        train, test, _ = open_labelled(spec)
        assert numbers(train) == [0, 1, 10, 11]
        assert train.classes == ["9", "10"]  # by value
        assert labels(test) == ["9", "10"]
        assert names(test)[0] == "val-000.tar/20.png"
    source, notes = noted(str(tmp_path / "train-{000..001}.tar"))
    assert numbers(source) == [0, 1, 10, 11]
    assert notes == ["other files ignored: 4 .txt"]


def test_labels_in_json(tmp_path: Path) -> None:
    files = {}
    for k, label in enumerate(("dog", "cat")):
        files |= {f"s/{k}.seg.png": png(k), f"s/{k}.json": json.dumps({"Label": label}).encode()}
    path = write_tar(tmp_path / "a.tar", files)
    assert labels(open_source(path)) == ["dog", "cat"]
    files["s/2.png"] = png(2)
    source, notes = noted(write_tar(tmp_path / "b.tar", files))
    assert source.labels is None
    assert notes == ["labels ignored: 1 of 3 images have none"]
    error = refused(tmp_path / "b.tar", open_labelled)
    assert str(error) == "the data has no labels: labels ignored: 1 of 3 images have none"


@pytest.mark.parametrize("cut", ["body", "header", "end", "flip"])
def test_a_damaged_tar_keeps_what_is_before(tmp_path: Path, cut: str) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{k}.png": png(k) for k in range(4)})
    with tarfile.open(path) as tar:
        last = tar.getmembers()[3]
    whole = path.read_bytes()
    at = {"body": last.offset_data + 5, "header": last.offset + 9, "end": last.offset}.get(cut)
    damaged = whole[: last.offset] + b"??" + whole[last.offset + 2 :] if at is None else whole[:at]
    path.write_bytes(damaged)
    source, notes = noted(path)
    assert numbers(source) == [0, 1, 2]
    reason = {"body": "is cut off at byte", "flip": "is damaged at byte"}.get(cut, "no end mark")
    assert reason in notes[0]
    assert notes[0].endswith("only the 3 files before are used")


@pytest.mark.parametrize("content", [b"", b"hello", b"x" * 2000])
def test_no_tar_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    assert "is not a tar archive" in str(refused(tmp_path / "a.tar"))


@pytest.mark.parametrize(
    ("end", "tool"), [(".tar.gz", "gunzip"), (".tar.bz2", "bunzip2"), (".tar.xz", "unxz")]
)
def test_compressed_tars(tmp_path: Path, end: str, tool: str) -> None:
    path = tmp_path / f"a{end}"
    with tarfile.open(path, f"w:{end[5:]}"):
        pass
    for name in (path, path.rename(tmp_path / "b.tar")):
        if name.exists():
            error = refused(name)
            assert "one image cannot be read without all before it" in str(error)
            assert f"{tool} '{name}'" in str(error.tip)


def test_members_that_are_not_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("x.png", ".hidden.png", "__MACOSX/y.png", "./z.png"):
            info = tarfile.TarInfo(name)
            info.size = len(png(1))
            tar.addfile(info, io.BytesIO(png(1)))
        for name, kind in (("link.png", tarfile.SYMTYPE), ("folder.png", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "x.png"
            tar.addfile(info)
        info = tarfile.TarInfo("x.png")
        info.size = len(png(2))
        tar.addfile(info, io.BytesIO(png(2)))
    source, notes = noted(tmp_path / "a.tar")
    assert names(source) == ["x.png", "z.png"]
    assert numbers(source) == [2, 1]  # the later one, as when it is unpacked
    assert notes[0].startswith("links in '")
    assert notes[1].endswith("that later ones of the same name replace: 1")


def test_large_numbers_in_headers(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    info = tarfile.TarInfo("big.png")
    info.size = 2**33 + 5  # 8 GiB and more are binary, not octal
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    with path.open("r+b") as file:
        file.truncate(512 + 2**33 + 512)  # a hole
        file.seek(512 + 2**33 + 512)
        small = tarfile.TarInfo("small.png")
        small.size = len(png(3))
        file.write(small.tobuf() + png(3).ljust(512, b"\0") + bytes(1024))
    tar = Tar(str(path))
    assert tar.names == ["big.png", "small.png"]
    assert (tar.size(0), tar.read(1)) == (2**33 + 5, png(3))
    assert not tar.notes


def test_archives_folders_and_files_together(make_folder: Folder, tmp_path: Path) -> None:
    root = make_folder({"cat": 1, "dog": 1})
    packed = write_tar(tmp_path / "more.tar", {"a.png": png(7)})
    zipped = write_zip(tmp_path / "last.zip", {"b.png": png(8)})
    source = open_source([root / "cat", root / "dog/*.png", packed, str(zipped)])
    assert dict(zip(names(source), numbers(source), strict=True)) == {
        "00.png": 1,
        "cat/00.png": 0,
        "last.zip/b.png": 8,
        "more.tar/a.png": 7,
    }
    assert source.labels is None


# --- zip


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip(tmp_path: Path, method: int) -> None:
    files = {f"{c}/{k}.png": png(k) for k, c in enumerate("abab")} | {"a/notes.md": b"x"}
    source, notes = noted(write_zip(tmp_path / "a.zip", files, method))
    assert numbers(source) == [0, 2, 1, 3]
    assert labels(source) == list("aabb")
    assert notes == ["other files ignored: 1 .md"]
    assert source.fingerprint() == open_source(write_tar(tmp_path / "a.tar", files)).fingerprint()


def test_members_of_a_zip_that_cannot_be_read(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {f"{k}.png": png(k) for k in range(5)}, 0)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("5.png", png(5), zipfile.ZIP_LZMA)
        infos = archive.infolist()
    raw = bytearray(path.read_bytes())
    central = [raw.index(f"{k}.png".encode(), archive.start_dir) - 46 for k in range(5)]
    raw[central[1] + 8] |= 1  # encrypted
    raw[central[2] + 24 : central[2] + 28] = (MAX_MEMBER + 1).to_bytes(4, "little")
    raw[infos[3].header_offset + 60] ^= 255
    raw[infos[4].header_offset + 26] ^= 255  # the length of its name
    path.write_bytes(raw)
    with Images(open_source(path), canvas=32) as images:
        images.batch(torch.arange(6))
        reasons = {bad.name: bad.reason for bad in images.bad}
    damaged = "damaged in the zip archive"
    assert reasons == {
        "1.png": "encrypted",
        "2.png": f"{MAX_MEMBER + 1} bytes, more than the limit of {MAX_MEMBER}",
        "3.png": damaged,
        "4.png": damaged,
        "5.png": "zip compression 14; only deflate is supported",
    }


def test_a_bomb_that_lies_about_its_size_stays_small(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"0.png": png(0), "1.png": bytes(64 * 2**20)})
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"1.png") - 46
    raw[at + 24 : at + 28] = (1000).to_bytes(4, "little")
    path.write_bytes(raw)
    source = open_source(path)
    before = source.read(0)
    with pytest.raises(Exception, match="damaged in the zip archive"):
        source.read(1)
    assert before == png(0)


def test_damaged_zips(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"0.png": png(0)})
    path.write_bytes(path.read_bytes()[:-30])
    assert "cannot read" in str(refused(path))
    assert "unzip -t" in str(refused(path).tip)


def test_a_zip_is_read_by_many_threads(tmp_path: Path) -> None:
    store = Zip(str(write_zip(tmp_path / "a.zip", {f"{k}.png": png(k) for k in range(100)})))
    before = threading.active_count()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(store.read, [*range(100)] * 5)) == [png(k) for k in range(100)] * 5
    assert threading.active_count() == before


def test_a_name_twice_in_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("a.png", png(1))
        archive.writestr("a.png", png(2))
    source, notes = noted(tmp_path / "a.zip")
    assert numbers(source) == [2]
    assert notes == [f"files in '{tmp_path / 'a.zip'}' that later ones of the same name replace: 1"]


# --- real archives


@needs_data
def test_imagenette_as_a_tar_and_unpacked(tmp_path: Path) -> None:
    path = Path(os.environ["SELFSAME_DATA"]) / "imagenette-224.tar"
    train, test, how = open_labelled(path)
    assert (len(train), len(test), len(train.classes or ())) == (1800, 500, 10)
    assert how.endswith("other files ignored: 1 .json")
    unpack(path, tmp_path)
    unpacked, _, _ = open_labelled(tmp_path)
    assert names(train) == names(unpacked)
    assert labels(train) == labels(unpacked)
    assert train.fingerprint() == unpacked.fingerprint()
    batches = []
    for source in (train, unpacked):
        with (
            Images(source, canvas=64, cache_bytes=0) as images,
            Loader(images, 64, seed=1, start=0, total=4) as loader,
        ):
            batches.append([batch.images for _, batch in loader])
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
    assert all(train.read(i) == unpacked.read(i) for i in range(1800))


@needs_data
def test_nuclei_as_a_tar() -> None:
    source, notes = noted(Path(os.environ["SELFSAME_DATA"]) / "nuclei-dsb2018.tar")
    assert len(source) == 250
    assert source.classes == ["images", "labels"]
    assert notes == ["other files ignored: 1 .csv"]


@needs_data
def test_the_awkward_tar_gives_pixels_or_reasons() -> None:
    source, notes = noted(Path(os.environ["SELFSAME_DATA"]) / "awkward-images.tar")
    with tarfile.open(Path(os.environ["SELFSAME_DATA"]) / "awkward-images.tar") as tar:
        files = [member.name for member in tar if member.isfile()]
    assert notes == ["other files ignored: 1 .bin, 1 .csv, 1 .heif"]
    assert len(source) == len(files) - 3
    with Images(source, canvas=64) as images:
        images.batch(torch.arange(len(source)))
        bad = images.bad
    assert 0 < len(bad) < len(source) / 3
    assert all(image.reason and image.name in files for image in bad)
