"""Media containers, looked at as bytes: which one a clip is, and whether all of it is there.

Decoders are lenient: most of them play what is left of a truncated file and say nothing, and libavformat would follow
a playlist to other files. So the format is read from the first bytes alone, only six families are accepted, and what
the container promises about its own length is compared with the bytes at hand before any decoder sees them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

KINDS = ("wav", "flac", "ogg", "mp3", "mov", "matroska")
# Recognised only to be refused by name.
_REFUSED = {
    b"#EXTM3U": "an HLS playlist",
    b"ffconcat": "a concat playlist",
    b"[playlist]": "a PLS playlist",
    b"<?xml": "an XML document",
    b"<!DOCTYPE": "an HTML page",
    b"FLV": "a Flash video",
    b"\x00\x00\x01\xba": "an MPEG program stream",
    b"FORM": "an AIFF file",
    b".snd": "an AU file",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a zip archive",
    b"\xff\xf1": "a raw AAC stream",
    b"\xff\xf9": "a raw AAC stream",
}
_MOV_BOXES = (
    b"ftyp",
    b"moov",
    b"mdat",
    b"free",
    b"skip",
    b"wide",
    b"moof",
    b"styp",
    b"sidx",
    b"mfra",
    b"meta",
    b"uuid",
)


class MediaError(ValueError):
    """A clip that cannot be decoded, or not in full; the message is one line."""


def identify(data: bytes) -> str:
    """Returns the container of an encoded clip, one of `KINDS` ("mov" includes mp4, "matroska" includes webm).

    Raises:
      MediaError: no bytes, or none of the supported containers.
    """
    if not data:
        raise MediaError("empty file (0 bytes)")
    head = data[_id3_end(data) :][:16]
    if head[:4] in (b"RIFF", b"RF64", b"BW64"):
        if head[8:12] == b"WAVE":
            return "wav"
        raise MediaError(f"unsupported container: RIFF of type {head[8:12]!r} (supported: {', '.join(KINDS)})")
    if head[:4] == b"fLaC":
        return "flac"
    if head[:4] == b"OggS":
        return "ogg"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if head[4:8] in _MOV_BOXES:
        return "mov"
    if _mp3_frame(head) is not None:
        return "mp3"
    for magic, name in _REFUSED.items():
        if head.startswith(magic):
            raise MediaError(f"unsupported container: {name} (supported: {', '.join(KINDS)})")
    raise MediaError(f"not a media file: starts with {head!r} (supported: {', '.join(KINDS)})")


def check_complete(data: bytes, kind: str) -> None:
    """Compares the length that a container promises with the bytes at hand.

    Formats written to a pipe promise nothing (a WAV of size 0xFFFFFFFF, a Matroska segment of unknown size): those
    pass here.

    Raises:
      MediaError: bytes are missing.
    """
    missing = _CHECKS[kind](data)
    if missing:
        raise MediaError(f"truncated or corrupt {kind} file: {missing}")


def _check_wav(data: bytes) -> str:
    data_size = None
    position = 12
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        position += 8
        if name == b"ds64" and position + 16 <= len(data):
            data_size = struct.unpack_from("<Q", data, position + 8)[0]
        if name == b"data":
            if data[:4] != b"RIFF" and size == 0xFFFFFFFF and data_size is not None:
                size = data_size
            streamed = size >= 0x7FFF0000  # what writers that cannot seek back put there
            available = len(data) - position
            return "" if streamed or size <= available else f"{available} of {size} bytes of samples"
        position += size + size % 2
    return "it has no data chunk"


def _check_flac(data: bytes) -> str:
    return ""  # STREAMINFO counts samples, not bytes: the decoder compares


def _check_ogg(data: bytes) -> str:
    position = _id3_end(data)
    finished: dict[bytes, bool] = {}
    while data[position : position + 4] == b"OggS":
        header = data[position : position + 27]
        lacing = data[position + 27 : position + 27 + header[-1]]
        end = position + 27 + len(lacing) + sum(lacing)
        if len(header) < 27 or len(lacing) < header[-1] or end > len(data):
            return "the last page is cut off"
        if _ogg_checksum(data[position:end]) != header[22:26]:
            return f"the page at byte {position} is damaged"
        finished[header[14:18]] = bool(header[5] & 4)
        position = end
    return "" if finished and all(finished.values()) else "the end-of-stream page is missing"


_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ogg_checksum(page: bytes) -> bytes:
    """Returns a page's CRC (RFC 3533, section 6): the polynomial of zlib's, but bits in the other order, from zero."""
    page = (page[:22] + bytes(4) + page[26:]).translate(_REVERSED_BITS)
    crc = zlib.crc32(page, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return crc.to_bytes(4, "big").translate(_REVERSED_BITS)


def _check_mov(data: bytes) -> str:
    boxes = set()
    position = 0
    while position + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, position)
        if size == 1 and position + 16 <= len(data):
            size = struct.unpack_from(">Q", data, position + 8)[0]
        elif size == 0:
            size = len(data) - position
        complete = position + size <= len(data)
        if not complete and name in _MOV_BOXES:
            return f"box {name.decode()!r} has {len(data) - position} of {size} bytes"
        if not complete or size < 8:
            break  # not a box: something was appended to the file
        boxes.add(name)
        position += size
    return "" if b"moov" in boxes else "the index ('moov' box) is missing"


def _check_matroska(data: bytes) -> str:
    position = 4
    size, position = _ebml_size(data, position)
    if size is None or position + size + 4 > len(data):
        return "it ends in its header"
    position += size
    if data[position : position + 4] != b"\x18\x53\x80\x67":
        return "it has no segment"
    size, position = _ebml_size(data, position + 4)
    available = len(data) - position
    return "" if size is None or size <= available else f"{available} of {size} bytes of the segment"


def _ebml_size(data: bytes, position: int) -> tuple[int | None, int]:
    """Returns a variable-length size (None: unknown) and the position behind it (RFC 8794, section 4)."""
    first = data[position] if position < len(data) else 0
    if first == 0:
        return None, position + 1
    length = 9 - first.bit_length()
    value = int.from_bytes(data[position : position + length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), position + length


def _check_mp3(data: bytes) -> str:
    promised, count, position = None, 0, 0
    for count, (start, end) in enumerate(_mp3_frames(data), start=1):
        if count == 1:
            promised = _xing_frames(data[start:end])
        position = end
    if position > len(data):
        return f"the last frame lacks {position - len(data)} bytes"
    # Encoders differ in whether the frame that holds the Xing header is part of its count.
    if promised is not None and count < promised:
        return f"{count} of {promised} frames"
    return ""


def _mp3_frames(data: bytes) -> Iterator[tuple[int, int]]:
    """Yields the byte range of each frame, up to the first bytes that are none (a trailing tag)."""
    position = _id3_end(data)
    while position + 4 <= len(data):
        length = _mp3_frame(data[position : position + 4])
        if not length:
            return
        yield position, position + length
        position += length


# ISO 11172-3 and 13818-3, layer III: kbit/s by bitrate index for MPEG-1 and for MPEG-2 and 2.5, and MPEG-1's Hz.
_MP3_BITRATES = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
_MP3_RATES = (44100, 48000, 32000)


def _mp3_frame(head: bytes) -> int | None:
    """Returns the length in bytes of the layer III frame with this header (0: free format), None if it is none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    version, bitrate_index, rate_index = (head[1] >> 3) & 3, head[2] >> 4, (head[2] >> 2) & 3
    if version == 1 or bitrate_index == 15 or rate_index == 3:
        return None
    lower = version != 3
    rate = _MP3_RATES[rate_index] // {3: 1, 2: 2, 0: 4}[version]
    bitrate = 1000 * _MP3_BITRATES[lower][bitrate_index]
    return (72 if lower else 144) * bitrate // rate + ((head[2] >> 1) & 1 if bitrate else 0)


def _xing_frames(frame: bytes) -> int | None:
    """Returns the number of frames that a Xing or Info header promises."""
    for tag in (b"Xing", b"Info"):
        at = frame.find(tag, 0, 64)
        if at >= 0 and len(frame) >= at + 12 and frame[at + 7] & 1:
            return int.from_bytes(frame[at + 8 : at + 12], "big")
    return None


def _id3_end(data: bytes) -> int:
    """Returns where the audio starts behind an ID3v2 tag, 0 without one."""
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    size = sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0)))
    return 10 + size + (10 if data[5] & 0x10 else 0)


_CHECKS = {
    "wav": _check_wav,
    "flac": _check_flac,
    "ogg": _check_ogg,
    "mp3": _check_mp3,
    "mov": _check_mov,
    "matroska": _check_matroska,
}
