"""Patterns, lists of paths, tables, stacks and URLs, as people have them."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import encoded
from helpers import run_fresh
from inputs import labels, names, noted, numbers, png, refused
from PIL import Image
from test_archive import write_tar, write_zip

from selfsame.data import Images, open_labelled, open_source, tables
from selfsame.errors import UsageError

Folder = Callable[..., Path]


# --- patterns


def test_patterns_are_folders_with_a_filter(make_folder: Folder) -> None:
    root = make_folder({"cat": 2, "dog": 2, "dog/old": 1})
    (root / "dog/notes.md").write_text("x")
    for pattern in ("**/*.png", "**", "*"):
        source = open_source(str(root / pattern))
        assert names(source) == names(open_source(root))
        assert labels(source) == ["cat"] * 2 + ["dog"] * 3
    assert numbers(open_source(root / "*/0[01].png")) == [0, 1, 2, 3]
    assert names(open_source(str(root / "dog/*.png"))) == ["00.png", "01.png"]
    assert labels(open_source(str(root / "{cat,dog}/0*.png"))) == ["cat"] * 2 + ["dog"] * 2
    assert noted(str(root / "**/*"))[1] == ["other files ignored: 1 .md"]
    assert numbers(open_source([str(root / "cat/*.png"), root / "dog/old"])) == [0, 1, 4]


def test_braces(make_folder: Folder) -> None:
    root = make_folder({"": 12})
    assert numbers(open_source(f"{root}/{{08..11}}.png")) == [8, 9, 10, 11]
    assert numbers(open_source(f"{root}/{{0,1}}{{1..0}}.png")) == [0, 1, 10, 11]
    assert "does not exist" in str(refused(f"{root}/{{08..13}}.png"))
    assert "more than 100000 paths" in str(refused(f"{root}/{{0..999999}}.png"))
    assert "more than 100000 paths" in str(refused(f"{root}/{{0..999}}{{0..999}}.png"))


def test_a_path_that_exists_is_no_pattern(make_folder: Folder) -> None:
    root = make_folder({"": 2})
    (root / "01.png").rename(root / "{1..2}[a]*.png")
    assert numbers(open_source(root / "{1..2}[a]*.png")) == [1]
    assert numbers(open_source([root / "00.png", root / "{1..2}[a]*.png"])) == [0, 1]


def test_nothing_matches(tmp_path: Path) -> None:
    error = refused(tmp_path / "*.jpg")
    assert str(error) == f"nothing matches '{tmp_path / '*.jpg'}'"
    assert f"'{tmp_path}/'" in str(error.tip)


def test_kinds_that_do_not_mix(make_folder: Folder, tmp_path: Path) -> None:
    root = make_folder({"a": 1})
    (tmp_path / "list.txt").write_text("photos/a/00.png\n")
    error = refused([root, tmp_path / "list.txt"])
    assert isinstance(error, UsageError)
    assert "list.txt' cannot be opened together" in str(error)


# --- lists of paths


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "id,Image_Path,Class\n7,a/00.png,x\n8,b/00.png,y\n9,b/01.png,x\n"),
        ("a.csv", "a/00.png,x\nb/00.png, y\n\nb/01.png,x\n"),
        ("a.csv", "\ufefffilename;label\r\na/00.png;x\r\nb/00.png;y\r\nb/01.png;x\r\n"),
        ("a.tsv", "label\tfile\nx\ta/00.png\ny\tb/00.png\nx\tb/01.png\n"),
        ("a.TSV", 'y\tpath\nx\t"a/00.png"\ny\tb/00.png\nx\tb/01.png\n'),
    ],
)
def test_tables_of_paths(make_folder: Folder, name: str, text: str) -> None:
    root = make_folder({"a": 1, "b": 2})
    (root / name).write_text(text, "utf-8")
    source = open_source(root / name)
    assert names(source) == ["a/00.png", "b/00.png", "b/01.png"]
    assert numbers(source) == [0, 1, 2]
    assert labels(source) == ["x", "y", "x"]


def test_a_text_of_paths(make_folder: Folder, tmp_path: Path) -> None:
    root = make_folder({"a": 2, "b c": 1})
    (root / "l.txt").write_text(f"b c/00.png\n\n{root / 'a/01.png'}\na/00.png \n")
    source = open_source(root / "l.txt")
    assert numbers(source) == [2, 1, 0]  # in the order of the list
    assert source.labels is None
    (root / "m.txt").write_text("b c/00.png 10\na/00.png 9\n")
    assert labels(open_source(root / "m.txt")) == ["10", "9"]
    assert open_source(root / "m.txt").classes == ["9", "10"]


def test_parts_by_a_column_or_by_the_lists_names(make_folder: Folder) -> None:
    root = make_folder({"a": 6})
    rows = "".join(
        f"a/0{k}.png,{'xy'[k % 2]},{part}\n"
        for k, part in enumerate(("Train", "train", "test", "val", "train", "test"))
    )
    (root / "all.csv").write_text(f"path,label,split\n{rows}")
    train, test, how = open_labelled(root / "all.csv")
    assert (numbers(train), numbers(test)) == ([0, 1, 4], [2, 5])
    assert "the data's own parts: train and test" in how
    assert how.endswith("images in neither train nor test, not used: 1")
    (root / "my_train.csv").write_text("path,label\na/00.png,x\na/01.png,y\n")
    (root / "my_val.csv").write_text("path,label\na/02.png,y\n")
    train, test, _ = open_labelled(root / "my_*.csv")
    assert (numbers(train), numbers(test), labels(test)) == ([0, 1], [2], ["y"])


def test_lists_in_parquet(make_folder: Folder) -> None:
    root = make_folder({"a": 3})
    table = pa.table({"file_name": ["a/00.png", "a/01.png", "a/02.png"], "label": [3, 10, 3]})
    pq.write_table(table, root / "list.parquet")
    source = open_source(root / "list.parquet")
    assert (numbers(source), labels(source)) == ([0, 1, 2], ["3", "10", "3"])


def test_missing_files_of_a_list(make_folder: Folder, tmp_path: Path) -> None:
    root = make_folder({"a": 3})
    (root / "a/01.png").unlink()
    (root / "l.txt").write_text("a/00.png\na/01.png\na/02.png\n")
    with Images(open_source(root / "l.txt"), canvas=32) as images:
        images.batch(torch.arange(3))
        assert [(bad.name, bad.reason) for bad in images.bad] == [
            ("a/01.png", "cannot read the file: No such file or directory")
        ]
    (root / "a/l.txt").write_text("a/00.png\na/02.png\n")
    error = refused(root / "a/l.txt")
    assert f"names 'a/00.png', which is not in '{root / 'a'}'" in str(error)
    assert error.tip == f"it is in '{root}': move the list there"
    (root / "m.txt").write_text("nowhere.png\n")
    assert "relative to the list's folder" in str(refused(root / "m.txt").tip)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "is empty"),
        ("a.txt", "\n \n", "is empty"),
        ("a.csv", "path,label\n", "names no image"),
        ("a.csv", "id,label\n3,4\n", "has no column of paths; its columns: id, label"),
        ("a.csv", "path,label\na.png,x\nb.png,y,z\n", "row 3 of"),
    ],
)
def test_lists_that_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    assert message in str(refused(tmp_path / name))


def test_spaces_around_a_label_make_no_class(make_folder: Folder) -> None:
    root = make_folder({"a": 3})
    (root / "l.csv").write_text("path,label\na/00.png,cat\na/01.png,cat \na/02.png, dog\n")
    assert open_source(root / "l.csv").classes == ["cat", "dog"]


def test_the_fingerprint_of_a_list(make_folder: Folder) -> None:
    root = make_folder({"a": 2})
    prints = []
    for text in ("path,label\na/00.png,x\na/01.png,y\n", "path,label\na/00.png,x\na/01.png,x\n"):
        (root / "l.csv").write_text(text)
        prints.append(open_source(root / "l.csv").fingerprint())
    (root / "a/00.png").write_bytes(png(3) + b"1")
    assert len({*prints, open_source(root / "l.csv").fingerprint()}) == 3


# --- tables of images


def hub_table(first: int, n: int, names: list[str] | None = None) -> pa.Table:
    """As the Hugging Face hub has it: a struct of bytes and path, and a label."""
    rows = range(first, first + n)
    image = [{"bytes": png(k), "path": f"{k}.png"} for k in rows]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(image, kind), "label": [k % 2 for k in rows]})
    if names is None:
        return table
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    meta = json.dumps({"info": {"features": features}})
    return table.replace_schema_metadata({"huggingface": meta})


def test_parquet_of_the_hub(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, first, n in (("train-0", 0, 5), ("train-1", 5, 4), ("test-0", 9, 3)):
        table = hub_table(first, n, ["cat", "dog", "cow"])
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=2)
    (folder / "README.md").write_text("x")
    train, test, how = open_labelled(folder)
    assert numbers(train) == list(range(9))
    assert labels(train) == ["cat", "dog"] * 4 + ["cat"]
    assert train.classes == ["cat", "dog", "cow"]
    assert names(train)[6] == "train-1.parquet[1]"
    assert numbers(test) == [9, 10, 11]
    assert how.startswith("the data's own parts: train and test; 9 train and 3 test images")
    assert how.endswith("other files ignored: 1")
    assert numbers(open_source(folder / "train-*.parquet")) == list(range(9))
    assert numbers(open_source(folder / "test-0.parquet")) == [9, 10, 11]


def test_parquet_with_plain_bytes_and_a_column_of_parts(tmp_path: Path) -> None:
    rows = {
        "jpg": [png(k) for k in range(6)],
        "thumbnail": [b"1"] * 6,
        "class": ["x", "y"] * 3,
        "split": ["train"] * 4 + ["validation"] * 2,
    }
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    train, test, _ = open_labelled(tmp_path / "a.parquet")
    assert (numbers(train), labels(train)) == ([0, 1, 2, 3], ["x", "y", "x", "y"])
    assert (numbers(test), labels(test)) == ([4, 5], ["x", "y"])


def test_row_groups_are_read_once_and_few_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(hub_table(0, 40), tmp_path / "a.parquet", row_group_size=4)
    reads: list[int] = []
    load = tables._Parquet._load
    monkeypatch.setattr(tables._Parquet, "_load", lambda s, k: (reads.append(k), load(s, k))[1])
    source = open_source(tmp_path / "a.parquet")
    with ThreadPoolExecutor(8) as pool:
        order = np.random.default_rng(0).permutation(np.repeat(np.arange(40), 5)).tolist()
        assert list(pool.map(source.read, order)) == [png(k) for k in order]
    assert sorted(reads) == list(range(10))
    monkeypatch.setattr(tables, "CACHE_BYTES", 1000)
    small, notes = noted(tmp_path / "a.parquet")
    assert "row groups of 4" in notes[0]
    reads.clear()
    assert numbers(small) == list(range(40))
    assert reads == list(range(10))
    assert isinstance(small, tables.TableSource)
    assert len(small._recent._kept) < 10


def test_rows_without_an_image(tmp_path: Path) -> None:
    (tmp_path / "there.png").write_bytes(png(5))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values = [
        {"bytes": png(1), "path": None},
        None,
        {"bytes": None, "path": "there.png"},
        {"bytes": None, "path": "gone.png"},
        {"bytes": b"hello", "path": None},
    ]
    pq.write_table(pa.table({"image": pa.array(values, kind)}), tmp_path / "a.parquet")
    with Images(open_source(tmp_path / "a.parquet"), canvas=32) as images:
        batch = images.batch(torch.arange(5))
        assert batch.images[:, 0, 0, 0].tolist() == [1, 5, 5, 1, 1]
        assert [(bad.name, bad.reason) for bad in images.bad] == [
            ("a.parquet[1]", "the row is empty"),
            ("a.parquet[3]", "cannot read the file: No such file or directory"),
            ("a.parquet[4]", "not an image (starts with 'hello')"),
        ]


def test_the_fingerprint_of_a_table(tmp_path: Path) -> None:
    pq.write_table(hub_table(0, 4), tmp_path / "a.parquet")
    before = open_source(tmp_path / "a.parquet").fingerprint()
    (tmp_path / "b").mkdir()
    (tmp_path / "a.parquet").rename(tmp_path / "b/c.parquet")
    assert open_source(tmp_path / "b/c.parquet").fingerprint() == before
    pq.write_table(hub_table(1, 4), tmp_path / "a.parquet")
    assert open_source(tmp_path / "a.parquet").fingerprint() != before


def test_tables_that_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "a.parquet")
    assert "its columns: a int64, b string" in str(refused(tmp_path / "a.parquet"))
    pq.write_table(pa.table({"u": [b"1"], "v": [b"x"]}), tmp_path / "b.parquet")
    assert "several columns of bytes: u, v" in str(refused(tmp_path / "b.parquet"))
    pq.write_table(hub_table(0, 0), tmp_path / "c.parquet")
    assert "has no rows" in str(refused(tmp_path / "c.parquet"))
    assert "have other columns" in str(refused([tmp_path / "a.parquet", tmp_path / "c.parquet"]))
    (tmp_path / "d.parquet").write_bytes(b"hello")
    assert "cannot read" in str(refused(tmp_path / "d.parquet"))


def test_unknown_labels_of_a_table(tmp_path: Path) -> None:
    table = hub_table(0, 3, ["cat", "dog"]).set_column(1, "label", pa.array([0, -1, 1]))
    pq.write_table(
        table.replace_schema_metadata(hub_table(0, 1, ["cat", "dog"]).schema.metadata),
        tmp_path / "a.parquet",
    )
    source, notes = noted(tmp_path / "a.parquet")
    assert source.labels is None
    assert notes == ["labels ignored: 1 of 3 images have none"]


# --- what Hugging Face saves


def save_like_hub(folder: Path, table: pa.Table, **state: Any) -> None:
    """The layout of ``Dataset.save_to_disk``: Arrow streams, state.json, dataset_info.json."""
    folder.mkdir(parents=True)
    files = []
    for k, part in enumerate((table.slice(0, 3), table.slice(3))):
        name = f"data-{k:05}-of-00002.arrow"
        with pa.OSFile(str(folder / name), "wb") as out, pa.ipc.new_stream(out, table.schema) as w:
            w.write_table(part, max_chunksize=2)
        files.append({"filename": name})
    (folder / "state.json").write_text(json.dumps({"_data_files": files, **state}))
    (folder / "dataset_info.json").write_text("{}")


def test_a_saved_data_set(tmp_path: Path) -> None:
    save_like_hub(tmp_path / "one", hub_table(0, 7, ["cat", "dog"]))
    source = open_source(tmp_path / "one")
    assert numbers(source) == list(range(7))
    assert labels(source)[:3] == ["cat", "dog", "cat"]
    assert names(source)[4] == "data-00001-of-00002.arrow[1]"
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(source.read, range(7))) == [png(k) for k in range(7)]


def test_a_saved_data_set_of_parts(tmp_path: Path) -> None:
    for part, first in (("train", 0), ("validation", 7), ("extra", 14)):
        save_like_hub(tmp_path / part, hub_table(first, 7, ["cat", "dog"]))
    splits = {"splits": ["train", "validation", "extra"]}
    (tmp_path / "dataset_dict.json").write_text(json.dumps(splits))
    train, test, how = open_labelled(tmp_path)
    assert (numbers(train), numbers(test)) == (list(range(7)), list(range(7, 14)))
    assert how.endswith("the part extra is not used")
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["extra", "other"]}))
    assert "has the parts extra, other" in str(refused(tmp_path))


def test_saved_data_sets_that_are_refused(tmp_path: Path) -> None:
    save_like_hub(tmp_path / "a", hub_table(0, 7), _indices_data_files=[{"filename": "i.arrow"}])
    assert "flatten_indices" in str(refused(tmp_path / "a").tip)
    save_like_hub(tmp_path / "b", pa.table({"text": ["a"] * 5}))
    assert "has no column of images" in str(refused(tmp_path / "b"))
    save_like_hub(tmp_path / "c", hub_table(0, 7))
    (tmp_path / "c/data-00001-of-00002.arrow").write_bytes(b"hello")
    assert "cannot read" in str(refused(tmp_path / "c"))
    (tmp_path / "c/state.json").write_text("{")
    assert "state.json" in str(refused(tmp_path / "c"))


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="datasets is not here")
@pytest.mark.filterwarnings("default")
def test_what_datasets_itself_makes(tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = [{"img": encoded(k), "label": k % 2} for k in range(6)]
    whole = datasets.Dataset.from_list(rows, features=features)
    both = datasets.DatasetDict({"train": whole, "test": whole.select([5, 2])})
    both.save_to_disk(tmp_path / "saved")
    whole.to_parquet(tmp_path / "train.parquet")
    both["test"].to_parquet(tmp_path / "test.parquet")
    for spec in (both, tmp_path / "saved", tmp_path / "*.parquet"):
        train, test, _ = open_labelled(spec)
        assert numbers(train) == list(range(6))
        assert numbers(test) == [5, 2]
        assert (labels(train), labels(test)) == (["cat", "dog"] * 3, ["dog", "cat"])
    assert open_source(whole).name(1) == "Dataset[1]"


# --- items of data sets


@pytest.mark.parametrize(
    "item",
    [
        {"image": encoded(9), "label": 1},
        {"img": np.asarray(encoded(9)), "labels": 1},
        {"pixel_values": torch.from_numpy(np.array(encoded(9)) / np.float32(255)), "target": 1},
        (torch.from_numpy(np.array(encoded(9)).astype(np.uint16) * 257), 1),
        (png(9), 1),
        {"image": {"bytes": png(9), "path": None}, "label": 1},
    ],
)
def test_items(item: Any) -> None:
    source = open_source([item, item])
    assert numbers(source) == [9, 9]
    assert labels(open_labelled([item] * 3).train) == ["1", "1"]
    assert len(source.fingerprint()) == 16


def test_items_that_are_paths(make_folder: Folder) -> None:
    root = make_folder({"": 2})
    pairs = [(root / "00.png", "x"), (str(root / "01.png"), "y")]
    assert numbers(open_source(pairs)) == [0, 1]
    assert "names 'hello': No such file" in str(refused([("hello", 0)]))


def test_floats_out_of_range_are_bad_images() -> None:
    good, bad = torch.full((3, 8, 8), 0.5), torch.full((3, 8, 8), 2.5)
    with Images(open_source([(good, 0), (bad, 0)]), canvas=8) as images:
        assert images.batch(torch.arange(2)).images.unique().tolist() == [128]
        assert "values in 0..2.5" in images.bad[0].reason
    assert "Normalize" in str(refused([(bad, 0)]).tip)
    assert "Normalize" in str(refused([(torch.full((3, 8, 8), float("nan")), 0)]).tip)


def test_a_dict_of_parts(make_folder: Folder) -> None:
    root = make_folder({"a/x": 2, "a/y": 2, "b/x": 1, "b/y": 1})
    train, test, how = open_labelled({"train": root / "a", "test": root / "b", "more": root})
    assert (numbers(train), numbers(test)) == ([0, 1, 2, 3], [4, 5])
    assert how.endswith("the part more is not used")
    assert "holds no train and test part" in str(refused({"a": root}))


def test_torchvision_data_sets(make_folder: Folder) -> None:
    from torchvision.datasets import FakeData, ImageFolder

    source = open_source(ImageFolder(make_folder({"cat": 2, "dog": 1})))
    assert (numbers(source), labels(source)) == ([0, 1, 2], ["cat", "cat", "dog"])
    train, _, _ = open_labelled(FakeData(20, (3, 8, 8), num_classes=2))
    assert len(train.classes or ()) == 2


# --- TIFF stacks


def test_a_stack_of_pages(make_folder: Folder, tmp_path: Path) -> None:
    pages = [encoded(k) for k in range(5)]
    pages[0].save(tmp_path / "cells.tif", save_all=True, append_images=pages[1:])
    source = open_source(tmp_path / "cells.tif")
    assert numbers(source) == list(range(5))
    assert names(source)[3] == "cells.tif[3]"
    with ThreadPoolExecutor(8) as pool:
        order = [k % 5 for k in range(200)]
        read = pool.map(lambda k: int(np.asarray(source.read(k))[0, 0, 0]), order)
        assert list(read) == order
    assert len(open_source(tmp_path)) == 1  # in a folder, a file is one image
    pages[0].save(tmp_path / "one.tif")
    assert names(open_source(tmp_path / "one.tif")) == ["one.tif"]
    before = source.fingerprint()
    pages[0].save(tmp_path / "cells.tif", save_all=True, append_images=pages[:0:-1])
    assert open_source(tmp_path / "cells.tif").fingerprint() != before


def test_deep_pages_keep_their_values(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((6, 5), 1000 * k, np.uint16)) for k in range(3)]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    pixels = open_source(tmp_path / "a.tiff").read(2)
    assert isinstance(pixels, np.ndarray)
    assert (pixels.shape, pixels.max()) == ((6, 5), 2000)


def test_a_damaged_page_is_one_bad_image(tmp_path: Path) -> None:
    pages = [encoded(k) for k in range(3)]
    path = tmp_path / "a.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:], compression="tiff_lzw")
    with Image.open(path) as image:
        image.seek(1)
        start = image.tag_v2[273][0]  # type: ignore[attr-defined]
    raw = bytearray(path.read_bytes())
    raw[start : start + 20] = b"\xff" * 20
    path.write_bytes(raw)
    with Images(open_source(path), canvas=32) as images:
        assert images.batch(torch.arange(3)).images[:, 0, 0, 0].tolist() == [0, 2, 2]
        assert images.bad[0].name == "a.tif[1]"
    with Image.open(path) as image:
        image.seek(2)
        directory = image.tag_v2._offset  # type: ignore[attr-defined]
    path.write_bytes(raw[: directory + 1])
    error = refused(path)
    assert "the pages of" in str(error)
    assert "its first page only" in str(error.tip)


# --- URLs


@pytest.fixture
def memory() -> Iterator[Any]:
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not here")
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_urls_of_every_kind(memory: Any, tmp_path: Path) -> None:
    for k, c in enumerate("aabb"):
        memory.pipe(f"/photos/{c}/{k}.png", png(k))
    write_tar(tmp_path / "a.tar", {f"{k}.png": png(k) for k in range(4)})
    write_zip(tmp_path / "a.zip", {f"{k}.png": png(k) for k in range(4)})
    pq.write_table(hub_table(0, 4), tmp_path / "a.parquet")
    for name in ("a.tar", "a.zip", "a.parquet"):
        memory.pipe(f"/packed/{name}", (tmp_path / name).read_bytes())
    memory.pipe("/photos/list.csv", b"path,label\na/0.png,x\nmemory://photos/b/3.png,y\n")
    for url in ("memory://photos", "memory://photos/**/*.png", "memory://photos/*/{0..3}.png"):
        if "{" not in url:
            assert labels(open_source(url)) == ["a", "a", "b", "b"]
            assert names(open_source(url))[1] == "a/1.png"
            assert numbers(open_source(url)) == [0, 1, 2, 3]
    for name in ("a.tar", "a.zip", "a.parquet"):
        source = open_source(f"memory://packed/{name}")
        assert numbers(source) == [0, 1, 2, 3]
        assert source.fingerprint() == open_source(tmp_path / name).fingerprint()
        assert open_source(f"file://{tmp_path}/{name}").fingerprint() == source.fingerprint()
    listed = open_source("memory://photos/list.csv")
    assert (numbers(listed), labels(listed)) == ([0, 3], ["x", "y"])
    source = open_source(["memory://photos/a", f"file://{tmp_path}/a.tar"])
    assert len(source) == 6
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(source.read, [0, 1, 2, 3, 4, 5] * 20))
    assert read == [source.read(i) for i in range(6)] * 20


def test_shards_by_url(memory: Any, tmp_path: Path) -> None:
    for k in range(3):
        shard = write_tar(tmp_path / "x.tar", {f"{k}.png": png(k), f"{k}.cls": str(k).encode()})
        memory.pipe(f"/bucket/train-00{k}.tar", shard.read_bytes())
    source = open_source("memory://bucket/train-{000..002}.tar")
    assert (numbers(source), labels(source)) == ([0, 1, 2], ["0", "1", "2"])
    assert "'memory://bucket/train-003.tar' does not exist" in str(
        refused("memory://bucket/train-{000..003}.tar")
    )


def test_urls_that_are_refused(memory: Any) -> None:
    assert "does not exist" in str(refused("memory://nowhere/"))
    assert "nothing matches" in str(refused("memory://nowhere/*.png"))
    assert "cannot read 'nosuch://a/b'" in str(refused("nosuch://a/b"))
    memory.pipe("/a.npy", b"1")
    assert "local files only" in str(refused("memory://a.npy"))


def test_local_paths_do_not_import_what_is_optional(make_folder: Folder) -> None:
    root = make_folder({"a": 1, "b": 1})
    write_tar(root.parent / "a.tar", {"0.png": png(0)})
    code = (
        "import sys; from selfsame.data import open_source\n"
        f"for spec in ({str(root)!r}, {str(root / '*/*.png')!r}, {str(root.parent / 'a.tar')!r}):\n"
        "    open_source(spec).fingerprint()\n"
        "seen = {'fsspec', 'pyarrow', 'datasets', 'torchvision'} & set(sys.modules)\n"
        "sys.exit(f'imported {seen}' if seen else 0)"
    )
    run_fresh(code)


def test_without_fsspec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    error = refused("memory://photos")
    assert isinstance(error, UsageError)
    assert error.tip == "pip install 'selfsame[remote]'"


@pytest.mark.skipif("SELFSAME_DATA" not in os.environ, reason="SELFSAME_DATA names no data folder")
def test_a_real_multi_page_file(tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(Path(os.environ["SELFSAME_DATA"]) / "awkward-images.tar") as tar:
        file = tar.extractfile("format/tiff/multipage.tiff")
        assert file is not None
        (tmp_path / "multipage.tiff").write_bytes(file.read())
    source = open_source(tmp_path / "multipage.tiff")
    assert len(source) == 3
    colours = [np.asarray(source.read(i)).reshape(-1, 3)[0].tolist() for i in range(3)]
    assert colours == [[0, 128, 0], [255, 0, 0], [0, 0, 255]]  # as Pillow's own test has it
