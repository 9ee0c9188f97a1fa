"""The clip's time line: sound and picture in step wherever their time stamps begin, and silence in gaps."""

import io
import struct

import av
import numpy as np
import pytest

from mecap_jax.data.media import MediaError, decode_audio, decode_video, probe
from tests.data.clips import CASES, audio_file, flash_and_beep, sound_file

RATE = 16_000


def loud(waveform, window=0.02):
    """Whether each window of a waveform is heard."""
    size = round(window * RATE)
    return np.abs(waveform[: len(waveform) // size * size].reshape(-1, size)).max(axis=1) > 0.005


STREAMS = {
    "mkv": {},
    "mkv-late-sound": dict(sound_from=0.6),
    "mkv-late-picture": dict(picture_from=0.6),
    "mkv-both-late": dict(sound_from=3.0, picture_from=3.2, event=4.0, end=5.0),
    "mkv-negative": dict(sound_from=-0.4, picture_from=-0.2, options={"avoid_negative_ts": "disabled"}),
    "mkv-gap": dict(gap=(0.3, 0.9)),
    "webm-late-sound": dict(container="webm", codec="libvpx", sound="libopus", rate=48_000, sound_from=0.6),
    "mp4-late-sound": dict(container="mp4", sound="aac", sound_from=0.6),
    "mp4-late-picture": dict(container="mp4", codec="libx264", sound="aac", picture_from=0.6),
    "mp4-both-late": dict(container="mp4", sound="aac", sound_from=3.0, picture_from=3.2, event=4.0, end=5.0),
    "mp4-gap": dict(container="mp4", sound="aac", gap=(0.3, 0.9)),
    "mp4-negative": dict(container="mp4", codec="libx264", sound="aac", sound_from=-0.4, picture_from=-0.2),
    "mp4-fragments": dict(
        container="mp4", sound="aac", sound_from=0.6, options={"movflags": "frag_keyframe+empty_moov"}
    ),
    "avi": dict(container="avi"),
    "avi-late-picture": dict(container="avi", picture_from=0.6),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_a_flash_is_seen_when_its_beep_is_heard(name):
    settings = STREAMS[name]
    clip = flash_and_beep(**settings)

    waveform, frames = decode_audio(clip), decode_video(clip, max_frames=1000, fps=0)

    beep = np.argmax(np.abs(waveform) > 0.2) / RATE
    bright = frames.pixels.mean(axis=(1, 2, 3)) > 128
    assert frames.timestamps[np.argmax(bright)] == pytest.approx(beep, abs=0.02)
    # The stamps of an mp4 are cut at 0; encoders of compressed sound put up to 0.1 s in front.
    begin = min(settings.get("sound_from", 0), settings.get("picture_from", 0))
    begin = max(begin, 0) if settings.get("container") == "mp4" else begin
    event = settings.get("event", 1.2) - begin
    assert event - 0.01 <= beep <= event + 0.1
    # Frames that are sampled evenly show what is seen at their times, the first one from the beginning on.
    assert bright.any() and not bright[0]
    times = np.arange(len(bright)) * frames.seconds_per_frame
    assert times[np.argmax(bright)] == pytest.approx(beep, abs=0.06)
    info = probe(clip)
    assert info.audio_seconds == pytest.approx(len(waveform) / RATE, abs=1e-3)
    assert info.video_seconds == pytest.approx(frames.seconds_per_frame * len(bright))
    if "gap" in settings:
        heard = loud(waveform)
        assert heard[5:14].all() and not heard[20:44].any() and heard[51:].all()


@pytest.mark.parametrize(
    "name, seconds", [("m01_two_id3.mp3", 1), ("m04_concat.mp3", 2), ("f03_unknown_length.flac", 1)]
)
def test_sound_as_users_have_it(name, seconds):
    waveform = decode_audio((CASES / name).read_bytes())
    assert len(waveform) == seconds * RATE
    assert loud(waveform).mean() > 0.95


@pytest.mark.parametrize(
    "name, silent, end",
    [("v01_audio_late.mkv", (0, 0.5), 1.5), ("v04_gap.mkv", (0.6, 1.4), 2), ("v30b_copy_cut.mkv", (0, 1.3), 4)],
)
def test_videos_as_users_have_them(name, silent, end):
    clip = (CASES / name).read_bytes()
    waveform = decode_audio(clip)
    assert len(waveform) / RATE == pytest.approx(end, abs=0.02)
    quiet = np.flatnonzero(~loud(waveform)) * 0.02
    assert quiet.min() == pytest.approx(silent[0], abs=0.04) and quiet.max() == pytest.approx(
        silent[1] - 0.02, abs=0.04
    )
    assert len(quiet) == pytest.approx((silent[1] - silent[0]) / 0.02, abs=3)
    assert decode_video(clip, 8, 0).timestamps[0] == 0


JOINED = {
    "wav": lambda: audio_file(),
    "flac": lambda: audio_file("FLAC"),
    "ogg-vorbis": lambda: audio_file("OGG", "VORBIS"),
    "ogg-opus": lambda: audio_file("OGG", "OPUS", rate=48_000),
    "mp3": lambda: audio_file("MP3", rate=44_100),
}


@pytest.mark.parametrize("name", JOINED)
def test_joined_files_are_heard_one_behind_the_other(name):
    clip = JOINED[name]()
    once, thrice = decode_audio(clip), decode_audio(clip + clip + clip)
    assert len(thrice) == pytest.approx(3 * len(once), abs=2)
    for begin in (0, 1, 2):
        part = thrice[begin * len(once) :][: len(once) - 2]
        np.testing.assert_allclose(part[800:-800], once[: len(part)][800:-800], atol=0.01)
    assert probe(clip + clip).audio_seconds == pytest.approx(2 * probe(clip).audio_seconds, abs=1e-3)
    with pytest.raises(MediaError, match="longer than 2.5 s"):
        decode_audio(clip + clip + clip, max_seconds=2.5)


def test_a_wav_whose_sizes_a_pipe_left_at_zero():
    clip = bytearray(audio_file())
    at = clip.index(b"data") + 4
    clip[4:8] = clip[at : at + 4] = bytes(4)
    np.testing.assert_array_equal(decode_audio(bytes(clip)), decode_audio(audio_file()))
    with pytest.raises(MediaError):
        decode_audio(bytes(clip[: at + 4]))


def test_a_flac_with_a_damaged_block_is_refused_though_its_header_is_whole():
    clip = bytearray(audio_file("FLAC"))
    clip[len(clip) // 2] ^= 16
    with pytest.raises(MediaError):
        decode_audio(bytes(clip))


def test_digital_silence_is_no_voice():
    silence = audio_file()[:44] + bytes(32_000)
    with pytest.raises(MediaError, match="nothing but silence"):
        decode_audio(silence)


@pytest.mark.parametrize("track", [0, 1])
@pytest.mark.parametrize("factor", [0.05, 0.5, 2, 20])
@pytest.mark.parametrize("options", [{}, {"use_editlist": "0"}])
def test_an_mp4_header_that_lies_about_time(track, factor, options):
    """The time scale of one track is changed, which makes it as much longer or shorter."""
    clip = bytearray(flash_and_beep("mp4", sound="aac", options=options))
    at = [i for i in range(len(clip)) if clip[i : i + 4] == b"mdhd"][track] + 16
    struct.pack_into(">I", clip, at, round(struct.unpack_from(">I", clip, at)[0] * factor))
    for decode in (decode_audio, probe, lambda data: decode_video(data, 4, 0)):
        with pytest.raises(MediaError):
            decode(bytes(clip))


def test_a_short_sound_under_a_long_picture_is_refused_but_not_under_a_still():
    with pytest.raises(MediaError, match="0.40 s of sound and 4.00 s of pictures do not agree"):
        decode_audio(flash_and_beep(gap=(0.4, 4.0), end=4.0))
    still = flash_and_beep(picture_from=3.96, end=4.0)
    assert probe(still).frames == 1 and probe(still).audio_seconds == 4


def test_codecs_that_are_not_listed_are_refused_by_name():
    with pytest.raises(MediaError, match="unsupported audio codec: tta"):
        decode_audio(sound_file("matroska", "tta"))
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as output:
        stream = output.add_stream("ffvhuff", rate=25, width=64, height=48, pix_fmt="yuv420p")
        output.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        output.mux(stream.encode())
    for decode in (probe, lambda data: decode_video(data, 1, 0)):
        with pytest.raises(MediaError, match="unsupported video codec: ffvhuff"):
            decode(file.getvalue())
