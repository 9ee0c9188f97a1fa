"""Media containers, looked at as bytes: which one a clip is, whether all of it is there, and what was joined.

Decoders are lenient: most of them play what is left of a truncated file and say nothing, and libavformat would follow
a playlist to other files. So the format is read from the bytes alone, only eight families are accepted, and what
the container promises about its own length is compared with the bytes at hand before any decoder sees them.
"""

from __future__ import annotations

import itertools
import re
import struct
import zlib
from collections.abc import Callable, Iterator

from mecap_jax.data import mp4

KINDS = ("wav", "flac", "ogg", "mp3", "aac", "mov", "matroska", "avi")
# Recognised only to be refused by name.
_REFUSED = {
    b"#EXTM3U": "an HLS playlist",
    b"ffconcat": "a concat playlist",
    b"[playlist]": "a PLS playlist",
    b"<?xml": "an XML document",
    b"<!DOCTYPE": "an HTML page",
    b"<html": "an HTML page",
    b"FLV": "a Flash video",
    b"\x00\x00\x01\xba": "an MPEG program stream",
    b"0&\xb2u\x8ef\xcf\x11": "a Windows Media (ASF) file",
    b".RMF": "a RealMedia file",
    b"RIFX": "a big-endian WAV (RIFX) file",
    b"riff.\x91\xcf\x11": "a Sony Wave64 (W64) file",
    b"NIST_1A": "a NIST SPHERE file",
    b"#!AMR": "an AMR file",
    b"caff": "a Core Audio file",
    b"wvpk": "a WavPack file",
    b"MAC ": "a Monkey's Audio file",
    b"MThd": "a MIDI file",
    b"FORM": "an AIFF file",
    b".snd": "an AU file",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a zip archive",
}


class MediaError(ValueError):
    """A clip that cannot be decoded, or not in full; the message is one line."""


def identify(data: bytes) -> str:
    """Returns the container of an encoded clip, one of `KINDS` ("mov" includes mp4, "matroska" includes webm).

    Raises:
      MediaError: no bytes, or none of the supported containers.
    """
    return _locate(data)[0]


def parts(data: bytes) -> tuple[str, list[bytes]]:
    """Returns the container and the files that make up a clip, one behind the other: usually one.

    Files of sound can be joined by appending one to the other (chained Ogg, RFC 3533, is even made for it). What stands
    in front of a file, ID3 tags and zeros, is left out.

    Raises:
      MediaError: as `identify` and `check_complete` do.
    """
    kind, start = _locate(data)
    found = _SPLITS.get(kind, lambda whole: [whole])(data[start:])
    for part in found:
        check_complete(part, kind)
    return kind, found


def _locate(data: bytes) -> tuple[str, int]:
    """The kind of a file, and where it begins."""
    if not data:
        raise MediaError("empty file (0 bytes)")
    position, begin = -1, 0
    while begin > position:
        position = begin
        if kind := _kind(data, position):
            return kind, position
        begin = _padding_end(data, position)
        # The size in front of a first mp4 box may begin with zeros of its own.
        for box in range(max(position, begin - 3), begin):
            if _kind(data, box) == "mov":
                return "mov", box
    head = data[position : position + 16]
    supported = f"(supported: {', '.join(KINDS)})"
    if head[:4] == b"RIFF":
        raise MediaError(f"unsupported container: RIFF of type {head[8:12]!r} {supported}")
    if data[0:377:188] == b"GGG" or data[4:389:192] == b"GGG":  # packets of 188 bytes, or 192 on discs
        raise MediaError(f"unsupported container: an MPEG transport stream (MPEG-TS) {supported}")
    for magic, name in _REFUSED.items():
        if head.startswith(magic):
            raise MediaError(f"unsupported container: {name} {supported}")
    raise MediaError(f"not a media file: starts with {head or data[:16]!r} {supported}")


