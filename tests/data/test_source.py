from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selfsame.data import Subset, decode, open_labelled, open_source
from selfsame.data.folder import FileSource
from selfsame.errors import DataError, SelfsameError, UsageError
from selfsame.types import Source

Folder = Callable[..., Path]


def numbers(source: Source) -> list[int]:
    """Which pictures a source holds: the red of each, as the fixture numbers them."""
    return [int(decode(source.read(i), canvas=32)[0, 0, 0]) for i in range(len(source))]


def arrays(n: int = 6, first: int = 0) -> np.ndarray:
    images = np.zeros((n, 8, 8, 3), np.uint8)
    images[..., 0] = np.arange(first, first + n, dtype=np.uint8)[:, None, None]
    return images


def refused(spec: Any, opener: Callable[[Any], Any] = open_source) -> SelfsameError:
    with pytest.raises((DataError, UsageError)) as caught:
        opener(spec)
    assert caught.value.tip
    return caught.value


# --- folders


def test_a_flat_folder(make_folder: Folder) -> None:
    source = open_source(make_folder({"": 3}))
    assert isinstance(source, Source)
    assert [source.name(i) for i in range(len(source))] == ["00.png", "01.png", "02.png"]
    assert numbers(source) == [0, 1, 2]
    assert source.labels is None
    assert source.classes is None


def test_a_folder_a_class(make_folder: Folder) -> None:
    source = open_source(str(make_folder({"dog": 2, "cat/black": 1, "cat/white": 1})))
    assert source.name(0) == "cat/black/00.png"
    assert numbers(source) == [2, 3, 0, 1]
    assert source.classes == ["cat", "dog"]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("counts", [{"": 1, "cat": 2, "dog": 2}, {"all": 3}])
def test_folders_that_are_no_classes(make_folder: Folder, counts: dict[str, int]) -> None:
    assert open_source(make_folder(counts)).labels is None


def test_what_is_skipped_and_what_is_counted(make_folder: Folder) -> None:
    root = make_folder({"a": 2, "b": 1, "__MACOSX": 1, ".git": 1, "a/.thumbs": 1})
    shutil.copy(root / "a/00.png", root / "a/._00.png")
    (root / "a/notes.txt").write_text("hello")
    (root / "README").write_text("hello")
    (root / "a/again").symlink_to(root)  # a loop
    (root / "b/loop").symlink_to(root / "b")
    notes: list[str] = []
    source = open_source(root, notes)
    assert isinstance(source, FileSource)
    assert source.names == ["a/00.png", "a/01.png", "b/00.png"]
    assert notes == ["other files ignored: 1 (none), 1 .txt"]


def test_a_link_to_another_folder_is_followed(make_folder: Folder) -> None:
    root, other = make_folder({"a": 1}), make_folder({"": 1}, root="elsewhere")
    (root / "b").symlink_to(other)
    assert open_source(root).classes == ["a", "b"]


def test_upper_case_extensions(make_folder: Folder) -> None:
    root = make_folder({"": 1})
    (root / "00.png").rename(root / "00.PNG")
    assert len(open_source(root)) == 1


def test_lists_of_folders_and_files(make_folder: Folder) -> None:
    root = make_folder({"cat": 2, "dog": 1})
    both = open_source([root / "dog", root / "cat"])
    assert both.classes == ["cat", "dog"]
    assert numbers(both) == [0, 1, 2]
    mixed = open_source((str(root / "cat"), root / "dog/00.png"))
    assert [mixed.name(i) for i in range(3)] == ["00.png", "cat/00.png", "cat/01.png"]
    assert mixed.labels is None


