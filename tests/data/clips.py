"""Encoded clips made on the spot: tones as audio files, moving patterns as video files."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from mecap_jax.data.manifest import ClipRecord

CASES = Path(__file__).parent / "cases"
SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"real data not found at {SHARED}")


def tone(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """A 440 Hz tone, float32 `[samples, channels]`; each further channel is quieter by half."""
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.4 * np.sin(2 * np.pi * 440 * time)
    return (wave[:, None] * 0.5 ** np.arange(channels)).astype(np.float32)


def audio_file(
    container: str = "WAV", subtype: str | None = None, seconds: float = 1.0, rate: int = 16_000, channels: int = 1
) -> bytes:
    """A tone as wav, wavex (WAVE_EXTENSIBLE), flac, ogg or mp3, written by libsndfile."""
    file = io.BytesIO()
    soundfile.write(file, tone(seconds, rate, channels), rate, format=container, subtype=subtype)
    return file.getvalue()


def sound_file(container: str, codec: str, rate: int = 16_000, seconds: float = 1.0) -> bytes:
    """A tone written by libav."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        samples = av.AudioFrame.from_ndarray(tone(seconds, rate).T.copy(), format="fltp", layout="mono")
        samples.rate = rate
        output.mux(stream.encode(samples))
        output.mux(stream.encode())
    return file.getvalue()


def pattern(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frame `index` of the test video: its grey level tells the index, and only its top left quarter is red."""
    frame = np.full((height, width, 3), 40 + 6 * (index % 30), dtype=np.uint8)
    frame[: height // 2, : width // 2] = (220, 30, 30)
    return frame


def frame_index(frame: np.ndarray) -> int:
    """Reads the index back from a decoded frame."""
    height, width, _ = frame.shape
    return round((float(frame[height * 5 // 8 :, width * 5 // 8 :].mean()) - 40) / 6)


def video_file(
    container: str = "mp4",
    codec: str = "libx264",
    frames: int = 25,
    fps: float | Fraction = 25,
    sound: str | None = "aac",
    sound_rate: int = 48_000,
    rotation: int = 0,
    starts: list[float] | None = None,
    size: tuple[int, int] = (48, 64),
) -> bytes:
    """A moving pattern with a tone; `starts` gives frames their own times in seconds (a variable frame rate)."""
    fps = Fraction(fps).limit_denominator(1001)
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        video = output.add_stream(codec, rate=fps)
        video.height, video.width = size
        video.pix_fmt = "yuv420p"
        video.codec_context.options = {"libx264": {"crf": "5", "g": "12"}, "mpeg4": {"g": "1"}}.get(codec, {})
        video.bit_rate = 2_000_000
        if rotation:
            video.set_display_rotation(rotation)
        if starts is not None:
            video.codec_context.time_base = Fraction(1, 1000)
        audio = output.add_stream(sound, rate=sound_rate, layout="mono") if sound else None
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(pattern(i, *size), format="rgb24")
            if starts is not None:
                frame.time_base, frame.pts = Fraction(1, 1000), round(1000 * starts[i])
            output.mux(video.encode(frame))
        output.mux(video.encode())
        if audio is not None:
            seconds = float(frames / fps) if starts is None else starts[-1] + float(1 / fps)
            samples = av.AudioFrame.from_ndarray(tone(seconds, sound_rate).T.copy(), format="fltp", layout="mono")
            samples.rate = sound_rate
            output.mux(audio.encode(samples))
            output.mux(audio.encode())
    return file.getvalue()


def changing_video(*sizes: tuple[int, int], frames: int, fps: int = 25) -> bytes:
    """A webm of the moving pattern whose height and width change midway, in equal parts."""
    file, part = io.BytesIO(), frames // len(sizes)
    with av.open(file, "w", format="webm") as output:
        height, width = sizes[0]
        stream = output.add_stream("libvpx", rate=fps, height=height, width=width, pix_fmt="yuv420p")
        for number, (height, width) in enumerate(sizes):
            encoder = av.CodecContext.create("libvpx", "w")
            encoder.height, encoder.width, encoder.pix_fmt = height, width, "yuv420p"
            encoder.framerate, encoder.time_base, encoder.bit_rate = fps, Fraction(1, fps), 2_000_000
            encoder.options = {"lag-in-frames": "0", "auto-alt-ref": "0", "crf": "4"}
            packets = []
            for i in range(number * part, (number + 1) * part):
                frame = av.VideoFrame.from_ndarray(pattern(i, height, width), format="rgb24")
                frame.time_base, frame.pts = Fraction(1, fps), i
                packets += encoder.encode(frame)
            for packet in (*packets, *encoder.encode()):
                packet.stream = stream
                output.mux(packet)
    return file.getvalue()


def flash_and_beep(
    container: str = "matroska",
    codec: str = "mpeg4",
    sound: str = "pcm_s16le",
    *,
    sound_from: float = 0.0,
    picture_from: float = 0.0,
    event: float = 1.2,
    end: float = 2.0,
    gap: tuple[float, float] | None = None,
    rate: int = 16_000,
    options: dict[str, str] | None = None,
) -> bytes:
    """A video whose picture turns bright and whose tone turns loud at the same time stamp, `event`.

    Args:
      sound_from, picture_from: time stamp in seconds at which each begins.
      gap: no sound is written between these time stamps.
      options: of the multiplexer.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options or {}) as output:
        video = output.add_stream(codec, rate=25, width=64, height=48, pix_fmt="yuv420p")
        video.bit_rate = 2_000_000
        audio = output.add_stream(sound, rate=rate, layout="mono")
        audio.codec_context.time_base = Fraction(1, rate)
        for i in range(round(picture_from * 25), round(end * 25)):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 220 if i >= event * 25 else 30, np.uint8))
            picture.pts, picture.time_base = i, Fraction(1, 25)
            output.mux(video.encode(picture))
        output.mux(video.encode())
        step = audio.codec_context.frame_size or rate // 50
        for start in range(round(sound_from * rate), round(end * rate), step):
            time = np.arange(start, start + step) / rate
            if gap is not None and gap[0] <= time[0] < gap[1]:
                continue
            wave = np.where(time < event, 0.02, 0.5) * np.sin(2 * np.pi * 440 * time)
            samples = av.AudioFrame.from_ndarray((32767 * wave)[None].astype(np.int16), format="s16", layout="mono")
            samples.rate, samples.pts, samples.time_base = rate, start, Fraction(1, rate)
            for packet in audio.encode(samples):
                output.mux(packet)
        output.mux(audio.encode())
    return file.getvalue()


def record(name, **changes):
    """What the index knows of a clip with sound and pictures."""
    fields = dict(
        id=name, dataset="test", split="train", shard="s", position=0, speaker="a", dialogue=None, language="en",
        labels={}, valence=None, attributes={}, transcript="Hello.", captions={}, rationale=None, features={},
        has_audio=True, has_video=True, seconds=2.0, video_seconds=2.0, frames=50, width=64, height=64,
    )  # fmt: skip
    return ClipRecord(**fields | changes)
