"""The corpus as a whole: a balanced plan, disjoint speakers, real media, the same bytes every time."""

import collections
import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from mecap_jax.config import ConfigError, SyntheticConfig
from mecap_jax.data import media
from mecap_jax.data.importers import BadClip, ImportSettings, synthetic
from mecap_jax.data.inspection import in_processes
from mecap_jax.data.media import MAX_SECONDS
from mecap_jax.data.synthetic.corpus import (
    INTENSITIES,
    attributes_of,
    captions_of,
    labels_of,
    plan,
    rationale_of,
    render,
)
from mecap_jax.data.utterance import MODALITIES, deserialize, serialize
from mecap_jax.emotion_words import first_emotion_word
from mecap_jax.emotions import EMOTIONS
from mecap_jax.evaluation.claims import claim_accuracy, claims_of, is_true
from mecap_jax.rewards.sentences import split_sentences


def agreement(specs, modality: str) -> float:
    """Share of the clips with both modalities whose label in one equals the multimodal label."""
    both = [spec for spec in specs if spec.has_video]
    return float(np.mean([spec.shown(modality)[0] == spec.emotion for spec in both]))


@pytest.fixture(scope="module")
def specs():
    return plan(SyntheticConfig())


@pytest.fixture(scope="module")
def clips():
    """A few rendered clips of every split, some of them without video."""
    small = plan(SyntheticConfig(clips=40))
    return [(spec, render(spec)) for spec in small[::2]]


def test_splits_have_their_shares_and_disjoint_speakers(specs):
    splits = collections.Counter(spec.speaker.split for spec in specs)
    assert splits == {"train": 1400, "validation": 200, "test": 400}
    speakers = {split: {s.speaker.id for s in specs if s.speaker.split == split} for split in splits}
    assert len(speakers["validation"]) >= 8 and len(speakers["test"]) >= 12
    assert sum(map(len, speakers.values())) == len(set.union(*speakers.values())) >= 40
    for split, size in splits.items():
        clips = collections.Counter(s.speaker.id for s in specs if s.speaker.split == split)
        assert max(clips.values()) - min(clips.values()) <= 1, size


def test_emotions_and_intensities_are_balanced(specs):
    for split in ("train", "validation", "test"):
        emotions = collections.Counter(spec.emotion for spec in specs if spec.speaker.split == split)
        total = emotions.total()
        assert emotions["neutral"] / total == pytest.approx(0.20, abs=0.01)
        for emotion in EMOTIONS[1:]:
            assert emotions[emotion] / total == pytest.approx(0.8 / 6, abs=0.01)
    intensities = collections.Counter(spec.intensity for spec in specs if spec.emotion != "neutral")
    assert set(intensities) == set(INTENSITIES) and min(intensities.values()) > 0.2 * intensities.total()


@pytest.mark.parametrize("share", [0.0, 0.4, 0.8])
def test_conflicts_have_the_configured_share(share):
    specs = plan(SyntheticConfig(conflict_share=share))
    candidates = [spec for spec in specs if spec.has_video and spec.emotion != "neutral"]
    conflicts = [spec for spec in candidates if spec.conflict != "none"]
    assert len(conflicts) / len(candidates) == pytest.approx(share, abs=0.005)
    # Half of them lie in either modality: each agrees with the multimodal label in 1 - 0.8 * share / 2 of the clips.
    for modality in ("audio", "video"):
        assert agreement(specs, modality) == pytest.approx(1 - 0.4 * share, abs=0.02)


def test_agreement_reaches_emotiontalks(specs):
    """EmotionTalk: audio .67 to .69, video .65 to .66 with the multimodal label; audio with video .55 to .58."""
    frequent = plan(SyntheticConfig(conflict_share=0.8))
    assert agreement(frequent, "audio") == pytest.approx(2 / 3, abs=0.04)
    assert agreement(frequent, "video") == pytest.approx(2 / 3, abs=0.04)
    both = [spec.shown("audio")[0] == spec.shown("video")[0] for spec in specs if spec.has_video]
    assert np.mean(both) == pytest.approx(2 / 3, abs=0.04)  # of the default


def test_the_more_intense_modality_decides(specs):
    order = ("none",) + INTENSITIES  # neutral, then rising intensity
    for spec in specs:
        if spec.conflict != "none":
            assert spec.has_video and spec.emotion != "neutral"
            assert order.index(spec.other_intensity) < order.index(spec.intensity)
            assert spec.other_emotion != spec.emotion
            assert (spec.other_emotion == "neutral") == (spec.other_intensity == "none")


