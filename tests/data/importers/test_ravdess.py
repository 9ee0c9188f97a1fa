"""RAVDESS: names are read, takes joined, voices measured, captions true to label and measurement."""

import itertools
import os
import re

import numpy as np
import pytest

from mecap_jax.data.importers import BadClip, ImporterError, ImportSettings, prepare, prosody_captions, ravdess
from mecap_jax.data.importers.prosody_captions import Levels
from mecap_jax.data.inspection import read
from mecap_jax.data.media import decode_audio
from mecap_jax.data.shards import ShardReader
from mecap_jax.data.utterance import CAPTION_KINDS, Utterance
from mecap_jax.emotion_words import first_emotion_word
from mecap_jax.emotions import EMOTIONS
from tests.data.clips import SHARED, audio_file, needs_shared_data, video_file


def test_names_are_read_as_published():
    take = ravdess.parse("05-02-01-02-12")
    assert take == ("angry", "strong", "Kids are talking by the door.", 2, 12)
    assert (take.gender, take.split) == ("female", "train")
    assert ravdess.parse("08-01-02-01-23") == ("surprised", "normal", "Dogs are sitting by the door.", 1, 23)
    for key in ("05-02-01-02", "05-02-01-02-25", "09-01-01-01-01", "00-01-01-01-01", "01-02-01-01-01", "5-2-1-2-12"):
        with pytest.raises(ValueError, match=key):
            ravdess.parse(key)


def test_splits_share_no_actor_and_have_as_many_men_as_women():
    actors = {}
    for actor in range(1, 25):
        take = ravdess.parse(f"01-01-01-01-{actor:02d}")
        actors.setdefault(take.split, []).append(take.gender)
    assert {split: len(genders) for split, genders in actors.items()} == {"train": 14, "validation": 2, "test": 8}
    for genders in actors.values():
        assert genders.count("male") == genders.count("female")


def test_files_of_one_take_become_one_utterance(tmp_path, capsys):
    speech, talking, silent = audio_file(), video_file(sound="aac"), video_file(sound=None)
    files = {
        "Actor_01/03-01-03-01-01-01-01.wav": speech,
        "Actor_01/01-01-03-01-01-01-01.mp4": talking,
        "Actor_01/02-01-03-01-01-01-01.mp4": silent,
        "Actor_02/01-01-04-01-01-01-02.mp4": talking,
        "Actor_03/02-01-05-01-01-01-03.mp4": silent,
        "Actor_04/03-01-06-01-01-01-04.wav": speech,
        "Actor_04/02-01-06-01-01-01-04.mp4": silent,
        "copy/03-01-06-01-01-01-04.wav": speech + b"more",
        "song/03-02-06-01-01-01-04.wav": speech,
        "Actor_05/03-01-09-01-01-01-05.wav": speech,
        "Actor_05/holiday.mp4": talking,
        "Actor_06/03-01-06-01-01-01-06.wav": speech[:1000],
        "README.txt": b"ignored",
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)

    items = list(map(read, ravdess.clips(tmp_path, ImportSettings())))

    good = {item.id: item for item in items if isinstance(item, Utterance)}
    assert set(good) == {"ravdess_03-01-01-01-01", "ravdess_04-01-01-01-02", "ravdess_06-01-01-01-04"}
    both = good["ravdess_03-01-01-01-01"]
    assert both.audio == speech and both.video == talking  # 01 has sound and picture, 02 only the same picture
    assert (good["ravdess_04-01-01-01-02"].audio, good["ravdess_04-01-01-01-02"].video) == (None, talking)
    assert good["ravdess_06-01-01-01-04"].video == silent
    assert both.transcript == "Kids are talking by the door." and both.speaker == "ravdess_01"
    assert both.labels == {"audio": "happy", "video": "happy", "multimodal": "happy"}
    assert both.licence == "CC-BY-NC-SA-4.0"

    bad = {item.id: item.reason for item in items if isinstance(item, BadClip)}
    assert set(bad) == {
        "copy/03-01-06-01-01-01-04.wav",
        "Actor_05/03-01-09-01-01-01-05.wav",
        "Actor_05/holiday.mp4",
        "ravdess_05-01-01-01-03",
        "ravdess_06-01-01-01-06",
    }
    assert "same take as 'Actor_04/03-01-06-01-01-01-04.wav'" in bad["copy/03-01-06-01-01-01-04.wav"]
    assert "not named as RAVDESS" in bad["Actor_05/holiday.mp4"]
    assert "no audio stream" in bad["ravdess_05-01-01-01-03"]
    assert "truncated" in bad["ravdess_06-01-01-01-06"]
    assert "1 songs are left out" in capsys.readouterr().err


