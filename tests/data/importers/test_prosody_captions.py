"""Captions from prosody say of a voice what was measured of it, name the emotion, and are the same every time."""

import io
import itertools
import json
import re

import numpy as np
import pytest
import soundfile

from mecap_jax.data.importers import prepare
from mecap_jax.data.importers.prosody import SAMPLE_RATE, Prosody, compare, measure
from mecap_jax.data.importers.prosody_captions import Levels, write
from mecap_jax.data.shards import ShardReader
from mecap_jax.data.utterance import Utterance
from mecap_jax.emotion_words import first_emotion_word
from mecap_jax.emotions import LABELS
from tests.data.clips import SHARED, needs_shared_data, video_file


def voice(hertz=150.0, glide=0.0, seconds=1.0, gain=0.1) -> bytes:
    """A buzz whose pitch rises by `glide` semitones, between two pauses, as a wav file."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    phase = np.cumsum(hertz * 2 ** (glide * time / seconds / 12)) / SAMPLE_RATE
    return wav(gain * sum(np.sin(2 * np.pi * n * phase) / n for n in range(1, 9)))


def wav(waveform) -> bytes:
    file = io.BytesIO()
    pause = np.zeros(SAMPLE_RATE // 4)
    soundfile.write(file, np.concatenate([pause, waveform, pause]), SAMPLE_RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def utterance(audio=None, label="sad", id="a", transcript="", **fields):
    labels = {"multimodal": label} if label else {}
    told = dict(dataset="d", split="train", speaker="s", labels=labels, audio=audio, transcript=transcript)
    return Utterance(id=id, **told | fields)


def heard(audio, **fields) -> Prosody | None:
    return measure(utterance(audio, **fields), 60.0)


def test_what_is_measured_is_what_was_spoken():
    plain = heard(voice(), transcript="Nine words.")
    assert heard(voice(300.0)).pitch - plain.pitch == pytest.approx(12, abs=0.3)
    assert plain.melody < 1 and heard(voice(glide=10)).melody == pytest.approx(8, abs=1)
    louder = heard(voice(gain=0.2), transcript="Nine words.")
    assert louder.loudness - plain.loudness == pytest.approx(6.02, abs=0.1)
    # Twice as long for the same words, or more words in the same time.
    assert plain.rate - heard(voice(seconds=2), transcript="Nine words.").rate == pytest.approx(1, abs=0.1)
    assert heard(voice(), transcript="Nine words. Nine words.").rate == pytest.approx(plain.rate + 1)
    beats = np.tile(np.r_[0.2 * np.sin(0.06 * np.arange(1600)), np.zeros(1600)], 5)  # the pause at the end is cut
    assert 2 ** heard(wav(beats)).rate == pytest.approx(5 / 0.9, abs=0.7)  # where nobody knows what is said


def test_noise_and_silence_have_no_voice():
    assert heard(wav(0.1 * np.random.default_rng(0).standard_normal(SAMPLE_RATE))) is None
    assert heard(wav(1e-4 * np.ones(SAMPLE_RATE))) is None  # below what is heard
    assert heard(wav(0.1 * np.ones(100))) is None
    assert heard(None) is None and heard(b"no sound") is None
    assert heard(video_file(sound=None, frames=5)) is None


def test_a_clip_is_compared_with_its_speaker_or_where_there_are_few_clips_with_more():
    middle, high = Prosody(90.0, 5.0, -20.0, 3.0), Prosody(100.0, 5.0, -20.0, 3.0)
    usual = dict.fromkeys(("pitch", "melody", "loudness", "rate"), "medium")
    own, everybody = ("speaker", "s"), ()
    levels = compare([high] * 5 + [middle, None], [[own, everybody]] * 5 + [[("other",), everybody]] * 2)
    assert levels == [usual] * 5 + [usual | {"pitch": "low"}, None]
    assert compare([middle], [[everybody]]) == [usual]
    # What nobody hears is no difference.
    assert compare([middle, *[Prosody(90.1, 5.1, -20.1, 3.01)] * 4], [[everybody]] * 5) == [usual] * 5


@pytest.mark.parametrize("label", [*LABELS, "hangry"])
@pytest.mark.parametrize("plain", [False, True])
def test_every_caption_names_the_emotion_and_no_other(label, plain):
    for number, levels in enumerate(itertools.product(("low", "medium", "high"), repeat=4)):
        gender, intensity = ("female", "male", None)[number % 3], ("strong", "normal")[number % 2]
        rng = None if plain else np.random.default_rng(number)
        captions = write(label, intensity, gender, Levels(*levels), rng)
        counts = {"emotion": 1, "style": 1, "overall": 1 if plain else 5}
        assert {kind: len(set(texts)) for kind, texts in captions.items()} == counts
        assert first_emotion_word(captions["style"][0], {*LABELS, label}) is None, captions["style"]
        for caption in captions["overall"]:
            assert first_emotion_word(caption, {*LABELS, label}) == label, caption
            assert re.fullmatch(r"[A-Z][a-z ,;:'-]+\.", caption) and "  " not in caption, caption
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption), caption
            if gender is None:
                assert not re.search(r"\b(he|she|his|her|man|woman|male|female)\b", caption), caption


def test_plain_words_are_the_same_for_the_same_thing_and_others_for_another():
    levels = Levels("low", "medium", "high", "high")
    normal, strong = (" ".join(write("happy", how, "male", levels, None)["overall"]) for how in ("normal", "strong"))
    assert strong == normal.replace("happy", "very happy")
    assert all(normal.count(words) == 1 for words in ("happy", "low", "loud", "quickly"))


@pytest.fixture
def raw(tmp_path):
    directory = tmp_path / "raw"
    directory.mkdir()
    rows = [{"label": "angry", "transcript": "Go away."} for _ in range(7)]
    for i, row in enumerate(rows):
        (directory / f"{i}.wav").write_bytes(voice(hertz=300.0 if i == 2 else 140.0 + i, seconds=0.5))
        row |= {"file": f"{i}.wav", "speaker": "s" if i else "t", "split": "train"}
    rows[3]["label"] = None
    (directory / "5.wav").write_bytes(wav(0.1 * np.random.default_rng(0).standard_normal(SAMPLE_RATE)))
    rows[4]["caption"] = "Mine."
    (directory / "6.wav").write_bytes(b"no sound")
    (directory / "manifest.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return directory


def test_a_folder_gets_captions_that_compare_each_clip_with_the_others(raw, tmp_path):
    manifest = prepare("folder", raw, tmp_path / "out", captions="prosody", max_bad_fraction=0.2, progress=False)
    rows = {row.id: row.captions for row in ShardReader(tmp_path / "out").index}
    assert [clip["id"] for clip in manifest["quarantined"]] == ["6"] and manifest["source"]["captions"] == "prosody"
    high = re.compile(r"\b(high|high-pitched|raised)\b")
    assert high.search(" ".join(rows["2"]["overall"])) and not high.search(" ".join(rows["1"]["overall"]))
    assert "style" not in rows["5"] and len(rows["5"]["overall"]) == 5  # noise: nobody knows how it was said
    assert set(rows["3"]) == {"style"}  # without a label nobody knows what is felt
    assert rows["4"]["overall"] == ("Mine.",) and "style" in rows["4"]
    prepare("folder", raw, tmp_path / "again", captions="prosody", max_bad_fraction=0.2, progress=False)
    assert {row.id: row.captions for row in ShardReader(tmp_path / "again").index} == rows
    prepare("folder", raw, tmp_path / "plain", captions="plain_prosody", max_bad_fraction=0.2, progress=False)
    rows = {row.id: row.captions for row in ShardReader(tmp_path / "plain").index}
    assert [len(rows[id]["overall"]) for id in "0145"] == [1, 1, 1, 5]


@needs_shared_data
def test_real_voices_are_described(tmp_path):
    """One actor: shouting is loud, and every caption names what the actor was asked for."""
    lines = [json.loads(line) for line in (SHARED / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [row for row in lines if row["speaker"] == "ravdess_01"]
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "audio").symlink_to(SHARED / "audio")
    (raw / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    prepare("folder", raw, tmp_path / "out", captions="prosody", allow_outside=True, progress=False)
    rows = list(ShardReader(tmp_path / "out").index)
    assert len(rows) == len(lines) == 15 and {"calm", "angry"} <= {row.label for row in rows}
    for row in rows:
        assert all(first_emotion_word(text, LABELS) == row.label for text in row.captions["overall"])
        if row.label == "angry" and row.attributes["intensity"] == "strong":
            assert re.search(r"\b(loud|powerful|forceful|carrying)\b", " ".join(row.captions["overall"]))
    assert measure(ShardReader(tmp_path / "out")[0], 60.0).pitch == pytest.approx(83, abs=4)  # a man's
