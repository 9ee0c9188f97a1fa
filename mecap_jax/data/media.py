"""Decoding of encoded clips: speech to a mono waveform, faces to RGB frames.

Clips are decoded from memory, by soundfile where it can and by PyAV (libav) otherwise. Whatever is wrong with a clip
comes out as one `MediaError` with a one-line reason; a clip never comes out shorter than its container promises, and
limits on length, channels and picture size keep a hostile file from filling the memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import re
from collections.abc import Callable, Collection, Iterator

import av
import numpy as np
import soundfile
import soxr
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition

from mecap_jax.data.containers import MediaError, check_complete, identify

__all__ = ["Frames", "MediaError", "MediaInfo", "decode_audio", "decode_video", "probe", "streams"]

MAX_SECONDS = 600.0
MAX_CHANNELS = 8
MAX_SAMPLE_RATE = 192_000
MAX_PIXELS = 4096 * 2304  # one frame
MAX_FRAME_RATE = 240
MIN_FRAMES = 4  # Qwen2VLVideoProcessor.min_frames
TEMPORAL_PATCH_SIZE = 2  # of the Qwen2-VL family
_VIDEO_KINDS = ("mov", "matroska")


@dataclasses.dataclass(frozen=True)
class Frames:
    """Frames sampled from a video, upright.

    Attributes:
      pixels: uint8 `[F, H, W, 3]`, RGB.
      timestamps: float64 `[F]`, seconds from the first frame of the video.
      seconds_per_frame: length of the video divided by F.
    """

    pixels: np.ndarray
    timestamps: np.ndarray
    seconds_per_frame: float


@dataclasses.dataclass(frozen=True)
class MediaInfo:
    """What is in a clip; None where it has no such stream.

    Attributes:
      audio_seconds, video_seconds: decoded lengths.
      frames: decoded frames.
      width, height: pixels of an upright frame.
      fps: mean frame rate.
    """

    audio_seconds: float | None = None
    video_seconds: float | None = None
    frames: int | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None


def _raises_media_error(function: Callable) -> Callable:
    """Turns whatever a decoder raises into a `MediaError` of one line."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except MediaError:
            raise
        except Exception as error:  # the libraries raise a dozen unrelated types on hostile bytes
            reason = " ".join(str(error).split()) or type(error).__name__
            raise MediaError(f"cannot be decoded, corrupt or truncated: {reason:.200}") from error

    return wrapper


@_raises_media_error
def decode_audio(data: bytes, sample_rate: int = 16_000, max_seconds: float = MAX_SECONDS) -> np.ndarray:
    """Decodes the sound of an encoded audio or video file.

    Returns:
      float32 `[samples]`, full scale 1, at `sample_rate` Hz: the mean of the channels, resampled by soxr (HQ).

    Raises:
      MediaError: no sound, unsupported, corrupt, truncated, or longer than `max_seconds`.
    """
    kind = identify(data)
    check_complete(data, kind)
    decoded = _read_audio(data, kind, max_seconds)
    if decoded is None:
        raise MediaError("has no audio stream")
    waveform, rate = decoded
    return soxr.resample(waveform, rate, sample_rate, quality="HQ") if rate != sample_rate else waveform


@_raises_media_error
def decode_video(data: bytes, max_frames: int, fps: float, max_seconds: float = MAX_SECONDS) -> Frames:
    """Decodes and samples the frames of an encoded video file.

    A positive `fps` takes that many frames a second as transformers' `Qwen2VLVideoProcessor.sample_frames` does: at
    least 4 and at most `max_frames`, an even number, evenly spaced from the first frame on. `fps` 0 takes `max_frames`
    evenly spaced ones, or all where there are fewer. With a variable frame rate, frames are evenly spaced in time.

    Raises:
      MediaError: no video, unsupported, corrupt, truncated, or longer than `max_seconds`.
    """
    kind = identify(data)
    check_complete(data, kind)
    expected = _packet_timeline(data, kind)
    wanted = _sample(expected, max_frames, fps)
    decoded = _read_video(data, kind, max_seconds, wanted)
    if decoded is None:
        raise MediaError("has no video stream")
    timeline, pixels = decoded
    if len(timeline.starts) != len(expected.starts):  # packets without a picture, such as VP8's hidden references
        wanted = _sample(timeline, max_frames, fps)
        timeline, pixels = _read_video(data, kind, max_seconds, wanted)
    return Frames(
        pixels=np.stack([pixels[i] for i in wanted]),
        timestamps=np.array([timeline.starts[i] for i in wanted]),
        seconds_per_frame=timeline.seconds / len(wanted),
    )


@_raises_media_error
def probe(data: bytes, max_seconds: float = MAX_SECONDS) -> MediaInfo:
    """Decodes a whole clip and says what is in it.

    Raises:
      MediaError: neither sound nor video, unsupported, corrupt, truncated, or longer than `max_seconds`.
    """
    kind = identify(data)
    check_complete(data, kind)
    audio = _read_audio(data, kind, max_seconds)
    video = _read_video(data, kind, max_seconds, wanted=(0,))
    if audio is None and video is None:
        raise MediaError("has neither an audio nor a video stream")
    info = MediaInfo(audio_seconds=None if audio is None else len(audio[0]) / audio[1])
    if video is None:
        return info
    timeline, pixels = video
    height, width, _ = pixels[0].shape
    frames = len(timeline.starts)
    return dataclasses.replace(
        info,
        video_seconds=timeline.seconds,
        frames=frames,
        width=width,
        height=height,
        fps=frames / timeline.seconds,
    )