def _kind(data: bytes, start: int) -> str | None:
    head = data[start : start + 16]
    if head[:4] in (b"RIFF", b"RF64", b"BW64"):
        return {b"WAVE": "wav", b"AVI ": "avi"}.get(head[8:12])
    for magic, kind in ((b"fLaC", "flac"), (b"OggS", "ogg"), (b"\x1aE\xdf\xa3", "matroska")):
        if head.startswith(magic):
            return kind
    if head[4:8] in mp4.BOXES:
        return "mov"
    for kind, frame_length in (("mp3", _mp3_frame), ("aac", _aac_frame)):
        # Eleven bits of a header are little to go by: another frame must follow, or nothing.
        length = frame_length(head)
        following = data[start + (length or 0) :][:8]
        if length == 0 or length and (not following or frame_length(following) is not None):
            return kind
    return None


def _padding_end(data: bytes, start: int) -> int:
    """Returns where an ID3v2 tag or a stretch of zeros at `start` ends; `start` where there is neither."""
    if data[start : start + 3] == b"ID3" and len(data) >= start + 10:
        size = sum((byte & 0x7F) << shift for byte, shift in zip(data[start + 6 : start + 10], (21, 14, 7, 0)))
        return start + 10 + size + (10 if data[start + 5] & 0x10 else 0)
    if data[start : start + 1] == b"\0":
        found = re.compile(rb"[^\0]").search(data, start)
        return found.start() if found else len(data)
    return start


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
    for name, position, size in _riff_chunks(data, 12):
        if name == b"ds64" and position + 16 <= len(data):
            data_size = struct.unpack_from("<Q", data, position + 8)[0]
        if name == b"data":
            if data[:4] != b"RIFF" and size == 0xFFFFFFFF and data_size is not None:
                size = data_size
            streamed = size >= 0x7FFF0000  # what writers that cannot seek back put there
            available = len(data) - position
            return "" if streamed or size <= available else f"{available} of {size} bytes of samples"
    return "it has no data chunk"