def test_a_directory_without_ravdess_is_an_error(tmp_path):
    with pytest.raises(ImporterError, match="holds no RAVDESS speech files"):
        list(map(read, ravdess.clips(tmp_path, ImportSettings())))


def glottal_voice(pitch_hz: float, seconds: float, level: float, glide: float = 0.0) -> np.ndarray:
    """A buzz whose pitch glides by `glide` semitones, between half a second of faint noise before and after."""
    time = np.arange(int(seconds * 16_000)) / 16_000
    frequency = pitch_hz * 2 ** (glide * (time / seconds - 0.5) / 12)
    phase = 2 * np.pi * np.cumsum(frequency) / 16_000
    voice = sum(np.sin(k * phase) / k for k in range(1, 12))
    voice *= level / np.sqrt(np.mean(voice**2))
    noise = 1e-5 * np.random.default_rng(0).normal(size=8_000)
    return np.concatenate([noise, voice, noise]).astype(np.float32)


@pytest.mark.parametrize("pitch, seconds, level", [(100.0, 1.4, 0.1), (220.0, 2.0, 0.01), (400.0, 1.0, 0.05)])
def test_a_known_voice_is_measured_right(pitch, seconds, level):
    voice = ravdess.measure(glottal_voice(pitch, seconds, level, glide=6.0))
    assert voice.pitch_hz == pytest.approx(pitch, rel=0.02)
    assert voice.melody_semitones == pytest.approx(0.8 * 6.0, abs=0.5)  # between the 10th and 90th percentile
    assert voice.loudness_db == pytest.approx(20 * np.log10(level), abs=0.5)
    assert voice.rate_per_s == pytest.approx(7 / seconds, rel=0.1)


def test_silence_has_no_voice():
    with pytest.raises(ValueError, match="silent"):
        ravdess.measure(np.zeros(16_000, np.float32))
    with pytest.raises(ValueError, match="between the silences"):
        ravdess.measure(glottal_voice(200, 0.05, 0.1))


LEVELS = ("low", "medium", "high")
CASES = [(e, i) for e in (*EMOTIONS, "calm") for i in ("normal", "strong") if (e, i) != ("neutral", "strong")]


@pytest.mark.parametrize("emotion, intensity", CASES)
def test_captions_name_the_emotion_and_no_other(emotion, intensity):
    rng = np.random.default_rng(0)
    for gender, *levels in itertools.product(("male", "female"), LEVELS, LEVELS, LEVELS, LEVELS):
        captions = prosody_captions.write(emotion, intensity, gender, Levels(*levels), rng, ravdess.SPEAKER)
        assert set(captions) == set(CAPTION_KINDS)
        assert [len(captions[kind]) for kind in ("emotion", "style", "speaker", "overall")] == [1, 1, 1, 5]
        assert len(set(captions["overall"])) == 5
        for kind, references in captions.items():
            for caption in references:
                named = first_emotion_word(caption, (*EMOTIONS, "calm"))
                assert named == (emotion if kind in ("emotion", "overall") else None), caption
                assert re.fullmatch(r"[A-Z][A-Za-z,;: '-]+\.", caption) and "  " not in caption
                assert not re.search(r"\b[Aa] [aeiou]|\ban [^aeiou]", caption), caption
                if gender == "male":
                    assert not re.search(r"\b(she|her|woman|female)\b", caption, re.IGNORECASE)
                else:
                    assert not re.search(r"\b(he|his|man|male)\b", caption, re.IGNORECASE)


def test_captions_say_how_the_voice_compares():
    words = {
        "pitch": {"low": "low|deep|low-pitched", "high": "high|high-pitched|raised"},
        "loudness": {"low": "quiet|soft|hushed|subdued", "high": "loud|powerful|forceful|carrying"},
        "rate": {"low": "slow|slowly|unhurried|leisurely", "high": "quickly|brisk|rapidly|fast"},
    }
    rng = np.random.default_rng(1)
    for measure, (level, opposite) in itertools.product(words, (("low", "high"), ("high", "low"))):
        levels = Levels(**{**dict.fromkeys(("pitch", "melody", "loudness", "rate"), "medium"), measure: level})
        for _ in range(50):
            (style,) = prosody_captions.write("sad", "normal", "male", levels, rng)["style"]
            assert re.search(rf"\b({words[measure][level]})\b", style), style
            plain = style.replace("moderately loud", "").replace("comfortably loud", "")
            assert not re.search(rf"\b({words[measure][opposite]})\b(?!-range)", plain), style


@needs_shared_data
def test_the_real_recordings():
    items = list(map(read, ravdess.clips(SHARED / "audio/ravdess", ImportSettings())))
    assert len(items) == 300 and all(isinstance(item, Utterance) for item in items)
    splits = {split: [u for u in items if u.split == split] for split in ("train", "validation", "test")}
    assert [len(us) for us in splits.values()] == [210, 30, 60]
    speakers = [{u.speaker for u in us} for us in splits.values()]
    assert not set.intersection(*speakers) and sum(map(len, speakers)) == 20

    # Facial features: standardised on the train actors, one row a take.
    features = np.concatenate([u.features["openwillis"] for u in splits["train"]])
    assert features.shape == (210, 56) and features.dtype == np.float32
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(features.std(axis=0), 1, atol=1e-3)
    assert "210 takes of 14 train actors" in items[0].attributes["openwillis"]

    # Thirds of the train actors, by construction; strong anger is louder and sad speech slower than the rest.
    for name in ("pitch", "melody", "loudness", "rate"):
        levels = [u.attributes[f"{name}_level"] for u in splits["train"]]
        assert all(abs(levels.count(level) - 70) <= 10 for level in LEVELS)  # equal rates fall on one side

    def mean(name, **wanted):
        chosen = [u for u in items if all({"label": u.label, **u.attributes}[k] == v for k, v in wanted.items())]
        return np.mean([float(u.attributes[name]) for u in chosen])

    everything = {name: mean(name) for name in ("loudness_db", "rate_per_s", "pitch_hz")}
    assert mean("loudness_db", label="angry", intensity="strong") > everything["loudness_db"] + 5
    assert mean("rate_per_s", label="sad") < everything["rate_per_s"]
    assert mean("pitch_hz", gender="female") > 1.3 * mean("pitch_hz", gender="male")
    overall = [caption for u in items for caption in u.captions["overall"]]
    assert len(overall) == 1500 and len(set(overall)) > 1450


@needs_shared_data
def test_the_measured_pitch_agrees_with_a_slower_probabilistic_tracker():
    import librosa

    errors = []
    for path in sorted((SHARED / "audio/ravdess").glob("*.flac"))[::20]:
        waveform = decode_audio(path.read_bytes())
        speech, _ = librosa.effects.trim(waveform, top_db=30)
        frequency, voiced, _ = librosa.pyin(speech, fmin=65, fmax=700, sr=16_000, frame_length=1024)
        if voiced.sum() > 10:
            errors.append(12 * np.log2(ravdess.measure(waveform).pitch_hz / np.median(frequency[voiced])))
    assert len(errors) >= 14
    assert np.median(np.abs(errors)) < 1.0  # semitones


def feature_table(*lines):
    return "\n".join(["clip,smile,frown", *lines, ""])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_facial_features_are_found_in_any_encoding(tmp_path, encoding):
    for actor in ("01", "02"):
        (tmp_path / f"03-01-01-01-01-01-{actor}.wav").write_bytes(audio_file())
    text = feature_table("03-01-01-01-01-01-01,1,5", "03-01-01-01-01-01-02,3,5").replace("\n", "\r\n")
    (tmp_path / "features.csv").write_bytes(text.encode(encoding))
    first, second = map(read, ravdess.clips(tmp_path, ImportSettings()))
    np.testing.assert_allclose(first.features["openwillis"], [[-1, 0]])
    np.testing.assert_allclose(second.features["openwillis"], [[1, 0]])


def test_a_line_of_facial_features_that_is_wrong_costs_its_take(tmp_path, capsys):
    for actor in range(1, 7):
        (tmp_path / f"03-01-01-01-01-01-0{actor}.wav").write_bytes(audio_file())
    good = "03-01-01-01-01-01-01,1,2"
    wrong = (
        "03-01-01-01-01-01-02,1,high",
        "03-01-01-01-01-01-03,1,nan",
        "03-01-01-01-01-01-04,1,",
        "03-01-01-01-01-01-05,1,2,3",
        "somebody,1,2",
    )
    (tmp_path / "features.csv").write_text(feature_table(good, *wrong))
    items = list(map(read, ravdess.clips(tmp_path, ImportSettings())))
    bad = {item.id[-2:]: item.reason for item in items if isinstance(item, BadClip)}
    assert set(bad) == {"02", "03", "04"}
    assert "features.csv, line 3: could not convert" in bad["02"] and "line 4: a value is not finite" in bad["03"]
    assert "line 5: column 'frown' is empty" in bad["04"]
    assert {item.id[-2:]: bool(item.features) for item in items if isinstance(item, Utterance)} == {
        "01": True,
        "05": False,
        "06": False,
    }
    assert "lines that are of no take: 2, e.g. features.csv, line 6: 4 columns, expected 3" in capsys.readouterr().err

    for lines, message in (
        (wrong[:2], r"no train actor \(01 to 14\) .*line 2: could not convert"),
        (("03-01-01-01-01-01-20,1,2",), "no train actor"),
        ((), "is empty"),
    ):
        (tmp_path / "features.csv").write_text(feature_table(*lines))
        with pytest.raises(ImporterError, match=f"features.csv.*{message}"):
            list(map(read, ravdess.clips(tmp_path, ImportSettings())))
    (tmp_path / "visual").mkdir()
    (tmp_path / "visual" / "again.csv").write_text(feature_table(good))
    with pytest.raises(ImporterError, match="more than one table"):
        list(map(read, ravdess.clips(tmp_path, ImportSettings())))
    (tmp_path / "features.csv").unlink()
    beside = ravdess.files_beside(tmp_path / "audio", ImportSettings())
    assert beside == [tmp_path / "visual" / "again.csv"]  # a part of the input


def test_a_corpus_unpacked_twice_with_what_systems_leave(tmp_path, capsys):
    """Identical files are copies of the first; resource forks are no clips; a name need not be UTF-8."""
    speech = audio_file()
    names = [f"03-01-01-01-01-01-{actor:02d}.wav" for actor in (1, 2, 3)]
    for name in (f"{place}/{name}" for place in ("ravdess", "ravdess (1)/ravdess") for name in names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(speech)
    for name in (f"__MACOSX/ravdess/._{names[0]}", f"ravdess/._{names[1]}", "ravdess/.DS_Store"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\x05\x16\x07")
    with open(os.fsencode(tmp_path) + b"/ravdess/\xfcber\n.wav", "wb") as file:
        file.write(speech)
    manifest = prepare("ravdess", tmp_path, tmp_path.parent / "out", max_bad_fraction=0.3)
    assert manifest["records"] == 3
    assert manifest["duplicates"] == [{"id": f"ravdess (1)/ravdess/{n}", "of": f"ravdess/{n}"} for n in names]
    (bad,) = manifest["quarantined"]
    assert bad["id"] == "ravdess/\\xfcber .wav" and "is not named as RAVDESS" in bad["reason"]
    assert f"left out 3 copies of clips that were taken: ravdess (1)/ravdess/{names[0]} (of " in capsys.readouterr().err
    assert len(ShardReader(tmp_path.parent / "out")) == 3
