"""TensorBoard's event files, written without TensorBoard: scalars are all that a run has.

A file is a sequence of records (TFRecord: length, its checksum, content, its checksum), each one
message ``Event`` of ``tensorboard/compat/proto/event.proto`` in protocol buffers' wire format.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from selfsame.files import atomic

NAME = "events.out.tfevents.{}.selfsame"  # TensorBoard takes any file with "tfevents" in its name


class Event(NamedTuple):
    """Scalars of one step."""

    step: int
    values: Mapping[str, float]
    wall: float | None = None  # seconds since 1970; now, where None


def add(folder: Path, events: Iterable[Event]) -> None:
    """Append events to the folder's file, or begin one."""
    events = list(events)
    if not events:
        return
    files = _files(folder)
    file = files[-1] if files else folder / NAME.format(int(time.time()))
    content = b"".join(map(_record_of, events))
    with file.open("ab") as stream:
        stream.write((b"" if files else _header()) + content)


def rewrite(folder: Path, events: Iterable[Event]) -> None:
    """Replace the folder's events by these, which keep the times that their steps had.

    The new file has a later name, to which a running TensorBoard goes on, and begins with the mark
    upon which it forgets what it had read. The file that it comes from stays, empty.
    """
    old = _files(folder)
    times: dict[int, float] = {}
    for file in old:
        times |= dict(_times(file.read_bytes()))
    events = list(events)
    if old or events:
        number = max([int(time.time()), *(_number(file) + 1 for file in old)])
        timed = [e if e.wall is not None else e._replace(wall=times.get(e.step)) for e in events]
        with atomic(folder / NAME.format(number)) as temporary:
            temporary.write_bytes(_header() + b"".join(map(_record_of, timed)))
    for file in old[:-1]:
        file.unlink()
    for file in old[-1:]:
        os.truncate(file, 0)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(NAME.format("*")), key=_number)


def _number(file: Path) -> int:
    digits = file.name.split(".")[3]
    return int(digits) if digits.isdigit() else 0


# Event: 1 wall_time (double), 2 step (int64), 3 file_version (string), 5 summary, 7 session_log.


def _header() -> bytes:
    wall = _double(1, time.time())
    start = _bytes(7, _varint(1 << 3) + _varint(1))  # SessionLog: 1 status = START
    version = _bytes(3, b"brain.Event:2")
    return _record(wall + version) + _record(wall + _varint(2 << 3) + _varint(0) + start)


def _record_of(event: Event) -> bytes:
    # Summary: 1 value; Value: 1 tag (string), 2 simple_value (float)
    values = b"".join(
        _bytes(1, _bytes(1, tag.encode("utf-8", "replace")) + _float(2, value))
        for tag, value in event.values.items()
    )
    wall = time.time() if event.wall is None else event.wall
    step = _varint(2 << 3) + _varint(event.step)
    return _record(_double(1, wall) + step + _bytes(5, values))


def _times(content: bytes) -> Iterator[tuple[int, float]]:
    """Step and time of each record; what was cut off at the end is left out."""
    at = 0
    while at + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = content[at + 12 : at + 12 + length]
        if len(event) < length or len(event) < 11:
            return
        at += 16 + length
        if event[9] != 2 << 3:  # no step: the file's version
            continue
        end = 10
        while event[end] >= 0x80:
            end += 1
        if event[end + 1] == 5 << 3 | 2:  # a summary
            step = sum((byte & 0x7F) << 7 * i for i, byte in enumerate(event[10 : end + 1]))
            yield step, struct.unpack_from("<d", event, 1)[0]


def _record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    checks = (struct.pack("<I", _masked_crc(part)) for part in (length, content))
    return length + next(checks) + content + next(checks)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    try:
        packed = struct.pack("<f", value)
    except OverflowError:  # beyond float32
        packed = struct.pack("<f", float("inf") if value > 0 else float("-inf"))
    return _varint(field << 3 | 5) + packed


def _masked_crc(content: bytes) -> int:
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(content: bytes) -> int:
    """The checksum of Castagnoli (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _table()