def _riff_chunks(data: bytes, position: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields name, first byte and size of each chunk."""
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        yield name, position + 8, size
        position += 8 + size + size % 2


def _wav_parts(data: bytes) -> list[bytes]:
    joined = [start - 8 for name, start, _ in _riff_chunks(data, 0) if name == b"RIFF" and data[start:][:4] == b"WAVE"]
    return _cut(data, joined)


def _check_avi(data: bytes) -> str:
    for name, start, size in _riff_chunks(data, 0):  # files over 1 GB go on in further ones, "AVIX"
        if name == b"RIFF" and start + size > len(data):
            return f"{len(data) - start} of {size} bytes"
    return "" if b"movi" in data else "it has no pictures ('movi' list)"


def _check_flac(data: bytes) -> str:
    return ""  # STREAMINFO counts samples, not bytes: the decoder compares


def _flac_parts(data: bytes) -> list[bytes]:
    # The marker and the header of the STREAMINFO block, the first and perhaps the only one (RFC 9639, section 8.1).
    return _cut(data, [match.start() for match in re.finditer(rb"fLaC[\x00\x80]\x00\x00\x22", data)])


def _check_ogg(data: bytes) -> str:
    finished: dict[bytes, bool] = {}
    end = 0
    for start, end in _ogg_pages(data):
        header = data[start : start + 27]
        if end > len(data):
            return "the last page is cut off"
        if _ogg_checksum(data[start:end]) != header[22:26]:
            return f"the page at byte {start} is damaged"
        finished[header[14:18]] = bool(header[5] & 4)
    if b"OggS" in data[end:]:
        return f"what stands at byte {end} is no page"
    return "" if finished and all(finished.values()) else "the end-of-stream page is missing"


def _ogg_pages(data: bytes) -> Iterator[tuple[int, int]]:
    """Yields the byte range of each page, the last one perhaps beyond the end."""
    position = 0
    while data[position : position + 4] == b"OggS":
        count = data[position + 26] if position + 26 < len(data) else 255
        lacing = data[position + 27 : position + 27 + count]
        end = position + 27 + count + sum(lacing)
        yield position, end
        position = end


def _ogg_parts(data: bytes) -> list[bytes]:
    """The links of a chain: each begins with a page that begins a stream, behind one that does not."""
    starts, began = [], False
    for start, _ in _ogg_pages(data):
        begins = bool(data[start + 5 : start + 6][0] & 2) if start + 5 < len(data) else False
        if begins and not began:
            starts.append(start)
        began = begins
    return _cut(data, starts)


def _cut(data: bytes, starts: list[int]) -> list[bytes]:
    """The pieces that begin at `starts`; what stands before the first belongs to it."""
    return [data[start:end] for start, end in zip([0, *starts[1:]], [*starts[1:], len(data)])]


_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ogg_checksum(page: bytes) -> bytes:
    """Returns a page's CRC (RFC 3533, section 6): the polynomial of zlib's, but bits in the other order, from zero."""
    page = (page[:22] + bytes(4) + page[26:]).translate(_REVERSED_BITS)
    crc = zlib.crc32(page, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return crc.to_bytes(4, "big").translate(_REVERSED_BITS)


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
    for count, (start, end) in enumerate(_frames(data, _mp3_frame), start=1):
        if count == 1:
            promised = _xing_frames(data[start:end])
        position = end
    if position > len(data):
        return f"the last frame lacks {position - len(data)} bytes"
    # Encoders differ in whether the frame that holds the Xing header is part of its count.
    if promised is not None and count < promised:
        return f"{count} of {promised} frames"
    for sync in _MP3_SYNC.finditer(data, position):
        if count and len(list(itertools.islice(_frames(data, _mp3_frame, sync.start()), 3))) == 3:
            return f"what stands at byte {position} is no frame, but frames follow"
    return ""


def _mp3_parts(data: bytes) -> list[bytes]:
    """Each part begins behind a tag, or with the header that an encoder puts in front."""
    starts, position = [], 0
    while position < len(data):
        run = list(_frames(data, _mp3_frame, position))
        starts += [start for n, (start, end) in enumerate(run) if n == 0 or _xing_frames(data[start:end]) is not None]
        position = run[-1][1] if run else position
        behind = _padding_end(data, position + 128 if data[position : position + 3] == b"TAG" else position)
        if behind == position or _mp3_frame(data[behind : behind + 4]) is None:
            break
        position = behind
    return _cut(data, starts)


def _check_aac(data: bytes) -> str:
    end = max((end for _, end in _frames(data, _aac_frame)), default=0)
    return f"the last frame lacks {end - len(data)} bytes" if end > len(data) else ""


def _aac_frame(head: bytes) -> int | None:
    """Returns the length in bytes of the ADTS frame with this header, None if it is none (ISO 13818-7, 6.2)."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or (head[2] >> 2) & 15 > 12:
        return None
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return length if length > 7 else None


def _frames(data: bytes, frame_length: Callable[[bytes], int | None], position: int = 0) -> Iterator[tuple[int, int]]:
    """Yields the byte range of each frame, up to the first bytes that are none (a trailing tag)."""
    while length := frame_length(data[position : position + 8]):
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
    mono, lower = frame[3] >> 6 == 3, frame[1] & 8 == 0
    at = 4 + ((9 if mono else 17) if lower else (17 if mono else 32))  # behind the side information
    if frame[at : at + 4] in (b"Xing", b"Info") and len(frame) >= at + 12 and frame[at + 7] & 1:
        return int.from_bytes(frame[at + 8 : at + 12], "big")
    return None


_MP3_SYNC = re.compile(rb"\xff[\xe2-\xff]")
_SPLITS = {"wav": _wav_parts, "flac": _flac_parts, "ogg": _ogg_parts, "mp3": _mp3_parts}
_CHECKS = {
    "wav": _check_wav,
    "flac": _check_flac,
    "ogg": _check_ogg,
    "mp3": _check_mp3,
    "aac": _check_aac,
    "mov": mp4.find_problem,
    "matroska": _check_matroska,
    "avi": _check_avi,
}
