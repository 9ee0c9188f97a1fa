"""Clips opened by libav: from memory, with the named demuxer and the listed decoders only."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator

import av
from av.stream import Disposition

from mecap_jax.data.containers import MediaError

VIDEO_KINDS = ("mov", "matroska", "avi")
MAX_PIXELS = 4096 * 2304  # one frame
# Names of libav's decoders. What people record and publish is in them; each further one is code that strangers reach.
_SOUND_DECODERS = (
    "aac alac ac3 eac3 flac mp2 mp2float mp3 mp3float opus libopus vorbis libvorbis amrnb amrwb gsm_ms "
    "adpcm_ms adpcm_ima_wav adpcm_ima_qt pcm_u8 pcm_s8 pcm_alaw pcm_mulaw pcm_f32le pcm_f64le pcm_f32be pcm_f64be "
    "pcm_s16le pcm_s16be pcm_s24le pcm_s24be pcm_s32le pcm_s32be"
).split()
_PICTURE_DECODERS = (
    "h264 hevc vp8 libvpx vp9 libvpx-vp9 av1 libdav1d mpeg4 msmpeg4v2 msmpeg4 h263 mpeg1video mpeg2video mjpeg "
    "ffv1 rawvideo dvvideo prores"
).split()


@dataclasses.dataclass(frozen=True)
class OpenClip:
    """An open clip.

    Attributes:
      kind: the container, one of `containers.KINDS`.
      container: libav's.
      sound: its best audio stream, None without one.
      picture: its first video stream, None without one; a cover picture is none.
      origin: where the clip's time line begins among the time stamps of its streams, in seconds: with the earlier one.
    """

    kind: str
    container: av.container.InputContainer
    sound: av.AudioStream | None
    picture: av.VideoStream | None

    @property
    def origin(self) -> float:
        both = (self.sound, self.picture)
        return min([float(s.start_time * s.time_base) for s in both if s and s.start_time is not None], default=0.0)


@contextlib.contextmanager
def open_clip(data: bytes, kind: str) -> Iterator[OpenClip]:
    """Opens a clip without access to anything else (probing could pick a playlist).

    Raises:
      MediaError: its header is damaged, it refers to another file, or its best streams want a decoder that is not
        listed.
    """
    options = {
        "max_streams": "32",
        "format_whitelist": kind,
        "codec_whitelist": ",".join(_SOUND_DECODERS + _PICTURE_DECODERS),
    }
    try:
        opened = av.open(
            io.BytesIO(data),
            format=kind,
            metadata_errors="replace",
            io_open=_refuse_reference,
            container_options=options,
        )
    except av.FFmpegError as error:
        raise MediaError(f"truncated or corrupt {kind} file: what it begins with cannot be read") from error
    with opened as container:
        sound = container.streams.best("audio")
        moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        picture = moving[0] if moving and kind in VIDEO_KINDS else None
        _prepare(sound, _SOUND_DECODERS, {"err_detect": "crccheck+explode"} if kind == "flac" else {})
        _prepare(picture, _PICTURE_DECODERS, {"max_pixels": str(MAX_PIXELS)})
        yield OpenClip(kind, container, sound, picture)


def _prepare(stream: av.stream.Stream | None, decoders: list[str], options: dict[str, str]) -> None:
    if stream is None:
        return
    context = stream.codec_context
    if context is None or context.codec.name not in decoders:
        raise MediaError(f"unsupported {stream.type} codec: {context.codec.name if context else 'unknown'}")
    context.thread_count = 1  # readers run side by side already
    context.options = options


def _refuse_reference(url: str, flags: int, options: dict) -> None:
    raise MediaError("refers to another file")


def frames(clip: OpenClip, stream: av.AudioStream | av.VideoStream) -> Iterator[av.AudioFrame | av.VideoFrame]:
    """Yields the decoded frames of a stream.

    Raises:
      MediaError: one cannot be decoded; says up to where they could, in seconds on the clip's time line.
    """
    end = clip.origin
    try:
        for frame in clip.container.decode(stream):
            if frame.time is not None:
                end = frame.time + float((frame.duration or 0) * frame.time_base)
            yield frame
    except av.FFmpegError as error:
        # What it says itself is a number and the name of a function.
        what, promised = "sound" if stream.type == "audio" else "pictures", promised_end(clip, stream)
        there = f"{end - clip.origin:.2f} s" + (f" of {promised:.2f} s" if promised else "")
        lost = f"its {what} cannot be decoded beyond {there}"
        raise MediaError(f"truncated or corrupt {clip.kind} file: {lost}") from error


def check_length(clip: OpenClip, stream: av.stream.Stream, end: float, slack: float) -> None:
    """Compares where a stream ends, in seconds on the clip's time line, with what the header promises, if it does.

    Raises:
      MediaError: it ends earlier; or much later, by the sum of an mp4's samples.
    """
    promised = promised_end(clip, stream)
    if promised is None:
        return
    if promised - end > slack or (clip.kind == "mov" and end > 0.25 + 1.25 * promised):
        raise MediaError(f"truncated or corrupt: {end:.2f} s of {stream.type} where {promised:.2f} s are promised")


def promised_end(clip: OpenClip, stream: av.stream.Stream) -> float | None:
    """Where a stream ends on the clip's time line as its container's header has it; None where it does not say."""
    if clip.kind in ("mp3", "aac"):
        return None  # libav estimates; `check_complete` has counted the frames
    if clip.kind != "matroska":
        start = float((stream.start_time or 0) * stream.time_base) - clip.origin
        return start + float(stream.duration * stream.time_base) if stream.duration else None
    # Multiplexers tag each track with its end. The segment's length guards against tags left from an edit.
    tag = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if tag is None or not clip.container.duration:
        return None
    hours, minutes, seconds = map(float, tag.groups())
    return min(3600 * hours + 60 * minutes + seconds, clip.container.duration / av.time_base) - clip.origin