def test_folders_of_the_same_name_stay_apart(make_folder: Folder) -> None:
    one, two = make_folder({"x": 2}, root="one"), make_folder({"x": 2}, root="two")
    source = open_source([one / "x", two / "x"])
    assert [source.name(i) for i in range(4)] == [
        "0-x/00.png",
        "0-x/01.png",
        "1-x/00.png",
        "1-x/01.png",
    ]
    assert source.labels is None
    (one / "y").mkdir()
    shutil.copy(one / "x/00.png", one / "y")
    source = open_source([one / "x", two / "x", one / "y"])
    assert source.classes == ["x", "y"]  # the two folders are one class
    source = open_source([str(one / "*/*.png"), str(two / "*/*.png")])
    assert len({source.name(i) for i in range(5)}) == 5
    assert source.classes == ["x", "y"]


def test_one_image_file(make_folder: Folder) -> None:
    source = open_source(make_folder({"": 2}) / "01.png")
    assert (len(source), source.name(0), numbers(source)) == (1, "01.png", [1])


def test_the_fingerprint_of_a_folder(make_folder: Folder, tmp_path: Path) -> None:
    root = make_folder({"a": 2, "b": 1})
    before = open_source(root).fingerprint()
    shutil.copytree(root, tmp_path / "moved")
    assert open_source(tmp_path / "moved").fingerprint() == before
    (root / "a/00.png").rename(root / "a/02.png")
    renamed = open_source(root).fingerprint()
    with (root / "a/02.png").open("ab") as file:
        file.write(b"1")
    assert len({before, renamed, open_source(root).fingerprint()}) == 3


def test_a_missing_path_names_its_neighbour(make_folder: Folder) -> None:
    root = make_folder({"": 1})
    error = refused(root.with_name("photo"))
    assert str(error) == f"'{root.with_name('photo')}' does not exist"
    assert error.tip == f"did you mean '{root}'?"
    assert refused(root / "zebra").tip == f"nothing in '{root}' has a similar name"
    assert "does not exist either" in str(refused(root / "no" / "where").tip)
    assert refused([root, root / "02.png"]).tip == f"did you mean '{root / '00.png'}'?"


def test_folders_without_images(tmp_path: Path) -> None:
    assert str(refused(tmp_path)) == f"no image in '{tmp_path}': it is empty"
    for k in range(12):
        (tmp_path / f"{k}.{'md' if k else 'csv'}").write_text("x")
    error = refused(tmp_path)
    assert str(error) == (
        f"no image in '{tmp_path}': found 12 files, none is an image; "
        "extensions seen: .md (11), .csv (1)"
    )


@pytest.mark.parametrize(("name", "tip"), [("a.HEIC", "convert the files"), ("a.tar.7z", "unpack")])
def test_tips_for_folders_without_images(tmp_path: Path, name: str, tip: str) -> None:
    (tmp_path / name).write_text("x")
    error = refused(tmp_path)
    assert "found 1 file, which is not an image" in str(error)
    assert tip in str(error.tip)


def test_a_compressed_file_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "a.npz.xz").write_bytes(b"\xfd7zXZ")
    error = refused(tmp_path / "a.npz.xz")
    assert str(error).endswith("a.npz.xz' is compressed")
    assert str(error.tip).endswith("a.npz'")


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.md"
    path.write_text("x")
    assert str(refused(path)) == f"'{path}' is not an image file"
    assert ".jpg" in str(refused(path).tip)


def test_a_folder_that_cannot_be_listed(
    make_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder({"a": 1, "b": 1})
    scandir = os.scandir

    def guarded(path: str) -> Any:
        if path.endswith("b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert str(refused(root)) == f"cannot list the folder '{root / 'b'}': Permission denied"


# --- arrays


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 9, 8), (9, 8, 1)),
        ((5, 9, 8, 3), (9, 8, 3)),
        ((5, 3, 9, 8), (9, 8, 3)),
        ((5, 1, 9, 8), (9, 8, 1)),
        ((5, 13, 64, 64), (64, 64, 13)),
        ((5, 8, 8, 1), (8, 8, 1)),
    ],
)
def test_shapes(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape)).astype(np.uint8).reshape(shape)
    np.save(tmp_path / "x.npy", array)
    sources = [open_source(s) for s in (array, torch.from_numpy(array), tmp_path / "x.npy")]
    for source in sources:
        assert len(source) == 5
        pixels = source.read(2)
        assert isinstance(pixels, np.ndarray)
        assert pixels.shape == expected
        one = array[2] if array.ndim == 4 else array[2, None]
        first = one.shape != expected
        np.testing.assert_array_equal(pixels.transpose(2, 0, 1) if first else pixels, one)
    assert len({source.fingerprint() for source in sources}) == 1
    assert [source.name(2) for source in sources] == ["array[2]", "array[2]", "x.npy[2]"]