@_raises_media_error
def streams(data: bytes) -> tuple[bool, bool]:
    """Whether a clip has sound and whether it has moving pictures, from its header alone.

    Raises:
      MediaError: unsupported or corrupt.
    """
    kind = identify(data)
    if kind not in _VIDEO_KINDS:
        return True, False
    with _open_video(data, kind) as (container, stream):
        return container.streams.best("audio") is not None, stream is not None


# --- sound ------------------------------------------------------------------------------------------------------


def _read_audio(data: bytes, kind: str, max_seconds: float) -> tuple[np.ndarray, int] | None:
    """Returns the mono waveform at its own rate and that rate, or None without an audio stream."""
    decoded = None
    if kind not in _VIDEO_KINDS:
        with contextlib.suppress(soundfile.LibsndfileError):
            file = soundfile.SoundFile(io.BytesIO(data))
            decoded = file.samplerate, _soundfile_blocks(file, kind)
    if decoded is not None:
        rate, blocks = decoded
        return _mono(blocks, rate, max_seconds), rate
    with _open(data, kind) as container:
        stream = container.streams.best("audio")
        if stream is None:
            return None
        rate = stream.codec_context.sample_rate
        waveform = _mono(_libav_blocks(container, stream), rate, max_seconds)
        slack = max(0.1, 4 * (stream.codec_context.frame_size or 0) / rate)  # encoder delay and padding
        _check_duration(stream, len(waveform) / rate, slack)
        return waveform, rate


def _mono(blocks: Iterator[np.ndarray], rate: int, max_seconds: float) -> np.ndarray:
    """Averages the channels of blocks `[samples, channels]`, within limits."""
    if not 0 < rate <= MAX_SAMPLE_RATE:
        raise MediaError(f"sampling rate of {rate} Hz (at most {MAX_SAMPLE_RATE})")
    mono = []
    samples = 0
    for block in blocks:
        if block.shape[1] > MAX_CHANNELS:
            raise MediaError(f"{block.shape[1]} audio channels (at most {MAX_CHANNELS})")
        samples += len(block)
        if samples > max_seconds * rate:
            raise MediaError(f"longer than {max_seconds:g} s")
        mono.append(block.mean(axis=1, dtype=np.float32))
    if not samples:
        raise MediaError("has no audio samples")
    waveform = np.concatenate(mono)
    if not np.isfinite(waveform).all():
        raise MediaError("holds samples that are not finite")
    return waveform


def _soundfile_blocks(file: soundfile.SoundFile, kind: str) -> Iterator[np.ndarray]:
    samples = 0
    with file:
        while len(block := file.read(1 << 16, dtype="float32", always_2d=True)):
            samples += len(block)
            yield block
        # The length of an MP3 without a Xing header is only an estimate; `check_complete` has counted its frames.
        if samples < file.frames and kind != "mp3":
            raise MediaError(f"truncated {kind} file: {samples} of {file.frames} samples")


def _libav_blocks(container: av.container.InputContainer, stream: av.AudioStream) -> Iterator[np.ndarray]:
    to_float = av.AudioResampler(format="fltp")
    for frame in container.decode(stream):
        for converted in to_float.resample(frame):
            yield converted.to_ndarray().T


# --- video ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Timeline:
    """When each frame of a video starts, in seconds from the first one, and how long they last together."""

    starts: list[float]
    seconds: float

    @classmethod
    def of(cls, spans: list[tuple[float | None, float]], rate: float) -> _Timeline:
        """Builds it from (start, duration) pairs in order; a pair without timing follows from the frame rate."""
        if any(start is None for start, _ in spans):
            spans = [(i / rate, 1 / rate) for i in range(len(spans))]
        starts = [start - spans[0][0] for start, _ in spans]
        if any(later < earlier for earlier, later in itertools.pairwise(starts)):
            raise MediaError("corrupt: frames go back in time")
        last = spans[-1][1] or starts[-1] / max(1, len(starts) - 1) or 1 / rate
        return cls(starts, starts[-1] + last)