def test_some_clips_of_every_split_have_no_video(specs):
    for split in ("train", "validation", "test"):
        without = [not spec.has_video for spec in specs if spec.speaker.split == split]
        assert np.mean(without) == pytest.approx(0.15, abs=0.01)


def test_transcripts_tell_nothing_about_emotion(specs):
    """Every emotion uses most sentences: no more dependence than chance gives (chi-squared over its dof near 1)."""
    english = [spec for spec in specs if spec.language == "en"]
    sentences = sorted({spec.transcript for spec in english})
    table = np.zeros((len(EMOTIONS), len(sentences)))
    for spec in english:
        table[EMOTIONS.index(spec.emotion), sentences.index(spec.transcript)] += 1
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    statistic = np.sum(np.square(table - expected) / expected)
    assert statistic / ((table.shape[0] - 1) * (table.shape[1] - 1)) < 1.25


def test_speech_languages():
    everyone = plan(SyntheticConfig(clips=400))
    spoken = collections.Counter(spec.language for spec in everyone)
    assert 0.1 < spoken["zh"] / spoken.total() < 0.4
    for languages in (("en",), ("zh",)):
        assert {spec.language for spec in plan(SyntheticConfig(clips=50, speech_languages=languages))} == set(languages)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(clips=0), "'data.synthetic.clips': must be greater than 0 .got 0."),
        (dict(seed=-1), "seed': must be greater than or equal to 0 .got -1."),
        (dict(conflict_share=1.5), "conflict_share': must be less than or equal to 1 .got 1.5."),
        (dict(conflict_share=float("nan")), "conflict_share': must be .*got nan."),
        (dict(contradicting_share=-0.1), "contradicting_share': must be greater than or equal to 0 .got -0.1."),
        (dict(caption_language="de"), "caption_language': must be 'en' or 'zh' .got 'de'"),
        (dict(speech_languages=()), "speech_languages': .*at least 1 item"),
        (dict(speech_languages=("en", "de")), r"speech_languages\[1\]': must be 'en' or 'zh' .got 'de'"),
        (dict(features=("log_mel",)), r"features\[0\]': must be 'log_mel-UTT' or 'log_mel-FRA'"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        plan(SyntheticConfig(**settings))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_some_rationales_argue_for_another_emotion_and_nothing_else_changes(language):
    settings = SyntheticConfig(clips=300, caption_language=language)
    usual = plan(settings)
    contradicting, fewer = (plan(dataclasses.replace(settings, contradicting_share=share)) for share in (0.4, 0.2))
    argued = {spec.id: spec.argued for spec in contradicting}
    assert [dataclasses.replace(spec, argued=None) for spec in contradicting] == usual
    assert 0.3 < np.mean([emotion is not None for emotion in argued.values()]) < 0.5
    assert all(spec.argued in (None, argued[spec.id]) for spec in fewer)
    for spec, other in zip(usual, contradicting):
        rationale = rationale_of(other)
        concluded = first_emotion_word(split_sentences(rationale)[-1])
        assert concluded == (other.argued or spec.emotion) and other.argued != spec.emotion
        assert labels_of(other) == labels_of(spec) and attributes_of(other) == attributes_of(spec)
        assert other.argued or rationale == rationale_of(spec)
        shown = [claim for claim in claims_of(rationale, language) if claim[0] != "emotion"]
        assert all(is_true(claim, attributes_of(spec), labels_of(spec)) for claim in shown)


def test_some_speakers_have_labels_alone_and_nothing_else_changes():
    settings = SyntheticConfig(clips=300)
    usual = plan(settings)
    few, fewer = (plan(dataclasses.replace(settings, captioned_share=share)) for share in (0.5, 0.2))
    assert [dataclasses.replace(spec, captioned=True) for spec in few] == usual
    train = {spec.speaker.id: spec.captioned for spec in few if spec.speaker.split == "train"}
    assert sum(train.values()) == round(0.5 * len(train))
    for spec, less in zip(few, fewer):
        assert spec.captioned == (spec.speaker.split != "train" or train[spec.speaker.id])
        assert spec.captioned or not less.captioned
        assert bool(captions_of(spec)) == spec.captioned
    silent = next(spec for spec in few if not spec.captioned)
    utterance = render(silent)
    assert utterance.rationale is None and utterance.captions == {} and utterance.labels == labels_of(silent)


def test_seeds_make_different_corpora(specs):
    assert plan(SyntheticConfig()) == specs
    other = plan(SyntheticConfig(seed=1))
    assert [spec.emotion for spec in other] != [spec.emotion for spec in specs]
    assert len({spec.id for spec in specs}) == len(specs)


def test_clips_do_not_depend_on_what_was_rendered_before(clips):
    for spec, utterance in reversed(clips):
        assert serialize(render(spec)) == serialize(utterance)


def test_media_are_real_files(clips):
    assert {spec.has_video for spec, _ in clips} == {True, False}
    for spec, utterance in clips:
        info = media.probe(utterance.video or utterance.audio)
        assert (utterance.video is None) != (utterance.audio is None)
        assert 0.7 < info.audio_seconds <= 3.1
        if spec.has_video:
            assert abs(info.video_seconds - info.audio_seconds) < 0.2
            frames = media.decode_video(utterance.video, max_frames=4, fps=2.0)
            assert frames.pixels.shape[1:] == (112, 112, 3)
            assert len(utterance.video) < 60_000
        waveform = media.decode_audio(utterance.video or utterance.audio)
        assert np.sqrt(np.mean(np.square(waveform))) > 0.005


def test_utterances_say_what_they_are(clips):
    for spec, utterance in clips:
        assert utterance.label == spec.emotion and utterance.split == spec.speaker.split
        assert set(utterance.labels) == set(MODALITIES) - (set() if spec.has_video else {"video"})
        assert utterance.labels["text"] == "neutral"
        if not spec.has_video:
            assert utterance.labels["audio"] == utterance.label
        assert utterance.attributes["synthetic"] == "eSpeak NG and drawn faces"
        assert utterance.attributes["conflict"] == spec.conflict
        assert utterance.licence == "CC0-1.0"
        assert deserialize(serialize(utterance)).captions == utterance.captions


def test_clips_carry_the_features_that_are_asked_for():
    names = ("log_mel-UTT", "log_mel-FRA")
    (spec, *_), (plain, *_) = (plan(SyntheticConfig(clips=60, features=asked)) for asked in (names, ()))
    clip, bare = render(spec), render(plain)
    assert bare.features == {} and clip.audio == bare.audio and clip.video == bare.video
    assert clip.features["log_mel-UTT"].shape == (1, 80) and clip.features["log_mel-FRA"].shape[1] == 40
    seconds = len(clip.features["log_mel-FRA"]) / 10
    assert 0.5 < seconds < 4


def test_importer_yields_the_plan_in_order():
    config = SyntheticConfig(clips=20, caption_language="zh", speech_languages=("zh",), seed=5)
    clips = synthetic.clips(None, ImportSettings(config))
    made = [utterance for utterance, _ in in_processes(clips, MAX_SECONDS)]
    assert [u.id for u in made] == [spec.id for spec in plan(config)]
    assert serialize(made[7]) == serialize(render(plan(config)[7]))  # made in another process


def test_a_clip_that_cannot_be_spoken_is_reported(clips):
    spec = dataclasses.replace(clips[0][0], transcript="Far too many words for such a short clip. " * 5)
    bad = synthetic.render_or_report(spec)
    assert isinstance(bad, BadClip) and bad.id == spec.id and "s of speech exceed" in bad.reason


def test_rendering_processes_do_not_load_jax():
    code = "import sys, mecap_jax.data.importers.synthetic; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# --- pictures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["en", "zh"])
def test_stills_are_faces_without_a_word_of_voices(language):
    stills = plan(SyntheticConfig(clips=200, stills=True, caption_language=language))
    assert all(spec.still and spec.has_video and spec.conflict == "none" for spec in stills)
    assert {spec.emotion for spec in stills} == set(EMOTIONS)
    clips = [render(spec) for spec in stills[::10]]
    assert [serialize(clip) for clip in clips] == [serialize(render(spec)) for spec in stills[::10]]
    for clip in clips:
        assert clip.audio is None and not clip.transcript and not clip.captions
        assert len(media.decode_video(clip.video, 8, 0.0).pixels) == 1
        assert clip.labels.keys() == {"video", "multimodal"}
        assert not {"voice", "tempo", "pitch", "loudness", "aud_desc"} & clip.attributes.keys()
        assert {"vis_desc", "step1", "step2", "step3", "face"} <= clip.attributes.keys()
    # All that is said of them is true, and nothing is said of how they sound.
    truth = [(clip.attributes, clip.labels) for clip in clips]
    steps = [" ".join(clip.attributes[f"step{n}"] for n in (1, 2, 3)) for clip in clips]
    for texts in (steps, [clip.rationale for clip in clips]):
        told = claim_accuracy(texts, truth, language)
        assert told["claims_true"].value == 1 and told["claims"].value > 1.5
        assert all(np.isnan(told[f"claims_true/{aspect}"].value) for aspect in ("tempo", "pitch", "loudness"))
