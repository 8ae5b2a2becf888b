"""Decoded images by index: parallel, exact about bad files, kept in memory where they fit."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from selfsame.data import levels as scale
from selfsame.data.arrays import ArraySource
from selfsame.data.decode import decode, own_channels, picture_size, raw_values
from selfsame.data.levels import Levels
from selfsame.data.order import spaced
from selfsame.data.pack import PackSource
from selfsame.data.source import Subset
from selfsame.errors import DataError, Unreadable, UsageError
from selfsame.machine import memory, processes
from selfsame.reuse import Memory
from selfsame.types import BadImage, Batch, Norm, Source

CACHE_LIMIT = 4 * 2**30  # bytes

_T = TypeVar("_T")


class Check(NamedTuple):
    """What a look at some of the images found."""

    sampled: int
    bad: int


class _Canvases(NamedTuple):
    """Decoded images, one a row."""

    pixels: np.ndarray  # uint8 [rows, canvas, canvas, C]
    sizes: np.ndarray  # int32 [rows, 2]
    origin: np.ndarray  # int64 [rows]: index of the image that was decoded; -1 where none yet


class _Plain(NamedTuple):
    """A source of images of one size that fit the canvas."""

    images: np.ndarray  # uint8 [N, H, W, C]
    rows: np.ndarray | None  # of these images, where the source is a subset
    intact: Callable[[np.ndarray], np.ndarray] | None  # of a pack: which images are as written

    def at(self, index: np.ndarray) -> np.ndarray:
        """Where images of the source are in the array."""
        return index if self.rows is None else self.rows[index]


class Images:
    """Gives batches of decoded images from a source.

    A bad image is replaced by the next readable one, by index and cyclically, with that one's
    label; ``Batch.index`` keeps the index that was asked for. This depends on the data and the
    index alone. Each bad image that was met is listed once in ``bad``.

    Args:
        source: Where the images come from.
        canvas: Side of the square canvas in pixels; larger images are scaled down to fit.
        channels: 3 for RGB, 1 for gray; arrays and TIFF files may have any other number.
        levels: Raw values that become 0 and 255 in images of more than 8 bits, as ``decode`` has
            them and ``measure_levels`` finds them. None: image by image.
        workers: Threads that decode; by default one a core.
        cache_bytes: Memory for decoded images, used only where the whole set fits; by default a
            quarter of the available memory, at most 4 GiB. 0 decodes anew each time.
        on_bad: Called once for each bad image, from any thread.
    """

    def __init__(
        self,
        source: Source,
        *,
        canvas: int,
        channels: int = 3,
        levels: Levels | None = None,
        workers: int | None = None,
        cache_bytes: int | None = None,
        on_bad: Callable[[BadImage], None] | None = None,
    ) -> None:
        if canvas < 1 or channels < 1 or (workers is not None and workers < 1):
            raise UsageError(
                f"canvas {canvas}, channels {channels}, workers {workers}: one is not positive",
                tip="each is 1 or more",
            )
        if levels is not None and not levels[0] < levels[1]:
            raise UsageError(
                f"levels {levels[0]:g} to {levels[1]:g}: the first is not the smaller one",
                tip="give the raw values of black and white, as in (0, 4095) for 12 bits",
            )
        self.source = source
        self.canvas = canvas
        self.channels = channels
        self.levels = levels
        self._on_bad = on_bad
        self._bad: dict[int, BadImage] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(workers or _cores(), "selfsame-decode", _give_way)
        self._array = _plain_array(source, canvas, channels)
        self._cache: _Canvases | None = None
        self._memory = Memory()  # of batches
        if self._array is None:
            if cache_bytes is None:
                free = (memory(torch.device("cpu")) or CACHE_LIMIT) // processes()
                cache_bytes = min(free // 4, CACHE_LIMIT)
            if len(source) * channels * canvas * canvas <= cache_bytes:
                self._cache = self._blank(len(source))

    def __len__(self) -> int:
        return len(self.source)

    def __enter__(self) -> Images:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the decoding threads. The images cannot be used afterwards."""
        self._pool.shutdown(cancel_futures=True)

    @property
    def bad(self) -> list[BadImage]:
        """The bad images met so far, by index."""
        with self._lock:
            return [self._bad[i] for i in sorted(self._bad)]

    def batch(self, index: Tensor) -> Batch:
        """Decode the images at ``index``, int64 [B].

        Raises:
            DataError: Not one image of the whole set is readable.
            UsageError: An index is outside the data set.
        """
        wanted = index.numpy()
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise UsageError(
                f"indices {wanted.min()}..{wanted.max()} are outside the {len(self)} images",
                tip=f"indices are 0..{len(self) - 1}",
            )
        if self._array is not None:
            images, sizes, origin = self._from_array(self._array, wanted)
        elif self._cache is not None:
            missing = wanted[self._cache.origin[wanted] < 0].tolist()
            new = np.array(sorted(set(missing)), np.int64)  # np.unique would import numpy.ma
            self._fill(self._cache, new, new)
            images, sizes, origin = (part[wanted] for part in self._cache)
        else:
            fresh = self._blank(len(wanted), self._memory)
            self._fill(fresh, np.arange(len(wanted)), wanted)
            images, sizes, origin = fresh
        labels = self.source.labels
        return Batch(
            torch.from_numpy(images).permute(0, 3, 1, 2),
            torch.from_numpy(sizes),
            index,
            None if labels is None else torch.from_numpy(labels[origin]),
        )

    def readable(self, batch_size: int, first: int = 0, last: int | None = None) -> Iterator[Batch]:
        """Images ``first`` to before ``last``, in batches, without those that cannot be read.

        Evaluators and embeddings want these: a replacement would count another image twice.
        """
        last = len(self) if last is None else last
        for start in range(first, last, batch_size):
            batch = self.batch(torch.arange(start, min(start + batch_size, last)))
            bad = torch.tensor([image.index for image in self.bad], dtype=torch.int64)
            if len(bad):
                good = torch.isin(batch.index, bad, invert=True)
                label = None if batch.label is None else batch.label[good]
                batch = Batch(batch.images[good], batch.sizes[good], batch.index[good], label)
            if len(batch.index):
                yield batch

    def check(self, sample: int = 64) -> Check:
        """Decode an evenly spaced sample, to fail before a run rather than in it.

        Raises:
            DataError: Not one image of the whole set is readable.
        """
        if self._array is not None and self._array.intact is None:
            return Check(0, 0)
        picked = spaced(len(self), sample)
        good = list(self._pool.map(lambda i: self._try(i) is not None, picked))
        if not any(good):
            self._readable(0)
        return Check(len(good), good.count(False))

    def _blank(self, rows: int, memory: Memory | None = None) -> _Canvases:
        """Zero canvases; of a large cache, memory is taken only as rows are filled."""
        shape = (rows, self.canvas, self.canvas, self.channels)
        sizes, origin = np.zeros((rows, 2), np.int32), np.full(rows, -1, np.int64)
        if memory is None:
            return _Canvases(np.zeros(shape, np.uint8), sizes, origin)
        return _Canvases(memory.empty(shape, torch.uint8).zero_().numpy(), sizes, origin)

    def _fill(self, canvases: _Canvases, rows: np.ndarray, indices: np.ndarray) -> None:
        def fill(row: int, i: int) -> None:
            pixels, origin = self._readable(i)
            height, width = pixels.shape[1:]
            canvases.pixels[row, :height, :width] = pixels.transpose(1, 2, 0)
            canvases.sizes[row] = height, width
            canvases.origin[row] = origin  # last: it says that the row is complete

        for _ in self._pool.map(fill, rows.tolist(), indices.tolist()):
            pass

    def _readable(self, i: int) -> tuple[np.ndarray, int]:
        """Pixels of image ``i`` or of the next readable one, and the index of that one."""
        for k in range(i, i + len(self)):
            origin = k % len(self)
            pixels = self._try(origin)
            if pixels is not None:
                return pixels, origin
        first = "; ".join(f"{bad.name}: {bad.reason}" for bad in self.bad[:3])
        raise DataError(
            f"none of the {len(self)} images is readable: {first}",
            tip="open one of them in an image viewer; are they complete, and in a known format?",
        )

    def _try(self, i: int) -> np.ndarray | None:
        if i in self._bad:
            return None
        try:
            data = self.source.read(i)
            return decode(data, canvas=self.canvas, channels=self.channels, levels=self.levels)
        except Unreadable as error:
            reason = str(error)
        except OSError as error:
            reason = f"cannot read the file: {error.strerror or error}"
        except Exception as error:  # a user's data set can raise anything
            reason = f"{type(error).__name__}: {error}"
        bad = BadImage(i, self.source.name(i), reason)
        with self._lock:
            new = self._bad.setdefault(i, bad) is bad
        if new and self._on_bad is not None:
            self._on_bad(bad)
        return None

    def _from_array(
        self, array: _Plain, wanted: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if array.intact is not None and not (good := array.intact(array.at(wanted))).all():
            pairs = zip(wanted.tolist(), good.tolist(), strict=True)
            wanted = np.array([i if whole else self._readable(i)[1] for i, whole in pairs])
        pictures, rows = array.images, array.at(wanted)
        height, width = pictures.shape[1:3]
        shape = (len(wanted), self.canvas, self.canvas, self.channels)
        canvases = self._memory.empty(shape, torch.uint8).numpy()
        # of an array that is a view of another with gaps, `take` would copy the whole first
        if pictures.shape[1:] == shape[1:] and pictures.flags.c_contiguous:
            np.take(pictures, rows, axis=0, out=canvases, mode="clip")  # "raise" makes a copy
        else:
            for canvas, row in zip(canvases, rows.tolist(), strict=True):
                canvas[height:] = canvas[:height, width:] = 0
                canvas[:height, :width] = pictures[row]  # one channel is repeated for three
        sizes = np.broadcast_to(np.array([height, width], np.int32), (len(wanted), 2)).copy()
        return canvases, sizes, wanted


def suggest_canvas(source: Source, view_size: int, *, sample: int = 64) -> int:
    """Side of the canvas, in pixels, that keeps what views of ``view_size`` pixels can show.

    The longest side seen in an evenly spaced sample, at most twice the view, rounded up to a
    multiple of 8; exactly the image's longer side where all have one size within that limit.
    """
    sizes = {_try_to(picture_size, source, i) for i in spaced(len(source), sample)} - {None}
    longest = max((max(size) for size in sizes if size), default=2 * view_size)
    if len(sizes) == 1 and longest <= 2 * view_size:
        return longest
    return -(-min(longest, 2 * view_size) // 8) * 8


def measure_levels(source: Source, sample: int = 64) -> Levels | None:
    """Raw values that black and white have in images of more than 8 bits, from a look at some.

    Returns:
        What ``Images`` takes as ``levels``, so that images keep their relative brightness: for
        integers that are never negative, 0 to the largest of the least number of bits, 8 or more,
        that holds every value seen; for floats within 0..1, (0, 1); for others the least and the
        greatest value seen. None where all are 8-bit, or integers and floats are mixed.
    """
    values = (_try_to(raw_values, source, i) for i in spaced(len(source), sample))
    return scale.measure(one for one in values if one is not None)


def count_channels(source: Source, sample: int = 16) -> int | None:
    """Channels of images that are neither gray nor RGB, nor either with alpha, from a look at some.

    Arrays and TIFF files have any number. None where they have 1, 3 or 4, or not all the same.
    """
    counts = {_try_to(own_channels, source, i) for i in spaced(len(source), sample)}
    return counts.pop() if len(counts) == 1 else None


def measure_norm(images: Images, sample: int = 256) -> Norm:
    """Mean and standard deviation of each channel over the pixels of some images, in [0, 1].

    Pixels around the images do not count. A deviation is never below one level of 255.

    Raises:
        DataError: Not one image of the whole set is readable.
    """
    counts = np.zeros((images.channels, 256), np.int64)
    picked = spaced(len(images), sample)
    for start in range(0, len(picked), 16):
        batch = images.batch(torch.tensor(picked[start : start + 16]))
        for pixels, (height, width) in zip(batch.images.numpy(), batch.sizes.tolist(), strict=True):
            for channel, plane in enumerate(pixels[:, :height, :width]):
                counts[channel] += np.bincount(plane.ravel(), minlength=256)
    share = counts / counts.sum(1, keepdims=True)
    value = np.arange(256) / 255
    mean = share @ value
    variance = (share * (value - mean[:, None]) ** 2).sum(1)
    std = np.maximum(np.sqrt(variance), 1 / 255)
    return Norm(tuple(mean.tolist()), tuple(std.tolist()))


def _try_to(look: Callable[[bytes | np.ndarray], _T], source: Source, i: int) -> _T | None:
    try:
        return look(source.read(i))
    except Exception:  # bad images are counted where they are decoded
        return None


def _plain_array(source: Source, canvas: int, channels: int) -> _Plain | None:
    """The array of a source whose pixels need neither scaling nor conversion."""
    inner, rows = (source.source, source.indices) if isinstance(source, Subset) else (source, None)
    if not isinstance(inner, ArraySource | PackSource) or inner.images is None:
        return None
    if inner.images.dtype != np.uint8:
        return None
    _, height, width, own = inner.images.shape
    as_it_is = own == channels or (own == 1 and channels == 3)
    if not as_it_is or max(height, width) > canvas:
        return None
    return _Plain(inner.images, rows, inner.intact if isinstance(inner, PackSource) else None)


def _give_way() -> None:
    """Lower this thread's priority where the network computes on the same cores.

    Where a thread that decodes takes a core from one of OpenMP's, all others wait for that; now it
    rather takes a core that waits for it. Of a busy machine it still gets a tenth of a core.
    """
    if sys.platform == "linux" and not torch.accelerator.is_available():
        with contextlib.suppress(OSError):
            thread = threading.get_native_id()
            priority = max(os.getpriority(os.PRIO_PROCESS, thread), 10)
            os.setpriority(os.PRIO_PROCESS, thread, priority)


def _cores() -> int:
    """Cores for this process; those that torchrun started beside it have as many."""
    found = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        found = len(os.sched_getaffinity(0))
    return max(1, found // processes())
