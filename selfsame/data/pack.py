r"""One file that holds a whole data set, mapped into memory: written once, read by every run.

Format 1, little-endian throughout. Any byte that differs from what was written is noticed, but for
the padding between records: those of the header and the index when a pack is opened, those of a
record when it is first read.

======================  =====  ================================================================
header, at 0            bytes
======================  =====  ================================================================
0                       8      magic, 89 53 45 4C 46 50 4B 0A ("\x89SELFPK\n")
8                       4      uint32, format: 1
12                      4      uint32, CRC-32 of the whole index
16                      8      uint64, start of the index: a multiple of 64
24                      8      uint64, length of the index in bytes; the file ends with it
32                      8      uint64, number of images, N
40                      20     zeros
60                      4      uint32, CRC-32 of bytes 0..59
======================  =====  ================================================================

Records follow from byte 64, in the order of the images, each starting at a multiple of 64 (zeros
between). A raw record is uint8 [h, w, C], pixel after pixel; a JPEG record is a JPEG file.

======================  =====  ================================================================
index                   bytes
======================  =====  ================================================================
table, N rows of 48     8      uint64, start of the record in the file
(``ROW``)               8      uint64, length of the record in bytes
                        8      int64, label: position in the part's classes, -1 where it has none
                        8      uint64, start of the image's name in the names
                        4      uint32, length of the name in bytes
                        4      uint32, height of the image in pixels, h
                        4      uint32, width of the image in pixels, w
                        4      uint32, CRC-32 of the record
names                          UTF-8, one after the other (lone surrogates as three bytes)
facts                          JSON, ASCII, to the end of the file
======================  =====  ================================================================

The facts: ``selfsame`` (version that wrote it), ``encode`` ("raw" or "jpeg"), ``quality`` (of JPEG,
or null), ``channels``, ``levels`` (raw values that became 0 and 255 in images of more than 8 bits,
or null), ``canvas`` (side in px that larger images were scaled down to), ``parts`` and ``bad``. A
part has ``name``, ``images`` (how many: the parts follow each other in the table), ``classes``
(names, or null) and ``source`` (fingerprint of what was packed). ``bad`` lists what could not be
read and was left out: ``part``, ``name`` and ``reason``.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from selfsame import __version__
from selfsame.data.order import spaced
from selfsame.errors import DataError, Unreadable
from selfsame.types import Batch

if TYPE_CHECKING:
    from selfsame.data.images import Images

FORMAT = 1
ENCODINGS = ("raw", "jpeg")
ROW = np.dtype(
    [
        *(("start", "<u8"), ("length", "<u8"), ("label", "<i8"), ("name", "<u8")),
        *(("name_length", "<u4"), ("height", "<u4"), ("width", "<u4"), ("crc", "<u4")),
    ]
)

_MAGIC = b"\x89SELFPK\n"
_HEADER = struct.Struct("<8s2I3Q20x")
_CRC = struct.Struct("<I")
_ALIGNMENT = 64
_BUFFER = 2**26  # bytes of decoded images in memory while packing
_AGAIN = "copy it again from where it came, or pack the data anew"


class PackSource:
    """One part of a pack, ``title``; ``facts`` are those of the whole pack.

    ``images`` is uint8 [N, H, W, C], a view of the file, where all records are pixels of one size;
    None elsewhere. Nobody has checked its records: see ``intact``.
    """

    def __init__(
        self,
        content: np.ndarray,
        table: np.ndarray,
        names: np.ndarray,
        facts: Mapping[str, Any],
        part: Mapping[str, Any],
    ) -> None:
        self.title: str = part["name"]
        self.facts = facts
        self.classes: Sequence[str] | None = part["classes"]
        labels = table["label"].astype(np.int64)
        self.labels: np.ndarray | None = labels if labels.max() >= 0 else None
        self.images = _stack(content, table, facts)
        self._content = content
        self._table = table
        self._names = names
        self._intact = np.zeros(len(table), np.bool_)  # records whose CRC was seen to be right

    def __len__(self) -> int:
        return len(self._table)

    def name(self, i: int) -> str:
        """Name of the image in the source that was packed."""
        row = self._table[i]
        start, length = int(row["name"]), int(row["name_length"])
        return self._names[start : start + length].tobytes().decode("utf-8", "surrogatepass")

    def read(self, i: int) -> bytes | np.ndarray:
        """Pixels, uint8 [h, w, C]: a read-only view of the file; or the bytes of a JPEG file.

        Raises:
            Unreadable: The record is not what was written.
        """
        start, length, _, _, _, height, width, crc = self._table[i].item()
        record = self._content[start : start + length]
        if not self._intact[i]:
            if zlib.crc32(record.data) != crc:
                raise Unreadable("damaged in the pack (its CRC-32 is wrong)")
            self._intact[i] = True
        if self.facts["encode"] == "jpeg":
            return record.tobytes()
        return record.reshape(height, width, -1)

    def intact(self, index: np.ndarray) -> np.ndarray:
        """Whether the records at ``index``, int64 [B], are what was written: bool [B]."""
        for i in index[~self._intact[index]].tolist():
            try:
                self.read(i)
            except Unreadable:
                continue
        found: np.ndarray = self._intact[index]
        return found

    def fingerprint(self) -> str:
        """Hash of the part's rows of the table, which hold a CRC of each image, and its classes."""
        digest = sha256(repr(self.classes).encode("utf-8", "surrogatepass"))
        digest.update(self._table.tobytes())
        return digest.hexdigest()[:16]