@pytest.mark.parametrize(
    ("array", "message", "tip"),
    [
        (np.zeros((4, 8, 8), complex), "type complex128; images are integers", "numpy.abs"),
        (np.zeros((4, 8, 8), object), "type object; images are integers", "numpy.stack"),
        (np.zeros((2, 80, 80, 65), np.uint8), "65 channels", "64 or fewer"),
        (np.zeros((8, 8, 3), np.uint8), "one image, or a set of narrow ones?", "x[None]"),
        (np.zeros((4, 3, 8, 3), np.uint8), "which axis are the channels?", "PIL images"),
        (np.zeros((4, 8, 8, 8), np.uint8), "which axis are the channels?", "PIL images"),
        (np.zeros((0, 8, 8), np.uint8), "not a set of images", "at least one"),
        (np.zeros((8, 8), np.uint8), "not a set of images", "[N, H, W, C]"),
    ],
)
def test_arrays_that_are_refused(array: np.ndarray, message: str, tip: str) -> None:
    error = refused(array)
    assert message in str(error)
    assert tip in str(error.tip)


@pytest.mark.parametrize(
    ("x", "y"), [("images", "labels"), ("x", "y"), ("data", "targets"), ("X", "Y")]
)
def test_npz(tmp_path: Path, x: str, y: str) -> None:
    np.savez(tmp_path / "a.npz", **{x: arrays(), y: np.array([0, 1, 2, 0, 1, 2])})
    source = open_source(tmp_path / "a.npz")
    assert numbers(source) == [0, 1, 2, 3, 4, 5]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert source.classes == ["0", "1", "2"]
    assert source.name(1) == f"{x}[1]"


def test_npz_without_labels_or_with_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=arrays(3))
    assert open_source(tmp_path / "a.npz").labels is None
    np.savez(tmp_path / "b.npz", images=arrays(3), labels=[[7], [3], [7]])
    source = open_source(tmp_path / "b.npz")
    assert source.classes == ["3", "7"]
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0, 1]
    np.savez(tmp_path / "c.npz", images=arrays(3), labels=[1, 0, 1], classes=["cat", "dog"])
    assert open_source(tmp_path / "c.npz").classes == ["cat", "dog"]
    np.savez(tmp_path / "d.npz", images=arrays(3), labels=["dog", "cat", "dog"])
    assert open_source(tmp_path / "d.npz").classes == ["cat", "dog"]


@pytest.mark.parametrize("form", ["{1}_{0}", "{0}_{1}"])
@pytest.mark.parametrize("test", ["test", "val"])
def test_npz_with_its_own_parts(tmp_path: Path, form: str, test: str) -> None:
    parts = {
        form.format("train", "x"): arrays(6),
        form.format("train", "y"): [5, 6, 7, 5, 6, 7],
        form.format(test, "x"): arrays(3, first=6),
        form.format(test, "y"): [7, 5, 5],
    }
    np.savez(tmp_path / "a.npz", **parts)
    assert numbers(open_source(tmp_path / "a.npz")) == [0, 1, 2, 3, 4, 5]
    train, held_out, how = open_labelled(tmp_path / "a.npz")
    assert numbers(train) == [0, 1, 2, 3, 4, 5]
    assert numbers(held_out) == [6, 7, 8]
    assert held_out.labels is not None
    assert held_out.labels.tolist() == [2, 0, 0]
    assert held_out.classes == train.classes == ["5", "6", "7"]
    names = [form.format(split, "x") for split in ("train", test)]
    assert how == (
        f"the data's own parts: {names[0]} and {names[1]}; 6 train and 3 test images in 3 classes"
    )


