"""Speech: the same samples whatever was spoken before, and prosody that is there when measured."""

import dataclasses

import librosa
import numpy as np
import pytest

from mecap_jax.data.synthetic.espeak import SAMPLE_RATE, SpeechError, synthesize
from mecap_jax.data.synthetic.prosody import MAX_SECONDS, Prosody, prosody_of, speak
from mecap_jax.data.synthetic.speakers import SPEAKERS
from mecap_jax.data.synthetic.transcripts import SENTENCES

SENTENCE = "The meeting starts at nine."
SPEAKER = next(s for s in SPEAKERS if s.variant == "m7")
RNG_SEED = 3


def say(**prosody) -> np.ndarray:
    return speak(SENTENCE, "en", SPEAKER, Prosody(**prosody), np.random.default_rng(RNG_SEED))


def pitch(waveform: np.ndarray) -> float:
    """Median fundamental frequency of the loud half, in octaves."""
    f0 = librosa.yin(waveform, fmin=60, fmax=500, sr=SAMPLE_RATE)
    level = librosa.feature.rms(y=waveform)[0]
    return float(np.median(np.log2(f0[level > np.median(level)])))


def decibels(waveform: np.ndarray) -> float:
    return float(10.0 * np.log10(np.mean(np.square(waveform))))


@pytest.fixture(scope="module")
def plain() -> np.ndarray:
    return say()


@pytest.mark.parametrize("voice", ["en-us+m3", "cmn+f2", "en-gb-scotland+Reed", "en-us+edward"])
def test_samples_do_not_depend_on_what_was_spoken_before(voice):
    text = "会议九点开始。" if voice.startswith("cmn") else SENTENCE
    first = synthesize(text, voice, 170, 60, 40)
    for other in ("en-us+grandma", "en-us+Reed", "cmn+f5"):
        synthesize("Some other words.", other, 260, 20, 90)
        np.testing.assert_array_equal(synthesize(text, voice, 170, 60, 40), first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SENTENCE, "xx+m3", 170, 50, 50), "no voice 'xx.m3'"),
        ((SENTENCE, "en-us+nobody", 170, 50, 50), "unknown variant 'nobody'"),
        ((SENTENCE, "en-us+m3", 20, 50, 50), "rate must lie in .80, 450., got 20"),
        ((SENTENCE, "en-us+m3", 170, 100, 50), "pitch must lie in .0, 99., got 100"),
        (("", "en-us+m3", 170, 50, 50), "spoke nothing for ''"),
    ],
)
def test_what_espeak_cannot_do_is_refused(arguments, message):
    with pytest.raises(SpeechError, match=message):
        synthesize(*arguments)


def test_waveform_stays_in_range():
    loud = say(loudness=30.0)
    assert loud.dtype == np.float32 and loud.ndim == 1
    assert 0.9 < np.abs(loud).max() <= 1.0


def test_tempo_shortens_speech(plain):
    assert len(say(tempo=1.3)) / len(plain) == pytest.approx(1 / 1.3, abs=0.08)
    assert len(say(tempo=0.75)) / len(plain) == pytest.approx(1 / 0.75, abs=0.12)


@pytest.mark.parametrize("semitones", [-5.0, -3.0, 3.0, 5.0])
def test_pitch_moves_the_fundamental(semitones):
    """A median of a second of speech is a rough measure: three sentences, and most of what was asked for."""

    def mean_pitch(prosody):
        said = (speak(text, "en", SPEAKER, prosody, np.random.default_rng(0)) for text in SENTENCES["en"][:3])
        return np.mean([pitch(waveform) for waveform in said])

    moved = 12.0 * (mean_pitch(Prosody(pitch=semitones)) - mean_pitch(Prosody()))
    assert 0.5 < moved / semitones < 1.3


def test_loudness_is_in_decibels(plain):
    assert decibels(say(loudness=-8.0)) - decibels(plain) == pytest.approx(-8.0, abs=0.1)


def test_brightness_moves_energy_up(plain):
    def high_share(waveform):
        power = np.abs(np.fft.rfft(waveform)) ** 2
        return power[np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE) > 2000].sum() / power.sum()

    assert high_share(say(brightness=6.0)) > 1.5 * high_share(plain) > 2.0 * high_share(say(brightness=-6.0))


def test_tremor_modulates_loudness_at_its_rate(plain):
    def tremor_share(waveform):
        level = librosa.feature.rms(y=waveform, frame_length=1024, hop_length=256)[0]
        spectrum = np.abs(np.fft.rfft(level - level.mean(), 2048))
        rate = np.fft.rfftfreq(2048, 256 / SAMPLE_RATE)
        return spectrum[(rate > 5.5) & (rate < 7.5)].sum() / spectrum[(rate > 1) & (rate < 20)].sum()

    assert tremor_share(say(tremor=1.0)) > 1.3 * tremor_share(plain)


def test_glide_raises_the_end():
    def rise(waveform):
        half = len(waveform) // 2
        return pitch(waveform[half:]) - pitch(waveform[:half])

    assert 12.0 * (rise(say(glide=6.0)) - rise(say(glide=-2.0))) > 2.5


def test_intensity_scales_prosody():
    def mean_loudness(intensity):
        return np.mean([prosody_of("angry", intensity, np.random.default_rng(i)).loudness for i in range(40)])

    assert 0.0 < mean_loudness("mild") < mean_loudness("moderate") < mean_loudness("strong")


def test_speech_that_is_too_long_is_refused():
    with pytest.raises(SpeechError, match=rf"exceed {MAX_SECONDS} s: .* by {SPEAKER.id}"):
        speak(" ".join([SENTENCE] * 3), "en", SPEAKER, Prosody(), np.random.default_rng(0))


@pytest.mark.parametrize(("language", "text"), [("en", "The lamp stands by the bed."), ("zh", "我们正在刷厨房。")])
def test_long_sentences_fit_even_when_the_slowest_voice_speaks_them_slowly(language, text):
    assert text in SENTENCES[language]
    speaker = next(s for s in SPEAKERS if s.variant == "Alicia")
    slow = speak(text, language, speaker, Prosody(tempo=0.75), np.random.default_rng(0))
    assert len(slow) < MAX_SECONDS * SAMPLE_RATE


def test_sentences_are_short_and_distinct():
    for language, sentences in SENTENCES.items():
        assert len(set(sentences)) == len(sentences) == 60
        sizes = [len(s.rstrip("。")) if language == "zh" else len(s.split()) for s in sentences]
        assert min(sizes) >= (5 if language == "zh" else 4)
        assert max(sizes) <= (9 if language == "zh" else 8)


def test_voices_of_different_splits_are_no_near_duplicates():
    """Long-term spectra (mean and deviation over 40 mel bands, level removed) differ by 1.5 dB at least."""

    def profile(speaker):
        words = [speak(t, "en", speaker, Prosody(), np.random.default_rng(0)) for t in SENTENCES["en"][:2]]
        mel = librosa.feature.melspectrogram(
            y=np.concatenate(words), sr=SAMPLE_RATE, n_fft=1024, hop_length=512, n_mels=40, fmax=8000
        )
        power = librosa.power_to_db(mel, top_db=70)
        voiced = power[:, power.max(0) > power.max() - 40]
        relative = voiced - voiced.mean(0)
        return np.concatenate([relative.mean(1), relative.std(1)])

    profiles = [profile(speaker) for speaker in SPEAKERS]
    for i, first in enumerate(SPEAKERS):
        for j, second in enumerate(SPEAKERS[:i]):
            if first.split != second.split:
                distance = np.sqrt(np.mean(np.square(profiles[i] - profiles[j])))
                assert distance > 1.5, (first.id, second.id)


def test_cast_is_large_and_a_variant_belongs_to_one_split():
    splits = {split: [s for s in SPEAKERS if s.split == split] for split in ("train", "validation", "test")}
    assert len(SPEAKERS) >= 40 and len({s.id for s in SPEAKERS}) == len(SPEAKERS)
    assert len(splits["validation"]) >= 8 and len(splits["test"]) >= 12
    for speakers in splits.values():
        women = sum(s.gender == "woman" for s in speakers)
        assert 0.4 <= women / len(speakers) <= 0.6
        assert {s.bilingual for s in speakers} == {True, False}
    variants = [{s.variant for s in speakers} for speakers in splits.values()]
    assert sum(map(len, variants)) == len(set.union(*variants))
    assert len({dataclasses.astuple(s)[3:] for s in SPEAKERS}) == len(SPEAKERS)
