"""The pages of one TIFF file as images: microscopy stacks, scans, time series."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Sequence

import numpy as np
from PIL import Image, TiffImagePlugin

from selfsame.data import place
from selfsame.data.dataset import pixels_of
from selfsame.data.order import spaced
from selfsame.data.picture import MAX_PIXELS
from selfsame.data.pillow import ignore_warnings
from selfsame.errors import DataError, Unreadable

STACKS = (".tif", ".tiff")


class StackSource:
    """Pages of a TIFF file, in order; every thread reads through a handle of its own."""

    labels: np.ndarray | None = None
    classes: Sequence[str] | None = None

    def __init__(self, path: str) -> None:
        self.path = path
        self._local = threading.local()
        self._pages = self._image().n_frames

    def __len__(self) -> int:
        return self._pages

    def name(self, i: int) -> str:
        """File and page, as in ``cells.tif[3]``."""
        return f"{self.path.replace(chr(92), '/').rpartition('/')[2]}[{i}]"

    def read(self, i: int) -> np.ndarray:
        """Pixels of page ``i``: uint8 [H, W] or [H, W, C], or gray of more bits [H, W].

        Raises:
            Unreadable: The page is damaged, or too large.
        """
        image = self._image()
        try:
            image.seek(i)
            if image.width * image.height > MAX_PIXELS:
                raise Unreadable(f"{image.width * image.height} pixels, more than {MAX_PIXELS}")
            image.load()
            return pixels_of(image)
        except Unreadable:
            raise
        except Exception as error:  # a damaged page can make a decoder raise anything
            del self._local.image  # its position is not to be trusted now
            raise Unreadable(f"page {i}: {error or type(error).__name__}") from None

    def fingerprint(self) -> str:
        """Hash of the file's size, its pages and 16 of them, evenly spaced."""
        digest = hashlib.sha256(f"{place.size(self.path)} {len(self)}".encode())
        for i in spaced(len(self), 16):
            try:
                digest.update(self.read(i).tobytes())
            except Unreadable:  # listed as a bad image where it is read
                digest.update(b"\0")
        return digest.hexdigest()[:16]

    def _image(self) -> TiffImagePlugin.TiffImageFile:
        if not hasattr(self._local, "image"):
            self._local.image = _open(self.path)
        image: TiffImagePlugin.TiffImageFile = self._local.image
        return image


def open_stack(path: str) -> StackSource | None:
    """Open a TIFF file of several pages; None where it has one, or is not a TIFF file.

    Raises:
        DataError: The list of its pages is damaged.
    """
    try:
        _open(path)
    except Exception:  # whoever reads it as one image says what is wrong with it
        return None
    try:
        source = StackSource(path)
    except Exception as error:
        raise DataError(
            f"the pages of '{path}' cannot be counted: {error or type(error).__name__}",
            tip="give the folder that it lies in, to use its first page only",
        ) from None
    return source if len(source) > 1 else None


def _open(path: str) -> TiffImagePlugin.TiffImageFile:
    ignore_warnings()
    file = place.open_file(path)
    try:
        image = Image.open(file, formats=("TIFF",))
    except BaseException:
        file.close()
        raise
    weakref.finalize(image, file.close)  # Pillow leaves a file that it was given open
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    return image