def open_pack(path: Path) -> list[PackSource]:
    """Open a pack: one source, or two where a train and a test part were packed.

    Raises:
        DataError: It is not a pack, of a later format, or its header or index is damaged.
    """
    try:
        with open(path, "rb") as file:
            header, size = file.read(_HEADER.size + _CRC.size), os.fstat(file.fileno()).st_size
        start, count, crc = _parse(header, size, path)
        content = np.memmap(path, np.uint8, "r").view(np.ndarray)
    except OSError as error:
        raise DataError(
            f"cannot read '{path}': {error.strerror or error}", tip="check its permissions"
        ) from None
    index = content[start:]
    if zlib.crc32(index.data) != crc:
        raise DataError(f"'{path}' is damaged: the CRC-32 of its index is wrong", tip=_AGAIN)
    table = np.frombuffer(index, ROW, count)
    names = index[table.nbytes :]
    facts = json.loads(names[int(table[-1]["name"]) + int(table[-1]["name_length"]) :].tobytes())
    sources, first = [], 0
    for part in facts["parts"]:
        rows = table[first : first + part["images"]]
        sources.append(PackSource(content, rows, names, facts, part))
        first += len(rows)
    return sources


def _parse(header: bytes, size: int, path: Path) -> tuple[int, int, int]:
    """Start, number of images and CRC of the index of a file of ``size`` bytes."""
    if header[: len(_MAGIC)] != _MAGIC:
        raise DataError(f"'{path}' is not a pack", tip="write one: selfsame pack DATA -o NAME.pack")
    complete = len(header) == _HEADER.size + _CRC.size
    if not complete or _CRC.unpack_from(header, _HEADER.size)[0] != zlib.crc32(header[:-4]):
        raise DataError(f"'{path}' is damaged: the CRC-32 of its header is wrong", tip=_AGAIN)
    _, version, crc, start, length, count = _HEADER.unpack_from(header)
    if version != FORMAT:
        raise DataError(
            f"'{path}' is a pack of format {version}; this version reads format {FORMAT}",
            tip="install a newer selfsame, or pack the data anew",
        )
    if start + length != size:
        raise DataError(f"'{path}' is not whole: {size:,} bytes of {start + length:,}", tip=_AGAIN)
    return start, count, crc


def _stack(content: np.ndarray, table: np.ndarray, facts: Mapping[str, Any]) -> np.ndarray | None:
    """All images as one array, a view of the file, where they are pixels of one size."""
    start, length, _, _, _, height, width, _ = table[0].item()
    stride = _aligned(length)
    same = (table["height"] == height) & (table["width"] == width)
    same &= table["start"] == start + stride * np.arange(len(table), dtype=np.uint64)
    if facts["encode"] != "raw" or not same.all():
        return None
    shape = (len(table), height, width, facts["channels"])
    strides = (stride, width * facts["channels"], facts["channels"], 1)
    return np.ndarray(shape, np.uint8, content, start, strides)