def test_npz_without_usable_names(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, faces=arrays(2), who=np.array(["a", None]))
    error = refused(path)
    assert "it holds: faces uint8 [2, 8, 8, 3], who (Python objects)" in str(error)
    assert "x_train" in str(error.tip)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"labels": [0, 1]}, "has 6 images but 2 labels"),
        ({"labels": np.eye(6)}, "are float64 [6, 6]"),
        ({"labels": [0, 1, 2, 3, 4, 9], "classes": ["a", "b"]}, "do not fit the 2 class names"),
        ({"labels": [0, 1, 0, 1, 0, -1], "classes": ["a", "b"]}, "do not fit the 2 class names"),
    ],
)
def test_npz_with_labels_that_do_not_fit(
    tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "a.npz", images=arrays(), **more)
    assert message in str(refused(tmp_path / "a.npz"))


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_damaged_array_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"hello")
    assert "cannot read" in str(refused(tmp_path / name))


def test_pickled_arrays_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], object))
    assert "cannot read" in str(refused(tmp_path / "a.npy"))


# --- CIFAR


def write_cifar(root: Path, kind: str) -> Path:
    """Two train batches of 4 and a test batch of 2: the red of picture i is i."""
    root.mkdir()
    pixels = np.zeros((10, 3, 32, 32), np.uint8)
    pixels[:, 0] = np.arange(10, dtype=np.uint8)[:, None, None]
    pixels[:, 2, 0, 31] = 77  # blue in the top right corner: axes in the right order
    flat, labels = pixels.reshape(10, -1), [k % 2 for k in range(10)]
    spans = {"data_batch_1": (0, 4), "data_batch_2": (4, 8), "test_batch": (8, 10)}
    if kind == "100":
        spans = {"train": (0, 8), "test": (8, 10)}
    for name, (start, stop) in spans.items():
        if kind == "bin":
            records = np.concatenate([np.array(labels, np.uint8)[:, None], flat], 1)
            (root / f"{name}.bin").write_bytes(records[start:stop].tobytes())
        else:
            key = b"fine_labels" if kind == "100" else b"labels"
            batch = {b"data": flat[start:stop], key: labels[start:stop]}
            protocol = {"py2": 2, "py4": 4}.get(kind, 5)
            (root / name).write_bytes(pickle.dumps(batch, protocol))
    if kind == "bin":
        (root / "batches.meta.txt").write_text("plane\ncar\n\n")
    elif kind == "100":
        (root / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"plane", b"car"]}))
    else:
        (root / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"plane", b"car"]}, 2))
    return root


@pytest.mark.parametrize("kind", ["py2", "py4", "py5", "bin", "100"])
def test_cifar(tmp_path: Path, kind: str) -> None:
    root = write_cifar(tmp_path / "cifar", kind)
    train, test, how = open_labelled(root)
    assert numbers(train) == numbers(open_source(root)) == list(range(8))
    assert numbers(test) == [8, 9]
    pixels = train.read(3)
    assert isinstance(pixels, np.ndarray)
    assert pixels[0, 31].tolist() == [3, 0, 77]
    assert train.classes == ["plane", "car"]
    assert test.labels is not None
    assert test.labels.tolist() == [0, 1]
    assert how.startswith("the data's own parts: train and test; 8 train and 2 test images")


class Malicious:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.path,)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    root = write_cifar(tmp_path / "cifar", "py2")
    content = pickle.dumps({b"data": Malicious(tmp_path / "ran")})
    (root / "data_batch_2").write_bytes(content)
    error = refused(root)
    assert not (tmp_path / "ran").exists()
    assert f"refused to unpickle '{root / 'data_batch_2'}': it names" in str(error)
    assert "mkdir" in str(error)
    pickle.loads(content)
    assert (tmp_path / "ran").exists()  # an ordinary unpickler runs it


