"""Writes a clip as an mp4 file: H.264 video with its AAC sound track, byte for byte the same for the same input."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np

# Bit-exact containers carry no version or date. x264 works in one thread and without lookahead: with B-frames and
# macroblock trees its decisions were seen to vary between runs on the same input.
_CONTAINER_OPTIONS = {"fflags": "+bitexact"}
_VIDEO_OPTIONS = {
    "preset": "veryfast",
    "crf": "23",
    "x264-params": "threads=1:lookahead-threads=1:rc-lookahead=0:mbtree=0:bframes=0:scenecut=0",
}


def encode(frames: np.ndarray, frame_rate: int, waveform: np.ndarray, sample_rate: int) -> bytes:
    """Returns an mp4 file with H.264 video and mono AAC sound.

    Args:
      frames: uint8 `[frames, height, width, 3]`, RGB, even height and width.
      frame_rate: frames a second.
      waveform: float32 `[samples]` in [-1, 1].
      sample_rate: one that AAC knows (22,050 Hz is).
    """
    file = io.BytesIO()
    with av.open(file, "w", format="mp4", container_options=_CONTAINER_OPTIONS) as container:
        video = container.add_stream("libx264", rate=frame_rate, options=_VIDEO_OPTIONS)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.thread_count = 1
        sound = container.add_stream("aac", rate=sample_rate, layout="mono")
        sound.bit_rate = 48_000
        for image in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())
        samples = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform, np.float32)[None], "fltp", "mono")
        samples.sample_rate, samples.time_base, samples.pts = sample_rate, Fraction(1, sample_rate), 0
        container.mux(sound.encode(samples))
        container.mux(sound.encode())
    return file.getvalue()
