"""Damaged clips: refused in words, or decoded to something; never a crash, a hang, or silence in place of sound."""

import functools
import resource
import time

import numpy as np

from mecap_jax.data.media import MediaError, decode_audio, decode_video, probe, streams
from tests.data.clips import audio_file, sound_file, video_file
from tests.fuzz import mutants

SECONDS = 5.0  # of processor time, for one file
MEMORY = 2 << 30


@functools.cache
def originals() -> dict[str, bytes]:
    """Small clips with sound, one of each kind."""
    film = dict(frames=8, sound_rate=16_000, size=(32, 32))
    return {
        "wav": audio_file(seconds=0.2),
        "wav-float": audio_file("WAVEX", "FLOAT", seconds=0.1, channels=2),
        "flac": audio_file("FLAC", seconds=0.3),
        "vorbis": audio_file("OGG", "VORBIS", seconds=0.3),
        "opus": audio_file("OGG", "OPUS", seconds=0.3, rate=48_000),
        "mp3": audio_file("MP3", seconds=0.3),
        "aac": sound_file("adts", "aac", seconds=0.3),
        "mp4": video_file("mp4", **film),
        "m4a": sound_file("ipod", "aac", seconds=0.3),
        "mkv": video_file("matroska", "mpeg4", **film),
        "webm": video_file("webm", "libvpx", **(film | dict(sound="libopus", sound_rate=48_000))),
        "avi": video_file("avi", "mpeg4", **(film | dict(sound="libmp3lame"))),
    }


def peak_memory() -> int:
    """Of this process since it began, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def examine(clip: bytes) -> bool:
    """Decodes a damaged clip in every way; whether any of them gave something.

    Raises:
      AssertionError: what must not happen did.
    """
    begin, before, decoded = time.process_time(), peak_memory(), False
    for decode in (streams, probe, decode_audio, lambda data: decode_video(data, 4, 2.0)):
        try:
            result = decode(clip)
        except MediaError as error:
            assert str(error) and "\n" not in str(error)
            continue
        decoded = decoded or decode is not streams
        if decode is decode_audio:
            assert result.dtype == np.float32 and np.isfinite(result).all() and result.any(), "silence, not sound"
    spent = time.process_time() - begin
    assert spent < SECONDS, f"{spent:.1f} s"
    assert peak_memory() < before + MEMORY
    return decoded


def test_damaged_clips():
    assert all(map(examine, originals().values()))
    outcomes = [examine(clip) for _, clip in mutants(originals(), 720, seed=0)]
    assert 0.1 < np.mean(outcomes) < 0.9
