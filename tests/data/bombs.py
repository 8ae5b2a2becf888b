"""Small files that would fill the memory or the day.

As a program: decodes them, and the files of a tar archive below ``bomb/``, within limits of memory
and time that the system enforces, and prints what came of each as JSON.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
import tarfile
import time
import zlib
from pathlib import Path

import numpy as np
from written import file, photo, png

from selfsame.data.decode import Unreadable, decode

MEMORY = 3 * 2**29  # bytes beside those of the interpreter with its libraries
SECONDS = 10


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new, 1)


def claims() -> dict[str, bytes]:
    """Files whose header claims far more pixels than there may be."""
    image = photo(24, 16)
    jpeg, progressive = file(image, "JPEG"), file(image, "JPEG", progressive=True)
    webp = file(image, "WEBP", save_all=True, append_images=[image.rotate(180)])
    tiff = file(image, "TIFF")
    for tag, side in ((256, 24), (257, 16)):
        field = struct.pack("<HHI", tag, 4, 1)
        tiff = patched(tiff, field + struct.pack("<I", side), field + b"\xff\xff\0\0")
    return {
        "jpeg": patched(jpeg, struct.pack(">HH", 16, 24), struct.pack(">HH", 65500, 65500)),
        "progressive jpeg": patched(
            progressive, struct.pack(">HH", 16, 24), struct.pack(">HH", 65500, 65500)
        ),
        "png": png(np.zeros((100_000, 1), np.uint8), 8, 0, width=100_000),
        "gif": patched(file(image, "GIF"), struct.pack("<HH", 24, 16), b"\xff\xff\xff\xff"),
        "webp": webp[:24] + b"\xff\xff\xff\xff\xff\xff" + webp[30:],
        "avif": patched(
            file(image, "AVIF"), struct.pack(">II", 24, 16), struct.pack(">II", 30_000, 30_000)
        ),
        "bmp": patched(
            file(image, "BMP"), struct.pack("<ii", 24, 16), struct.pack("<ii", 99_999, 99_999)
        ),
        "tiff": tiff,
        "tiff of jpeg": patched(
            file(image, "TIFF", compression="jpeg"),
            b"\x08" + struct.pack(">HH", 16, 24),
            b"\x08\xff\xff\xff\xff",
        ),
        "ppm": b"P6 100000 100000 255\n" + b"\0" * 99,
        "tga": patched(file(image, "TGA"), struct.pack("<HH", 24, 16), b"\xff\xff\xff\xff"),
        "sgi": patched(file(image, "SGI"), struct.pack(">HH", 24, 16), b"\xff\xff\xff\xff"),
        "pcx": patched(file(image, "PCX"), struct.pack("<HH", 23, 15), b"\xfe\xff\xfe\xff"),
        "qoi": patched(
            file(image, "QOI"), struct.pack(">II", 24, 16), struct.pack(">II", 99_999, 99_999)
        ),
        "jp2": patched(
            file(image, "JPEG2000"),
            struct.pack(">II", 16, 24),
            struct.pack(">II", 99_999, 99_999),
        ),
        "psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30_000, 30_000, 8, 3) + bytes(40),
    }


def tags(fields: int, size: int) -> bytes:
    """A directory whose many fields all claim the same bytes of the block."""
    body = b"".join(struct.pack("<HHII", 1000 + k, 1, size - 8, 8) for k in range(fields))
    return (b"II*\0" + struct.pack("<IH", 8, fields) + body).ljust(size, b"\0")


def expanding() -> dict[str, bytes]:
    """Files that expand in another way than by their pixels."""
    image, gray = photo(24, 16), np.zeros((4, 4), np.uint8)
    endless, many, jpeg = zlib.compress(bytes(2**28)), tags(20_000, 400_000), file(image, "JPEG")
    exif = b"".join(
        b"\xff\xe1" + struct.pack(">H", len(part) + 8) + b"Exif\0\0" + part
        for part in (many[k : k + 65_000] for k in range(0, len(many), 65_000))
    )
    placeholder = b"II*\0" + b"Z" * (len(many) - 4)
    return {
        "png with a long profile": png(gray, 8, 0, (b"iCCP", b"x\0\0" + endless)),
        "png with a long text": png(gray, 8, 0, (b"zTXt", b"x\0\0" + endless)),
        "png with long international text": png(gray, 8, 0, (b"iTXt", b"x\0\1\0\0\0" + endless)),
        "png with tags": png(gray, 8, 0, (b"eXIf", many)),
        "webp with tags": file(image, "WEBP", exif=b"Exif\0\0" + many),
        "avif with tags": patched(file(image, "AVIF", exif=placeholder), placeholder, many),
        "jpeg with tags": jpeg[:2] + exif + jpeg[2:],
        "damaged jpeg with tags": jpeg[:2] + exif + jpeg[2:-2],
        "tiff of tags": many,
    }


def outcome(data: bytes) -> tuple[str, float]:
    signal.alarm(SECONDS)  # ends the process
    since = time.perf_counter()
    try:
        result = str(decode(data, canvas=64).shape)
    except Unreadable as error:
        result = str(error)
    signal.alarm(0)
    return result, time.perf_counter() - since


def main() -> None:
    files = {**claims(), **expanding()}
    if len(sys.argv) > 1:
        with tarfile.open(sys.argv[1]) as tar:
            for member in tar:
                if member.name.startswith("bomb/"):
                    files[member.name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    decode(files.pop("png with tags"), canvas=64)  # imports what is imported late
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(json.dumps({name: outcome(data) for name, data in files.items()}))


if __name__ == "__main__":
    main()
