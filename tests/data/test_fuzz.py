"""Damaged files of every format give pixels of a legal shape, or ``Unreadable``; nothing else."""

from __future__ import annotations

import contextlib
import resource
import struct
import sys
import time
import zlib

import numpy as np
import pytest
from written import every_format

from selfsame.data.decode import Unreadable, decode, own_channels, picture_size, raw_values

FILES = every_format()
EXTREME = (b"\xff", b"\0", b"\xff\xff", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff")
EXTREME += (b"\x80\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\1\0", b"\0\1\0\0")


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file in one to four places, more often in its first 128 bytes."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(0, min(len(out), 128) if rng.random() < 0.6 else len(out)))
        kind = rng.integers(0, 6)
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            out[at] = int(rng.integers(0, 256))
        elif kind == 2:
            new = EXTREME[int(rng.integers(0, len(EXTREME)))]
            out[at : at + len(new)] = new
        elif kind == 3:
            out = out[: max(1, at)] if rng.random() < 0.5 else out[: max(1, len(out) - at % 16)]
        elif kind == 4:
            span = int(rng.integers(1, 24))
            out[at:at] = out[at : at + span]  # a piece twice
        else:
            del out[at : at + int(rng.integers(1, 8))]
        out = out or bytearray(1)
    return bytes(out)


def with_right_sums(data: bytes) -> bytes:
    """Repair the checksums of PNG, so that damage goes further than the first chunk."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        (length,) = struct.unpack_from(">I", out, at)
        end = at + 8 + length
        if end + 4 > len(out):
            break
        struct.pack_into(">I", out, end, zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)


def check(data: bytes, channels: int, canvas: int) -> bool:
    """Whether it decodes; every other outcome than the legal two fails."""
    levels = (0.0, 4095.0) if channels == 1 else None
    try:
        pixels = decode(data, canvas=canvas, channels=channels, levels=levels)
    except Unreadable as error:
        assert 0 < len(str(error)) < 200
        return False
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[0] == channels
    assert 1 <= min(pixels.shape[1:]) <= max(pixels.shape[1:]) <= canvas
    return True


def run(rounds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    decoded = refused = 0
    slowest = ("", 0.0)
    for name, data in FILES.items():
        for _ in range(rounds if "avif" not in name else max(1, rounds // 4)):
            damaged = mutated(data, rng)
            if name.endswith(".png") and rng.random() < 0.8:
                damaged = with_right_sums(damaged)
            channels, canvas = ((3, 1, 4, 5)[rng.integers(0, 4)], (8, 64)[rng.integers(0, 2)])
            since = time.process_time()
            good = check(damaged, channels, canvas)
            for look in (picture_size, own_channels, raw_values):
                with contextlib.suppress(Unreadable):
                    look(damaged)
            slowest = max(slowest, (name, time.process_time() - since), key=lambda item: item[1])
            decoded, refused = decoded + good, refused + (not good)
    assert decoded > refused / 20  # enough of them are damaged only a little
    assert refused > decoded / 20
    assert slowest[1] < 10, slowest


def test_every_file_decodes_undamaged() -> None:
    for name, data in FILES.items():
        channels = own_channels(data) or 3
        assert check(data, channels, 64), name
        shape = decode(data, canvas=64, channels=channels).shape[1:]
        assert shape in ((16, 24), (24, 16), (11, 16)), name


def test_damaged_files() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(100, seed=0)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown / (2**20 if sys.platform == "linux" else 2**30) < 2  # GiB


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_more_damaged_files(seed: int) -> None:
    run(500, seed)
