"""Containers: recognised by content, and known to be complete or not without decoding."""

import struct

import pytest

from mecap_jax.data.containers import KINDS, MediaError, check_complete, identify, parts
from tests.data.clips import audio_file, sound_file, video_file

CLIPS = {
    "wav": lambda: audio_file("WAV"),
    "flac": lambda: audio_file("FLAC"),
    "ogg": lambda: audio_file("OGG", "VORBIS"),
    "mp3": lambda: audio_file("MP3"),
    "mov": lambda: video_file("mp4"),
    "matroska": lambda: video_file("matroska"),
    "aac": lambda: sound_file("adts", "aac"),
    "avi": lambda: video_file("avi", "mpeg4", sound="libmp3lame"),
}


def test_every_kind_is_recognised_and_complete():
    assert set(CLIPS) == set(KINDS)
    for kind, make in CLIPS.items():
        assert identify(make()) == kind
        check_complete(make(), kind)
    for container, codec in (("mov", "libx264"), ("webm", "libvpx")):
        clip = video_file(container, codec, sound=None)
        check_complete(clip, identify(clip))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "flac"])  # FLAC counts samples, not bytes
def test_a_missing_tail_is_noticed_from_the_bytes_alone(kind):
    clip = CLIPS[kind]()
    for share in (0.3, 0.6, 0.9):
        cut = clip[: int(share * len(clip))]
        with pytest.raises(MediaError, match=f"truncated or corrupt {kind} file: "):
            check_complete(cut, kind)


def test_what_follows_a_file_does_not_make_it_incomplete():
    for kind, tail in (("mov", b"\0" * 64), ("mov", b"some text behind the last box"), ("mp3", b"TAG" + bytes(125))):
        clip = CLIPS[kind]() + tail
        assert identify(clip) == kind
        check_complete(clip, kind)


TAG = b"ID3\x04\x00\x00" + bytes((0, 0, 2, 0)) + bytes(256)  # a synchsafe size: 2 * 128


@pytest.mark.parametrize("kind", KINDS)
def test_tags_and_zeros_in_front_of_a_file(kind):
    clip = CLIPS[kind]()
    for front in (TAG, TAG + TAG, bytes(1000), TAG + bytes(7) + TAG):
        assert identify(front + clip) == kind
        assert parts(front + clip) == (kind, [clip])
    with pytest.raises(MediaError, match="not a media file"):
        identify(TAG)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
def test_files_of_sound_that_were_joined_are_known_apart(kind):
    clip = CLIPS[kind]()
    assert parts(clip + clip + clip) == (kind, [clip] * 3)
    if kind != "flac":  # counts samples, not bytes
        with pytest.raises(MediaError):
            parts(clip + clip[: len(clip) // 2])


def test_tags_between_and_behind_joined_mp3_files():
    clip = CLIPS["mp3"]()
    kind, (first, second) = parts(clip + TAG + clip + b"TAG" + bytes(125))
    assert kind == "mp3" and first.startswith(clip) and second.startswith(clip)
    with pytest.raises(MediaError, match="is no frame, but frames follow"):
        parts(clip + b"some noise between" + clip)


@pytest.mark.parametrize(
    "data, name",
    [
        ((b"G" + bytes(187)) * 5, "MPEG-TS"),
        ((bytes(4) + b"G" + bytes(187)) * 5, "MPEG-TS"),
        (b"RIFX" + bytes(4) + b"WAVE", "RIFX"),
        (b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb" + bytes(100), "W64"),
        (bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"), "ASF"),
        (b"NIST_1A\n   1024\n", "SPHERE"),
    ],
)
def test_formats_that_are_not_read_are_called_by_name(data, name):
    with pytest.raises(MediaError, match=f"unsupported container: .*{name}.*supported: wav, flac"):
        identify(data)


def test_counts_of_samples_beyond_the_file():
    clip = bytearray(CLIPS["mov"]())
    at = clip.index(b"stsz") + 4
    clip[at + 4 : at + 12] = struct.pack(">II", 1, 80_000_000)  # samples of one byte each: libav would take 2 GB
    with pytest.raises(MediaError, match="box 'stsz' counts 80000000 samples in a file of"):
        check_complete(bytes(clip), "mov")


def test_an_mp3_frame_that_ends_early_without_a_xing_header():
    # MPEG-1 layer III, 128 kbit/s, 44.1 kHz: 144 * 128000 / 44100 = 417 bytes a frame (ISO 11172-3, 2.4.3.1).
    frame = b"\xff\xfb\x90\x00" + bytes(413)
    check_complete(frame * 3, "mp3")
    with pytest.raises(MediaError, match="the last frame lacks 100 bytes"):
        check_complete((frame * 3)[:-100], "mp3")


def test_an_ogg_page_with_a_wrong_checksum():
    clip = bytearray(CLIPS["ogg"]())
    clip[len(clip) // 2] ^= 1
    with pytest.raises(MediaError, match="the page at byte .* is damaged"):
        check_complete(bytes(clip), "ogg")


def test_sizes_that_a_pipe_leaves_open():
    clip = CLIPS["matroska"]()
    at = clip.index(b"\x18\x53\x80\x67") + 4
    assert clip[at] == 0x01  # an eight-byte size
    live = clip[:at] + b"\x01" + b"\xff" * 7 + clip[at + 8 :]
    check_complete(live[:-100], "matroska")

    boxes = struct.pack(">I4s", 8, b"moov") + struct.pack(">I4s", 0, b"mdat") + bytes(100)
    check_complete(boxes, "mov")  # size 0 is "to the end of the file" (ISO 14496-12, 4.2)
    with pytest.raises(MediaError, match="the index .* is missing"):
        check_complete(boxes[8:], "mov")


def test_a_64_bit_wave_file():
    wav = CLIPS["wav"]()
    data = wav[wav.index(b"data") + 8 :]
    for missing in (0, 10):
        ds64 = b"ds64" + struct.pack("<IQQQI", 28, 0, len(data) + missing, 0, 0)
        clip = b"RF64\xff\xff\xff\xffWAVE" + ds64 + wav[12:36] + b"data\xff\xff\xff\xff" + data
        assert identify(clip) == "wav"
        if missing:
            with pytest.raises(MediaError, match=f"{len(data)} of {len(data) + 10} bytes"):
                check_complete(clip, "wav")
        else:
            check_complete(clip, "wav")