@pytest.mark.parametrize("content", [b"hello", pickle.dumps([1]), pickle.dumps({b"data": 3})])
def test_damaged_cifar(tmp_path: Path, content: bytes) -> None:
    root = write_cifar(tmp_path / "cifar", "py2")
    (root / "data_batch_1").write_bytes(content)
    assert refused(root).tip == "unpack the original archive again"


def test_damaged_binary_cifar(tmp_path: Path) -> None:
    root = write_cifar(tmp_path / "cifar", "bin")
    (root / "test_batch.bin").write_bytes(b"12")
    assert "is not a CIFAR-10 batch: 2 bytes" in str(refused(root))


# --- data sets


class Items:
    """A map-style data set over a list of items."""

    def __init__(self, items: list[Any], **attributes: Any) -> None:
        self.items = items
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


def test_items_of_every_kind() -> None:
    rgb = arrays(1, first=9)[0]
    picture = Image.fromarray(rgb)
    chw = torch.from_numpy(rgb).permute(2, 0, 1)
    for item in (rgb, picture, chw, (picture, 3), [rgb, "label"], (chw,), picture.quantize()):
        source = open_source(Items([item]))
        assert numbers(source) == [9], type(item)
        assert source.name(0) == "Items[0]"
        assert source.labels is None


def test_a_list_of_pictures_is_a_data_set() -> None:
    assert numbers(open_source([Image.fromarray(x) for x in arrays(3)])) == [0, 1, 2]


def test_labels_of_a_data_set() -> None:
    items = [(x, k % 2) for k, x in enumerate(arrays(10))]
    listed = open_source(Items(items, targets=[k % 2 for k in range(10)], classes=["a", "b"]))
    assert listed.labels is not None
    assert listed.labels.tolist() == [0, 1] * 5
    assert listed.classes == ["a", "b"]
    assert open_source(Items(items)).labels is None  # that would read every item
    train, test, _ = open_labelled(Items(items))
    assert (len(train), len(test), train.classes) == (8, 2, ["0", "1"])
    assert listed.fingerprint() != open_source(Items(items)).fingerprint()


@pytest.mark.parametrize(
    ("spec", "message", "tip"),
    [
        (Items([torch.zeros(3, 8, 8) - 1]), "values in -1..0; images are uint8", "Normalize"),
        (Items([torch.zeros(3, 8, 8).int()]), "type int32; images are uint8", "astype"),
        (Items([{"x1": 3}]), "have the keys x1; none is known", "name the image"),
        (Items([3]), "items of the data set are int", "a PIL image or an array"),
        (Items([]), "the data set is empty", "at least one"),
        ([], "an empty list", "list directories"),
        (3, "cannot read images from int", "give a folder"),
        (iter([]), "cannot read images from list_iterator", "__getitem__"),
    ],
)
def test_objects_that_are_refused(spec: Any, message: str, tip: str) -> None:
    error = refused(spec)
    assert message in str(error)
    assert tip in str(error.tip)


def test_a_source_is_returned_as_it_is() -> None:
    source = open_source(arrays())
    assert open_source(source) is source


def test_subset() -> None:
    source = open_source(arrays())
    subset = Subset(source, np.array([4, 1]))
    assert isinstance(subset, Source)
    assert numbers(subset) == [4, 1]
    assert subset.name(0) == "array[4]"
    assert subset.fingerprint() != Subset(source, np.array([1, 4])).fingerprint()


# --- labelled parts


def test_parts_of_equal_names_and_sizes_are_not_one_data_set(tmp_path: Path) -> None:
    for shade, part in enumerate(("train", "test")):
        for k in range(4):
            file = tmp_path / part / "ab"[k % 2] / f"{k}.bmp"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (100 * shade, k, 0)).save(file)
    train, test, _ = open_labelled(tmp_path)
    assert [train.name(i) for i in range(4)] == [test.name(i) for i in range(4)]
    assert train.fingerprint() != test.fingerprint()


