"""CIFAR-10 and CIFAR-100 as their authors distribute them, read without trusting the pickles."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from selfsame.data.arrays import Arrays, ArraySource, array_sources
from selfsame.errors import DataError

_AGAIN = "unpack the original archive again"


def is_cifar(folder: Path) -> bool:
    """Whether a directory is an unpacked CIFAR-10 or CIFAR-100, in Python or binary form."""
    present = {entry.name for entry in folder.iterdir() if entry.is_file()}
    return any(
        names <= present
        for names in (
            {"data_batch_1", "test_batch"},
            {"data_batch_1.bin", "test_batch.bin"},
            {"train", "test", "meta"},
        )
    )


def open_cifar(folder: Path) -> list[ArraySource]:
    """Open the train and test part of a CIFAR directory.

    Raises:
        DataError: A file is damaged, or its pickle holds anything but arrays and plain values.
    """
    hundred = (folder / "meta").is_file()
    train = [folder / "train"] if hundred else sorted(folder.glob("data_batch_[0-9]*"))
    test = next(
        path
        for name in ("test", "test_batch", "test_batch.bin")
        if (path := folder / name).exists()
    )
    read: Callable[[Path], tuple[np.ndarray, np.ndarray]]
    read = _read_binary if test.suffix == ".bin" else _read_batch
    parts = []
    for title, paths in (("train", train), ("test", [test])):
        images, labels = zip(*map(read, paths), strict=True)
        pixels = np.concatenate(images).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        parts.append(Arrays(title, np.ascontiguousarray(pixels), np.concatenate(labels)))
    return array_sources(parts, _cifar_classes(folder))


def _cifar_classes(folder: Path) -> list[str] | None:
    text, meta = folder / "batches.meta.txt", folder / "batches.meta"
    if text.is_file():
        return text.read_text().split()
    if (folder / "meta").is_file():
        return [name.decode() for name in _unpickle(folder / "meta")[b"fine_label_names"]]
    return [name.decode() for name in _unpickle(meta)[b"label_names"]] if meta.is_file() else None


def _read_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read CIFAR-10 records: one byte of label, then 3 x 32 x 32 pixels."""
    raw = np.fromfile(path, np.uint8)
    if raw.size == 0 or raw.size % 3073:
        raise DataError(f"'{path}' is not a CIFAR-10 batch: {raw.size} bytes", tip=_AGAIN)
    records = raw.reshape(-1, 3073)
    return records[:, 1:], records[:, 0].astype(np.int64)


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = _unpickle(path)
    try:
        images = content[b"data"].reshape(-1, 3072)
        labels = content[b"labels" if b"labels" in content else b"fine_labels"]
        return images, np.asarray(labels, np.int64)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise DataError(f"'{path}' is not a CIFAR batch", tip=_AGAIN) from None


def _frombuffer(buffer: Any, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any) -> Any:
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


_ALLOWED: dict[str, Any] = {
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "_reconstruct": np.zeros(0).__reduce__()[0],  # its module moved between NumPy 1 and 2
    "_frombuffer": _frombuffer,
    "encode": lambda text, _: text.encode("latin-1"),  # bytes, as protocol 2 spells them
}
_MODULES = ("numpy", "numpy.core.", "numpy._core.", "_codecs")


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays and plain containers; any other name in the file is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED and module.startswith(_MODULES):
            return _ALLOWED[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _unpickle(path: Path) -> dict[bytes, Any]:
    try:
        with open(path, "rb") as file:
            content = _ArrayUnpickler(file, encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"refused to unpickle '{path}': {error}", tip=_AGAIN) from None
    if not isinstance(content, dict):
        raise DataError(f"'{path}' is not a CIFAR batch", tip=_AGAIN)
    return content
