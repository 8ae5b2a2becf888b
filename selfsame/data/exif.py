"""Directories of EXIF blocks and TIFF files: which way up a picture is, and what is a bomb.

Layout: TIFF 6.0, section 2; BigTIFF has 64-bit counts and offsets. A directory is read in place:
no value is copied, whatever it claims.
"""

from __future__ import annotations

import re

import numpy as np

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF

_ORIENTATION = 0x0112
_WIDTHS = {1: 1, 3: 2, 4: 4}  # bytes of the integer types that an orientation may have
_IN_XMP = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")
# Bytes of one value of each type of field, by the number of the type; 0 is unknown.
_SIZES = np.array([0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8])
_ALLOWED = 64 * 2**20  # bytes


def _layout(magic: bytes) -> tuple[np.dtype[np.void], np.dtype[np.uint64], np.dtype[np.uint64]]:
    """How one field, the number of fields, and an offset are stored."""
    order, big = "<" if magic[:1] == b"I" else ">", magic in MAGIC[2:]
    count, number = ("u8", "u8") if big else ("u4", "u2")
    names, value = ["tag", "type", "count", "value"], f"V{8 if big else 4}"
    kinds = [f"{order}u2", f"{order}u2", order + count, value]
    field = np.dtype({"names": names, "formats": kinds})
    return field, np.dtype(order + number), np.dtype(order + count)


_LAYOUTS = {magic: _layout(magic) for magic in MAGIC}


def orientation(exif: bytes, xmp: bytes = b"") -> int:
    """EXIF orientation, 1 to 8: that of the EXIF block, else of the XMP; 1 where neither says."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    fields = _directory(exif, 0)
    found = fields[fields["tag"] == _ORIENTATION]
    if len(found) == 0:
        upright = _IN_XMP.search(xmp)
        return int(upright[1]) if upright else 1
    width = _WIDTHS.get(int(found[-1]["type"]), 0)
    stored = found[-1]["value"].tobytes()[:width]
    value = int.from_bytes(stored, "little" if exif[:1] == b"I" else "big")
    return value if 1 <= value <= 8 else 1


def overlong(data: bytes, anywhere: bool) -> bool:
    """Whether a directory's values, which readers copy, add up to far more than the file holds.

    They may overlap, so thousands of them can share one large piece of a small file. Looks at the
    start of ``data``, or for directories anywhere in it.
    """
    for magic in MAGIC:
        start = data.find(magic) if anywhere else -1 + data.startswith(magic)
        while start >= 0:
            fields = _directory(data, start)
            kinds = np.where(fields["type"] < len(_SIZES), fields["type"], 0)
            counts = np.minimum(fields["count"], len(data)).astype(np.int64)
            copied = int(np.minimum(counts * _SIZES[kinds], len(data)).sum())
            if copied > max(_ALLOWED, 16 * len(data)):
                return True
            start = data.find(magic, start + 1) if anywhere else -1
    return False


def _directory(block: bytes, start: int) -> np.ndarray:
    """Fields of the first directory of a TIFF structure; none where it is damaged."""
    magic = block[start : start + 4]
    if magic not in _LAYOUTS:
        return np.empty(0, _LAYOUTS[MAGIC[0]][0])
    field, number, offset = _LAYOUTS[magic]
    try:
        at = start + int(np.frombuffer(block, offset, 1, start + offset.itemsize)[0])
        fields = int(np.frombuffer(block, number, 1, at)[0])
    except (ValueError, OverflowError):  # past the end
        return np.empty(0, field)
    first = at + number.itemsize
    fields = min(fields, (len(block) - first) // field.itemsize)
    return np.frombuffer(block, field, fields, first) if fields else np.empty(0, field)