def _sample(timeline: _Timeline, max_frames: int, fps: float) -> list[int]:
    """Returns the indices of the frames to take."""
    total, seconds = len(timeline.starts), timeline.seconds
    count = min(max_frames, total)
    if fps > 0:
        even = count - count % TEMPORAL_PATCH_SIZE
        count = int(min(max(seconds * fps, MIN_FRAMES), even))
        count = max(count - count % TEMPORAL_PATCH_SIZE, 1)
    starts = np.array(timeline.starts)
    interval = seconds / total
    if np.abs(starts - interval * np.arange(total)).max() <= interval:
        return [i * total // count for i in range(count)]
    shown = np.searchsorted(starts, seconds / count * np.arange(count) + 1e-6, side="right") - 1
    return shown.tolist()


def _packet_timeline(data: bytes, kind: str) -> _Timeline:
    """Reads the timing of a video from its packets, without decoding any."""
    with _open_video(data, kind) as (container, stream):
        if stream is None:
            raise MediaError("has no video stream")
        spans = [
            (None if packet.pts is None else float(packet.pts * stream.time_base), _duration(packet, stream))
            for packet in container.demux(stream)
            if packet.size and not packet.is_discard
        ]
        if not spans:
            raise MediaError("has no video frames")
        spans.sort(key=lambda span: -1.0 if span[0] is None else span[0])
        return _Timeline.of(spans, _rate(stream))


def _read_video(
    data: bytes, kind: str, max_seconds: float, wanted: Collection[int]
) -> tuple[_Timeline, dict[int, np.ndarray]] | None:
    """Decodes all frames; returns their timing and the wanted ones as upright RGB, or None without a video stream."""
    with _open_video(data, kind) as (container, stream):
        if stream is None:
            return None
        spans: list[tuple[float | None, float]] = []
        pixels = {}
        keep = set(wanted)
        for i, frame in enumerate(container.decode(stream)):
            start = None if frame.pts is None else float(frame.pts * frame.time_base)
            if frame.is_corrupt:
                raise MediaError(f"corrupt or truncated: frame {i} is damaged")
            if frame.width * frame.height > MAX_PIXELS:
                raise MediaError(f"frames of {frame.width} x {frame.height} pixels (at most {MAX_PIXELS} pixels)")
            spans.append((start, _duration(frame, stream)))
            if i > max_seconds * MAX_FRAME_RATE or (start or 0) - (spans[0][0] or 0) > max_seconds:
                raise MediaError(f"longer than {max_seconds:g} s")
            if i in keep:
                pixels[i] = _upright(frame)
        if not spans:
            raise MediaError("has no video frames")
        timeline = _Timeline.of(spans, _rate(stream))
        if timeline.seconds > max_seconds:
            raise MediaError(f"longer than {max_seconds:g} s")
        _check_duration(stream, timeline.seconds, max(0.1, 2 / _rate(stream)))
        return timeline, pixels


def _duration(item: av.Packet | av.VideoFrame, stream: av.VideoStream) -> float:
    return float((item.duration or 0) * (item.time_base or stream.time_base))


def _rate(stream: av.VideoStream) -> float:
    return float(stream.average_rate or stream.guessed_rate or 25)


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """Converts a frame to RGB and applies its display matrix, as a phone writes it: quarter turns and mirroring."""
    pixels = frame.to_ndarray(format="rgb24", threads=1)
    side_data = frame.side_data.get(SideData.DISPLAYMATRIX)
    if side_data is None:
        return pixels
    # Row vectors: (x, y) shown = (x, y) stored @ [[a, b], [c, d]] (ISO 14496-12, 8.3.2).
    a, b, _, c, d = np.sign(np.frombuffer(bytes(side_data), dtype=np.int32)[:5])
    if not (b == c == 0 and a and d) and not (a == d == 0 and b and c):
        raise MediaError(f"rotated by {frame.rotation} degrees, which is not a quarter turn")
    if b:
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: int(d), :: int(a)])


# --- libav ------------------------------------------------------------------------------------------------------


def _refuse_reference(url: str, flags: int, options: dict) -> None:
    raise MediaError("refers to another file")


@contextlib.contextmanager
def _open(data: bytes, kind: str) -> Iterator[av.container.InputContainer]:
    """Opens a clip with the named demuxer only (probing could pick a playlist), without access to anything else."""
    with av.open(
        io.BytesIO(data),
        format=kind,
        metadata_errors="replace",
        io_open=_refuse_reference,
        container_options={"max_streams": "32"},
    ) as container:
        yield container


@contextlib.contextmanager
def _open_video(data: bytes, kind: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream | None]]:
    """Opens a clip and picks its video stream; a cover picture is none."""
    if kind not in _VIDEO_KINDS:
        yield None, None
        return
    with _open(data, kind) as container:
        moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        for stream in moving[:1]:
            context = stream.codec_context
            context.thread_count = 1  # readers run side by side already
            context.options = {"max_pixels": str(MAX_PIXELS)}
        yield container, moving[0] if moving else None


def _check_duration(stream: av.stream.Stream, seconds: float, slack: float) -> None:
    """Compares with the length of the stream that the header promises, if it does."""
    promised = _promised_seconds(stream)
    if promised is not None and promised - seconds > slack:
        raise MediaError(f"truncated or corrupt: {seconds:.2f} s of {stream.type} where {promised:.2f} s are promised")


def _promised_seconds(stream: av.stream.Stream) -> float | None:
    container = stream.container
    if "mp4" in container.format.name:
        return float(stream.duration * stream.time_base) if stream.duration else None
    # Matroska: multiplexers tag each track with its end. The segment's length guards against tags left from an edit.
    tag = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if tag is None or not container.duration:
        return None
    hours, minutes, seconds = map(float, tag.groups())
    return min(3600 * hours + 60 * minutes + seconds, container.duration / av.time_base)