def write_pack(
    path: Path,
    parts: Mapping[str, Images],
    *,
    encode: str = "raw",
    quality: int = 95,
    progress: Callable[[int], None] = lambda done: None,
) -> Mapping[str, Any]:
    """Write images as ``Images`` gives them, without those that cannot be read; their facts.

    Args:
        path: Where to write. The bytes are a function of the images and the options.
        parts: One part, or the train and the test part, under their names; their canvas and
            channels are the pack's. They are read in order and once.
        encode: "raw" for pixels, or "jpeg" (4:4:4; 1 or 3 channels).
        quality: Of JPEG, 1 to 100.
        progress: Called with the number of images done, readable or not: 0 first, all of them last.

    Raises:
        DataError: Not one image of a part is readable.
        OSError: It cannot be written.
    """
    some = next(iter(parts.values()))
    facts: dict[str, Any] = {
        "selfsame": __version__,
        "encode": encode,
        "quality": quality if encode == "jpeg" else None,
        "channels": some.channels,
        "levels": some.levels,
        "canvas": some.canvas,
        "parts": [],
        "bad": [],
    }
    rows: list[np.ndarray] = []
    names = bytearray()
    done = 0
    with open(path, "wb") as file:
        file.write(bytes(_ALIGNMENT))
        for part, images in parts.items():
            count = 0
            for batch, records in _records(images, encode, quality):
                progress(done + int(batch.index[0]))
                table = np.zeros(len(batch.index), ROW)
                table["height"], table["width"] = batch.sizes.numpy().T
                table["label"] = -1 if batch.label is None else batch.label.numpy()
                for row, i, record in zip(table, batch.index.tolist(), records, strict=True):
                    name = images.source.name(i).encode("utf-8", "surrogatepass")
                    row["start"], row["length"] = file.tell(), len(record)
                    row["crc"] = zlib.crc32(record)
                    row["name"], row["name_length"] = len(names), len(name)
                    names += name
                    file.write(record)
                    file.write(bytes(_aligned(len(record)) - len(record)))
                rows.append(table)
                count += len(table)
            done += len(images)
            progress(done)
            source = images.source
            classes = None if source.classes is None else [str(name) for name in source.classes]
            about = {"name": part, "images": count, "classes": classes}
            facts["parts"].append(about | {"source": source.fingerprint()})
            facts["bad"] += [
                {"part": part, "name": bad.name, "reason": bad.reason} for bad in images.bad
            ]
        start, total = file.tell(), sum(map(len, rows))
        text = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode("ascii")
        index = b"".join([*(table.tobytes() for table in rows), names, text])
        file.write(index)
        file.seek(0)
        header = _HEADER.pack(_MAGIC, FORMAT, zlib.crc32(index), start, len(index), total)
        file.write(header + _CRC.pack(zlib.crc32(header)))
    return facts


def expected_size(images: Images, encode: str, quality: int, sample: int = 64) -> int:
    """Estimate of the bytes that a part will take, from an evenly spaced sample of its images.

    Raises:
        DataError: Not one image is readable.
    """
    index = torch.tensor(spaced(len(images), sample))
    sizes = [
        _aligned(len(record)) + ROW.itemsize
        for part in torch.split(index, _chunk(images))
        for record in map(_encoder(encode, quality), _pictures(images.batch(part)))
    ]
    return round(sum(sizes) / len(sizes) * len(images))


def _records(
    images: Images, encode: str, quality: int
) -> Iterator[tuple[Batch, Iterable[bytes | memoryview]]]:
    """Batches of readable images in order, each with its records."""
    encoder = _encoder(encode, quality)
    with ThreadPoolExecutor(thread_name_prefix="selfsame-encode") as pool:
        each = map if encode == "raw" else pool.map  # a copy is not worth a thread
        for batch in images.readable(_chunk(images)):
            yield batch, each(encoder, _pictures(batch))


def _chunk(images: Images) -> int:
    """Images that are decoded at once."""
    return max(1, min(128, _BUFFER // (images.channels * images.canvas**2)))


def _pictures(batch: Batch) -> Iterator[np.ndarray]:
    """The part of each canvas that is image, uint8 [h, w, C]."""
    canvases = batch.images.permute(0, 2, 3, 1).numpy()
    for canvas, (height, width) in zip(canvases, batch.sizes.tolist(), strict=True):
        yield canvas[:height, :width]


def _encoder(encode: str, quality: int) -> Callable[[np.ndarray], bytes | memoryview]:
    def raw(picture: np.ndarray) -> memoryview:
        return np.ascontiguousarray(picture).data.cast("B")

    def jpeg(picture: np.ndarray) -> bytes:
        pixels = picture[..., 0] if picture.shape[2] == 1 else picture
        buffer = BytesIO()
        image = Image.fromarray(np.ascontiguousarray(pixels))
        image.save(buffer, "JPEG", quality=quality, subsampling=0)
        return buffer.getvalue()

    return jpeg if encode == "jpeg" else raw


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT
