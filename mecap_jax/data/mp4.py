"""The boxes of mp4, mov and 3gp files (ISO 14496-12): all there, and in agreement where they say a thing twice."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

BOXES = tuple(b"ftyp moov mdat free skip wide moof styp sidx mfra meta uuid".split())  # that a file may begin with
# Where what is looked for may stand.
_PARENTS = {
    b"moov": (b"mvhd", b"trak"),
    b"trak": (b"tkhd", b"edts", b"mdia"),
    b"edts": (b"elst",),
    b"mdia": (b"mdhd", b"hdlr", b"minf"),
    b"minf": (b"stbl",),
    b"stbl": (b"stsz",),
    b"moof": (b"traf",),
    b"traf": (b"trun",),
}


class _Box(NamedTuple):
    """A box: its name, where it begins, and where its content does and ends."""

    name: bytes
    begin: int
    start: int
    end: int


def find_problem(data: bytes) -> str:
    """Says why a file is not whole; "" where nothing is wrong."""
    names, scale = set(), 0
    for box in _boxes(data, 0, None):
        if box.end > len(data) and box.name in BOXES:
            return f"box {box.name.decode()!r} has {len(data) - box.begin} of {box.end - box.begin} bytes"
        if box.end > len(data):
            break  # not a box: something was appended to the file
        names.add(box.name)
        for inner in _descend(data, box):
            # libav takes memory for each sample that is counted before it reads one (8.7.3.2 and 8.8.8.2).
            at = {b"stsz": 8, b"trun": 4}.get(inner.name)
            count = _number(data, inner, at) if at else 0
            if count > len(data):
                return f"box {inner.name.decode()!r} counts {count} samples in a file of {len(data)} bytes"
            if inner.name == b"mvhd":
                scale = _number(data, inner, 20 if _version(data, inner) else 12)
            if inner.name == b"trak" and (problem := _contradiction(data, inner, scale)):
                return problem
    return "" if b"moov" in names else "the index ('moov' box) is missing"


def _boxes(data: bytes, position: int, end: int | None) -> Iterator[_Box]:
    """Yields the boxes side by side from `position` on, the last one perhaps beyond the end."""
    limit = len(data) if end is None else end
    while position + 8 <= limit:
        size, name = struct.unpack_from(">I4s", data, position)
        start = position + 8
        if size == 1 and position + 16 <= limit:
            size, start = struct.unpack_from(">Q", data, start)[0], position + 16
        size = size or limit - position
        if size < start - position or (end is not None and position + size > end):
            return  # libav judges
        yield _Box(name, position, start, position + size)
        position += size


def _descend(data: bytes, box: _Box) -> Iterator[_Box]:
    """Yields the box and those in it that are looked for."""
    yield box
    if box.name in _PARENTS:
        for inner in _boxes(data, box.start, box.end):
            if inner.name in _PARENTS[box.name]:
                yield from _descend(data, inner)


def _version(data: bytes, box: _Box) -> int:
    return _number(data, box, 0) >> 24


def _number(data: bytes, box: _Box, at: int, size: int = 4) -> int:
    """An unsigned number in the content of a box, 0 beyond its end."""
    if box.start + at + size > box.end:
        return 0
    return int.from_bytes(data[box.start + at : box.start + at + size], "big")


def _contradiction(data: bytes, track: _Box, scale: int) -> str:
    """Compares the stretch of its media that a track shows (8.3.2, 8.6.6) with how long they are (8.4.2)."""
    boxes = {box.name: box for box in _descend(data, track)}
    media, handler = boxes.get(b"mdhd"), boxes.get(b"hdlr")
    if media is None or handler is None or data[handler.start + 8 : handler.start + 12] not in (b"soun", b"vide"):
        return ""
    wide = _version(data, media)
    media_scale = _number(data, media, 20 if wide else 12)
    length = _number(data, media, 24, 8) if wide else _number(data, media, 16)
    shown = [(time, duration) for time, duration in _edits(data, boxes) if 0 < duration < 0xFFFFFFFF]
    if not (scale and media_scale and 0 < length < 0xFFFFFFFF and shown):
        return ""  # fragments, and files that are still being written
    there = length / media_scale
    end = max(time / media_scale + duration / scale for time, duration in shown)
    if max(there, end) > 0.25 + 1.25 * min(there, end):
        return f"the header contradicts itself: a track shows {end:.2f} s of {there:.2f} s"
    return ""


def _edits(data: bytes, boxes: dict[bytes, _Box]) -> Iterator[tuple[int, int]]:
    """Yields where in the media each edit begins, in their scale, and how long it is, in the movie's."""
    edits, header = boxes.get(b"elst"), boxes.get(b"tkhd")
    if edits is not None:
        size = 8 if _version(data, edits) else 4
        for at in range(8, edits.end - edits.start - 2 * size - 3, 2 * size + 4):
            time = _number(data, edits, at + size, size)
            if time < 1 << 8 * size - 1:  # negative: nothing is shown
                yield time, _number(data, edits, at, size)
    elif header is not None:
        yield 0, _number(data, header, 28, 8) if _version(data, header) else _number(data, header, 20)
