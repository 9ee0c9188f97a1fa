"""Decoding: every supported format comes out as it went in, everything else as one clear error."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import io
import struct
from fractions import Fraction

import numpy as np
import pytest
import soundfile
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.video_utils import VideoMetadata

from mecap_jax.data.media import MediaError, decode_audio, decode_stretches, decode_video, probe, streams

from mecap_jax.data.pictures import Timeline, sample
from tests.data.clips import (
    SHARED,
    audio_file,
    changing_video,
    frame_index,
    needs_shared_data,
    sound_file,
    tone,
    video_file,
)

AUDIO = {
    "wav-8": ("WAV", "PCM_U8", 16_000, 1, 0.03),
    "wav-16": ("WAV", "PCM_16", 44_100, 2, 2e-3),
    "wav-24": ("WAV", "PCM_24", 48_000, 2, 2e-3),
    "wav-32": ("WAV", "PCM_32", 8_000, 1, 2e-3),
    "wav-float": ("WAV", "FLOAT", 22_050, 1, 2e-3),
    "wav-double": ("WAV", "DOUBLE", 11_025, 2, 2e-3),
    "wav-extensible": ("WAVEX", "PCM_16", 48_000, 6, 2e-3),
    "wav-extensible-24": ("WAVEX", "PCM_24", 16_000, 1, 2e-3),
    "flac": ("FLAC", "PCM_16", 16_000, 1, 2e-3),
    "flac-24": ("FLAC", "PCM_24", 44_100, 2, 2e-3),
    "ogg-vorbis": ("OGG", "VORBIS", 32_000, 2, 0.05),
    "ogg-opus": ("OGG", "OPUS", 48_000, 1, 0.05),
    "mp3": ("MP3", None, 44_100, 2, 0.05),
    "mp3-16k": ("MP3", None, 16_000, 1, 0.05),
}


def relative_error(waveform: np.ndarray, rate: int, channels: int = 1) -> float:
    """How far a decoded waveform is from the tone, away from its edges, at the best alignment within 3 ms."""
    expected = tone(2.0, rate, channels).mean(axis=1)
    inner = waveform[3 * rate // 8 : 7 * rate // 8]
    offsets = range(3 * rate // 8 - rate * 3 // 1000, 3 * rate // 8 + rate * 3 // 1000 + 1)
    errors = [np.abs(inner - expected[offset : offset + len(inner)]).max() for offset in offsets]
    return min(errors) / expected.max()


@pytest.mark.parametrize("name", AUDIO)
def test_audio_files_decode_to_the_mean_of_their_channels_at_16_khz(name):
    container, subtype, rate, channels, tolerance = AUDIO[name]
    clip = audio_file(container, subtype, rate=rate, channels=channels)

    waveform = decode_audio(clip)

    assert waveform.dtype == np.float32
    assert abs(len(waveform) - 16_000) <= (
        160 if name in ("ogg-vorbis", "mp3", "mp3-16k") else 1
    )  # one of the codec's blocks
    assert relative_error(waveform, 16_000, channels) < tolerance
    info = probe(clip)
    assert info.audio_seconds == pytest.approx(1.0, abs=0.01)
    assert info.video_seconds is None and info.frames is None


@pytest.mark.parametrize(
    "container, codec, sound, rate",
    [
        ("mp4", "libx264", "aac", 44_100),
        ("mp4", "mpeg4", "aac", 16_000),
        ("mov", "libx264", "pcm_s16le", 8_000),
        ("matroska", "libx264", "aac", 48_000),
        ("matroska", "mpeg4", "libmp3lame", 22_050),
        ("webm", "libvpx", "libopus", 48_000),
        ("webm", "libvpx-vp9", "libopus", 24_000),
        ("avi", "mpeg4", "libmp3lame", 44_100),
        ("avi", "mpeg4", "pcm_s16le", 16_000),
    ],
)
def test_videos_decode_with_their_sound(container, codec, sound, rate):
    clip = video_file(container, codec, sound=sound, sound_rate=rate)

    info = probe(clip)
    assert (info.width, info.height, info.frames) == (64, 48, 25)
    assert info.video_seconds == pytest.approx(1.0, abs=2e-3)
    assert info.fps == pytest.approx(25, rel=2e-3)
    assert info.audio_seconds == pytest.approx(1.0, abs=0.1)  # encoders pad to whole frames
    assert relative_error(decode_audio(clip), 16_000) < 0.08

    frames = decode_video(clip, max_frames=25, fps=0)
    assert frames.pixels.shape == (25, 48, 64, 3) and frames.pixels.dtype == np.uint8
    assert [frame_index(frame) for frame in frames.pixels] == list(range(25))
    np.testing.assert_allclose(frames.timestamps, np.arange(25) / 25, atol=1.1e-3)
    red = frames.pixels[:, 6:18, 8:24].astype(int).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(red, (220, 30, 30), atol=12)  # 4:2:0 and the codec leave a little


@pytest.mark.parametrize("fps", [Fraction(30_000, 1001), Fraction(25, 2), Fraction(24), Fraction(60)])
@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_odd_frame_rates_keep_their_time(fps, container):
    clip = video_file(container, frames=40, fps=fps, sound=None)

    info = probe(clip)
    assert info.frames == 40 and info.audio_seconds is None
    assert info.fps == pytest.approx(float(fps), rel=2e-3)

    frames = decode_video(clip, max_frames=8, fps=0)
    expected = [i * 40 // 8 for i in range(8)]
    assert [frame_index(frame) for frame in frames.pixels] == [i % 30 for i in expected]
    np.testing.assert_allclose(frames.timestamps, np.array(expected) / float(fps), atol=1.1e-3)
    assert frames.seconds_per_frame == pytest.approx(40 / float(fps) / 8, rel=2e-3)


def test_frames_are_sampled_as_by_the_video_processor_of_transformers():
    video_processor = Qwen2VLVideoProcessor()
    for total in (4, 5, 16, 25, 30, 74, 75, 98, 120, 301):
        for rate in (25.0, 30_000 / 1001, 12.5):
            for fps, max_frames in ((2.0, 768), (2.0, 16), (1.0, 16), (5.0, 31)):
                metadata = VideoMetadata(total_num_frames=total, fps=rate, duration=total / rate)
                theirs = video_processor.sample_frames(metadata, fps=fps, max_frames=max_frames, num_frames=None)
                timeline = Timeline([i / rate for i in range(total)], total / rate)
                ours = sample(timeline, max_frames, fps)
                # Their arange in floating point sometimes ends with one index too many, the number of frames.
                assert ours == [i for i in theirs.tolist() if i < total], (total, rate, fps, max_frames)


def test_a_variable_frame_rate_is_sampled_evenly_in_time():
    # Twenty frames in the first half second, then five that are shown for a tenth of a second each.
    starts = [0.025 * i for i in range(20)] + [0.5 + 0.1 * i for i in range(5)]
    clip = video_file("matroska", frames=25, fps=40, starts=starts, sound=None)

    frames = decode_video(clip, max_frames=4, fps=0)

    shown = [frame_index(frame) for frame in frames.pixels]
    times = np.arange(4) * frames.seconds_per_frame
    assert shown == [max(i for i, start in enumerate(starts) if start <= t + 1e-3) for t in times]
    np.testing.assert_allclose(frames.timestamps, [starts[i] for i in shown], atol=1.1e-3)


def test_short_videos_give_what_they_have():
    assert decode_video(video_file(frames=1, sound=None), max_frames=16, fps=2.0).pixels.shape[0] == 1
    assert decode_video(video_file(frames=3, sound=None), max_frames=16, fps=2.0).pixels.shape[0] == 2
    assert decode_video(video_file(frames=3, sound=None), max_frames=16, fps=0).pixels.shape[0] == 3


@pytest.mark.parametrize("rotation, corner", [(90, (-1, 0)), (180, (-1, -1)), (-90, (0, -1))])
def test_rotated_phone_videos_come_out_upright(rotation, corner):
    """The red quarter is top left as stored; a rotation is counterclockwise, in degrees."""
    clip = video_file(rotation=rotation, sound=None)

    frame = decode_video(clip, max_frames=1, fps=0).pixels[0].astype(int)

    height, width = (64, 48) if abs(rotation) == 90 else (48, 64)
    assert frame.shape == (height, width, 3)
    assert (probe(clip).height, probe(clip).width) == (height, width)
    redness = frame[..., 0] - frame[..., 1]
    quarters = {
        (row, column): redness[:: 1 if row == 0 else -1, :: 1 if column == 0 else -1][
            : height // 3, : width // 3
        ].mean()
        for row in (0, -1)
        for column in (0, -1)
    }
    assert max(quarters, key=quarters.get) == corner
    assert quarters[corner] > 150 and sorted(quarters.values())[-2] < 20


def test_a_picture_whose_size_changes_midway_keeps_its_proportions():
    """As in recorded calls: the second half is twice as large and wider, so black stays above and below it."""
    clip = changing_video((48, 64), (96, 192), frames=12)
    frames = decode_video(clip, 12, 0.0).pixels
    assert frames.shape == (12, 48, 64, 3)
    assert [frame_index(frame) for frame in frames[:6]] == list(range(6))
    for number, frame in enumerate(frames[6:], start=6):
        assert frame[:7].max() < 30 and frame[-7:].max() < 30  # 64 of 192 columns: a third of the size, 32 rows high
        assert frame_index(frame[8:40]) == number


def test_mirrored_and_skewed_display_matrices():
    clip = video_file(rotation=180, sound=None)
    at = clip.index(b"tkhd") + 44  # the track's matrix (ISO 14496-12, 8.3.2)

    def with_matrix(a, b, c, d):
        matrix = struct.pack(">5i", 65_536 * a, 65_536 * b, 0, 65_536 * c, 65_536 * d)
        return clip[:at] + matrix + clip[at + len(matrix) :]

    upright = decode_video(with_matrix(1, 0, 0, 1), 1, 0).pixels[0]
    mirrored = decode_video(with_matrix(-1, 0, 0, 1), 1, 0).pixels[0]
    np.testing.assert_array_equal(mirrored, upright[:, ::-1])
    with pytest.raises(MediaError, match="not a quarter turn"):
        decode_video(with_matrix(1, 1, -1, 1), 1, 0)


CLIPS = {
    "wav": lambda: audio_file(),
    "wav-extensible": lambda: audio_file("WAVEX", channels=2),
    "flac": lambda: audio_file("FLAC"),
    "ogg-vorbis": lambda: audio_file("OGG", "VORBIS"),
    "ogg-opus": lambda: audio_file("OGG", "OPUS", rate=48_000),
    "mp3": lambda: audio_file("MP3"),
    "mp4": lambda: video_file(),
    "mkv": lambda: video_file("matroska"),
    "webm": lambda: video_file("webm", "libvpx", sound="libopus"),
    "avi": lambda: video_file("avi", "mpeg4", sound="libmp3lame"),
    "aac": lambda: sound_file("adts", "aac"),
}


@pytest.mark.parametrize("name", CLIPS)
def test_truncated_clips_are_refused_wherever_they_are_cut(name):
    clip = CLIPS[name]()
    probe(clip)
    for share in (0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97):
        cut = clip[: int(share * len(clip))]
        with pytest.raises(MediaError) as error:
            probe(cut)
        assert "\n" not in str(error.value) and str(error.value) and "Errno" not in str(error.value)
        with pytest.raises(MediaError):
            decode_audio(cut)


def test_a_cut_flac_file_says_how_much_of_it_there_is():
    """Only its decoder notices, whose own words are a number."""
    clip = audio_file("FLAC", seconds=3.0)
    with pytest.raises(MediaError) as error:
        decode_audio(clip[: len(clip) // 2])
    said = str(error.value)
    assert said == "truncated or corrupt flac file: its sound cannot be decoded beyond 1.28 s of 3.00 s"


def test_damaged_clips_never_raise_anything_but_media_errors():
    """Random bytes are overwritten; what is still accepted must decode to something well-formed."""
    random = np.random.default_rng(0)
    accepted = refused = 0
    for make in CLIPS.values():
        clip = make()
        for _ in range(12):
            damaged = bytearray(clip)
            for at in random.integers(len(clip), size=random.integers(1, 20)):
                damaged[at] = random.integers(256)
            try:
                info = probe(bytes(damaged), max_seconds=60)
                if info.frames:
                    frames = decode_video(bytes(damaged), 4, 0)
                    assert frames.pixels.ndim == 4 and len(frames.pixels) == len(frames.timestamps)
                accepted += 1
            except MediaError as error:
                assert "\n" not in str(error) and "Errno" not in str(error)
                refused += 1
    assert accepted and refused


def test_a_header_that_promises_more_than_there_is():
    clip = audio_file(seconds=1.0)
    at = clip.index(b"data") + 4
    longer = clip[:at] + struct.pack("<I", 64_000) + clip[at + 4 :]
    with pytest.raises(MediaError, match="truncated or corrupt wav file: 32000 of 64000 bytes"):
        decode_audio(longer)

    # A writer that could not seek back leaves the largest size there: that is no promise.
    streamed = clip[:4] + b"\xff" * 4 + clip[8:at] + b"\xff" * 4 + clip[at + 4 :]
    assert len(decode_audio(streamed)) == 16_000


@pytest.mark.parametrize(
    "clip, reason",
    [
        (b"", "empty file"),
        (b"Hello, this is not a wave file at all.\n" * 50, "not a media file"),
        ("Nor is this a song.".encode("utf-16"), "not a media file|cannot be decoded"),
        (bytes(5000), "not a media file"),
        (audio_file(seconds=0), "no audio samples"),
        (audio_file("AIFF"), "unsupported container: an AIFF file"),
        (b"RIFF" + struct.pack("<I", 1000) + b"WEBPVP8 " + bytes(1000), "unsupported container: RIFF of type b'WEBP'"),
        (b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n", "unsupported container: an HLS playlist"),
        (b"ffconcat version 1.0\nfile '/etc/passwd'\n", "unsupported container: a concat playlist"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "unsupported container: a PNG image"),
    ],
)  # fmt: skip
def test_what_is_no_clip_is_refused_with_its_reason(clip, reason):
    for decode in (probe, decode_audio, lambda data: decode_video(data, 4, 0)):
        with pytest.raises(MediaError, match=reason if decode is probe else None):
            decode(clip)


def test_streams_are_known_without_decoding():
    assert streams(audio_file()) == streams(audio_file("MP3")) == (True, None)
    assert streams(video_file()) == (True, pytest.approx(1.0))
    assert streams(video_file("matroska", sound=None)) == (False, pytest.approx(1.0))
    for hostile in (b"", b"<?xml", video_file()[:20]):
        with pytest.raises(MediaError):
            streams(hostile)


def test_stretches_of_a_video_are_sampled_as_if_they_were_whole():
    clip = video_file(frames=25, fps=10)
    first, middle, last, behind = decode_stretches(clip, [(0, 1), (0.95, 2.05), (2.2, 9), (2.5, 3)], 5, 0)
    assert [frame_index(frame) for frame in first.pixels] == [0, 2, 4, 6, 8]
    np.testing.assert_allclose(first.timestamps, [0, 0.2, 0.4, 0.6, 0.8], atol=1e-3)
    assert first.seconds_per_frame == pytest.approx(0.2)
    assert [frame_index(frame) for frame in middle.pixels] == [9, 11, 13, 16, 18]
    assert middle.seconds_per_frame == pytest.approx(1.1 / 5)
    assert [frame_index(frame) for frame in last.pixels] == [22, 23, 24]
    assert last.seconds_per_frame == pytest.approx(0.1, abs=1e-3) and behind is None
    (whole,) = decode_stretches(clip, [(0, 99)], 16, 2.0)
    np.testing.assert_array_equal(whole.pixels, decode_video(clip, 16, 2.0).pixels)


def test_content_decides_not_the_name():
    with pytest.raises(MediaError, match="no video stream"):
        decode_video(audio_file(), max_frames=4, fps=0)
    with pytest.raises(MediaError, match="no audio stream"):
        decode_audio(video_file(sound=None))


def test_limits_stop_hostile_clips():
    with pytest.raises(MediaError, match="longer than 0.5 s"):
        decode_audio(audio_file("FLAC"), max_seconds=0.5)
    with pytest.raises(MediaError, match="longer than 0.5 s"):
        probe(video_file(sound=None), max_seconds=0.5)
    with pytest.raises(MediaError, match="audio channels"):
        decode_audio(audio_file(channels=12))
    with pytest.raises(MediaError, match="sampling rate"):
        decode_audio(audio_file(rate=400_000, seconds=0.1))
    huge = video_file(frames=1, size=(2320, 4096), sound=None)
    for decode in (probe, lambda data: decode_video(data, 1, 0)):
        with pytest.raises(MediaError):
            decode(huge)
    with pytest.raises(MediaError, match="its pictures take more than 512 MB as the model is to see them"):
        decode_video(video_file(frames=8), 8, 0, shrink=lambda frame: np.zeros((8192, 8192, 3), np.uint8))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_samples_that_are_not_finite_or_do_not_stay_so_are_refused(value):
    file = io.BytesIO()
    samples = np.array([0.1, value, 0.2] * 1000, np.float32)
    soundfile.write(file, samples, 44_100, format="WAV", subtype="FLOAT")
    with pytest.raises(MediaError, match="not finite"):
        decode_audio(file.getvalue())


@needs_shared_data
def test_real_videos():
    for name, frames, size in (
        ("01-01-01-01-01-01-01.mp4", 98, (640, 360)),
        ("01-01-07-02-02-01-01.mp4", 120, (480, 360)),
    ):
        clip = (SHARED / "video" / name).read_bytes()
        info = probe(clip)
        assert (info.frames, (info.width, info.height)) == (frames, size)
        assert info.fps == pytest.approx(29.97, abs=0.01)
        assert info.audio_seconds == pytest.approx(info.video_seconds, abs=0.1)
        sampled = decode_video(clip, max_frames=16, fps=2.0)
        assert len(sampled.pixels) == int(info.video_seconds * 2) // 2 * 2
        # One actor before a still camera: a picture, and much the same one in every frame.
        assert sampled.pixels.std() > 30
        assert np.abs(np.diff(sampled.pixels.astype(int), axis=0)).mean() < 10


@needs_shared_data
def test_the_sound_track_of_a_real_video_is_the_real_voice():
    voice = decode_audio((SHARED / "audio/ravdess/03-01-01-01-01-01-01.flac").read_bytes())
    track = decode_audio((SHARED / "video/01-01-01-01-01-01-01.mp4").read_bytes())
    assert voice.shape == (52_853,) and voice.dtype == np.float32
    spectra = np.fft.rfft(voice, 1 << 17), np.fft.rfft(track, 1 << 17)
    correlation = np.fft.irfft(spectra[0] * spectra[1].conj())
    assert np.abs(correlation).max() > 0.9 * np.linalg.norm(voice) * np.linalg.norm(track)


@needs_shared_data
def test_real_voices_decode_at_their_stated_length():
    for path in sorted((SHARED / "audio/emodb").glob("*.flac"))[:10]:
        clip = path.read_bytes()
        assert len(decode_audio(clip)) == round(probe(clip).audio_seconds * 16_000)