def test_parts_called_training_and_testing(make_folder: Folder) -> None:
    counts = {f"{part}/{c}": 2 for part in ("Training", "Testing") for c in ("cat", "dog")}
    root = make_folder(counts)
    train, test, how = open_labelled(root)
    assert train.classes == test.classes == ["cat", "dog"]
    assert how.startswith("the data's own parts: Training/ and Testing/; 4 train and 4 test images")


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation"])
def test_folders_of_their_own(make_folder: Folder, test: str) -> None:
    root = make_folder({"train/a": 3, "train/b": 2, "train/c": 1, f"{test}/c": 2, f"{test}/b": 1})
    train, held_out, how = open_labelled(root)
    assert numbers(train) == numbers(open_source(root)) == [0, 1, 2, 3, 4, 5]
    assert train.classes == held_out.classes == ["a", "b", "c"]
    assert held_out.labels is not None
    assert held_out.labels.tolist() == [1, 2, 2]  # numbered as in the train part
    assert how == (
        f"the data's own parts: train/ and {test}/; 6 train and 3 test images in 3 classes"
    )


def test_test_comes_before_val(make_folder: Folder) -> None:
    counts = {f"{part}/{c}": 1 for part in ("train", "val", "test") for c in "ab"}
    assert numbers(open_labelled(make_folder(counts)).test) == [4, 5]


def test_a_class_without_training_images(make_folder: Folder) -> None:
    root = make_folder({"train/a": 1, "train/b": 1, "test/a": 1, "test/zebra": 1})
    error = refused(root, open_labelled)
    assert str(error) == "class 'zebra' of test/ has no training images"
    assert error.tip == "the classes are a, b"


def test_the_split_is_stratified_and_stable(make_folder: Folder) -> None:
    root = make_folder({"a": 10, "b": 25, "c": 1, "d": 2, "e": 3})
    train, test, how = open_labelled(root)
    assert train.labels is not None
    assert test.labels is not None
    assert np.bincount(train.labels, minlength=5).tolist() == [8, 20, 1, 1, 2]
    assert np.bincount(test.labels, minlength=5).tolist() == [2, 5, 0, 1, 1]
    names = [{part.name(i) for i in range(len(part))} for part in (train, test)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 41
    again = open_labelled(root).test
    assert [again.name(i) for i in range(len(again))] == [test.name(i) for i in range(len(test))]
    assert again.fingerprint() == test.fingerprint()
    assert open_labelled(root, seed=1).test.fingerprint() != test.fingerprint()
    assert how == (
        "a stratified 80/20 split with seed 0, as the data has no test part of its own; "
        "32 train and 9 test images in 5 classes"
    )


def test_no_labels(make_folder: Folder) -> None:
    error = refused(make_folder({"": 3}), open_labelled)
    assert str(error) == "the data has no labels"
    assert "each class in a folder of its own" in str(error.tip)
    assert "array named labels" in str(refused(arrays(), open_labelled).tip)
    assert "Items[0] has no label" in str(refused(Items(list(arrays())), open_labelled))
    root = make_folder({"train/a": 1, "train/b": 1, "test": 1}, root="flat-test")
    assert str(refused(root, open_labelled)) == "the test part (test/) has no labels"


def test_nothing_to_test_on(make_folder: Folder) -> None:
    assert "nothing to test on" in str(refused(make_folder({"a": 1, "b": 1}), open_labelled))


@pytest.mark.parametrize("label", [[0, 1], None, {"a": 1}])
def test_several_labels_an_image_are_none(label: object) -> None:
    class Several:
        targets = (label,) * 4

        def __len__(self) -> int:
            return 4

        def __getitem__(self, i: int) -> tuple[np.ndarray, object]:
            return np.full((8, 8, 3), i, np.uint8), label

    assert len(open_source(Several())) == 4  # for learning without labels they are no hindrance
    assert "label" in str(refused(Several(), open_labelled))
