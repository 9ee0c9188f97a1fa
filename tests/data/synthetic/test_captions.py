"""Captions: true, in bounds, and different enough from one another."""

import collections
import itertools
import re

import numpy as np
import pytest

from mecap_jax.config import SyntheticConfig
from mecap_jax.data.synthetic import chinese, english, facts
from mecap_jax.data.synthetic.corpus import attributes_of, captions_of, facts_of_clip, plan, rationale_of
from mecap_jax.data.synthetic.expression import ACTION_UNITS
from mecap_jax.data.synthetic.face import identity_of
from mecap_jax.data.synthetic.prosody import Prosody
from mecap_jax.data.synthetic.speakers import SPEAKERS
from mecap_jax.data.utterance import CAPTION_KINDS
from mecap_jax.emotion_words import first_emotion_word
from mecap_jax.emotions import EMOTIONS, LEXICON

CLIPS = 2000  # the default size of the corpus
WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")


@pytest.fixture(scope="module")
def corpora():
    """(clip, captions) of the whole default corpus by caption language."""
    corpora = {}
    for language in ("en", "zh"):
        specs = plan(SyntheticConfig(clips=CLIPS, caption_language=language))
        corpora[language] = [(spec, captions_of(spec)) for spec in specs]
    return corpora


@pytest.mark.parametrize("language", ["en", "zh"])
def test_first_emotion_word_is_the_multimodal_label(corpora, language):
    for spec, captions in corpora[language]:
        for caption in captions["overall"] + captions["emotion"]:
            assert first_emotion_word(caption) == spec.emotion, (spec, caption)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_captions_name_no_emotion_that_is_not_shown(corpora, language):
    for spec, captions in corpora[language]:
        shown = {spec.emotion, spec.other_emotion if spec.conflict != "none" else spec.emotion}
        for caption in captions["overall"]:
            words = WORD.findall(caption.lower())
            for emotion in EMOTIONS:
                entries = LEXICON[language][emotion]
                named = (set(entries) & set(words)) if language == "en" else [e for e in entries if e in caption]
                assert emotion in shown or not named, (spec, caption)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_kinds_and_numbers_of_references(corpora, language):
    for spec, captions in corpora[language]:
        assert set(captions) == set(CAPTION_KINDS)
        assert len(captions["overall"]) == len(set(captions["overall"])) == 5, spec
        assert all(len(captions[kind]) == 1 for kind in ("emotion", "style", "speaker"))


def test_overall_captions_are_of_medium_length(corpora):
    lengths = [len(caption.split()) for _, captions in corpora["en"] for caption in captions["overall"]]
    assert english.MIN_WORDS == 12 <= min(lengths) and max(lengths) <= 26 == english.MAX_WORDS
    for _, captions in corpora["zh"]:
        for caption in captions["overall"]:
            assert chinese.MIN_CHARACTERS <= len(caption) <= chinese.MAX_CHARACTERS


def test_english_vocabulary_is_rich_but_bounded(corpora):
    overall = [caption for _, captions in corpora["en"] for caption in captions["overall"]]
    vocabulary = collections.Counter(word for caption in overall for word in WORD.findall(caption.lower()))
    assert 220 <= len(vocabulary) <= 320
    assert min(vocabulary.values()) >= 5  # rare enough to tell captioners apart, frequent enough to learn


def test_references_overlap_in_part(corpora):
    def bigrams(caption):
        words = WORD.findall(caption.lower())
        return set(zip(words, words[1:]))

    overlaps = [
        len(bigrams(a) & bigrams(b)) / len(bigrams(a) | bigrams(b))
        for _, captions in corpora["en"]
        for a, b in itertools.combinations(captions["overall"], 2)
    ]
    assert 0.1 < np.mean(overlaps) < 0.4
    assert np.mean(np.array(overlaps) < 0.9) > 0.99


def test_conflicts_are_told(corpora):
    for spec, captions in corpora["en"]:
        if spec.conflict != "none":
            departing = "the face" if spec.conflict == "video" else "voice"
            assert all(departing in caption for caption in captions["overall"]), captions


def test_speaker_captions_say_who_speaks(corpora):
    for spec, captions in corpora["en"]:
        (caption,) = captions["speaker"]
        assert re.search(rf"\b{spec.speaker.gender}\b", caption)
        assert ("Mandarin" if spec.language == "zh" else "English") in caption


def facts_with(expression: dict | None = None, emotion: str = "angry", **prosody) -> facts.Facts:
    units = None if expression is None else {name: expression.get(name, 0.0) for name in ACTION_UNITS}
    return facts.facts_of(
        emotion,
        "strong",
        "none",
        "neutral",
        "none",
        SPEAKERS[0],
        "en",
        Prosody(**prosody),
        identity_of("woman", np.random.default_rng(0)),
        units,
    )


@pytest.mark.parametrize(
    ("prosody", "level", "feature", "words"),
    [
        (dict(tempo=0.7), ("tempo", "very slow"), None, ("very slowly", "dragging", "sluggishly")),
        (dict(tempo=1.15), ("tempo", "fast"), None, ("quickly", "briskly", "fast")),
        (dict(pitch=-4.0), ("pitch", "very low"), ("low", True), ("very low", "deep")),
        (dict(pitch=2.0), ("pitch", "high"), ("high", False), ("high", "raised")),
        (dict(loudness=9.0), ("loudness", "very loud"), ("loud", True), ("very loud", "booming")),
        (dict(loudness=-4.0), ("loudness", "quiet"), ("quiet", False), ("soft", "quiet")),
        (dict(tremor=0.6), ("loudness", "normal"), ("trembling", False), ("trembling", "unsteady")),
        (dict(glide=-2.0), ("pitch", "medium"), ("falling", False), ("falling",)),
    ],
)
def test_words_for_the_voice_are_true(prosody, level, feature, words):
    clip = facts_with(**prosody)
    scale, word = level
    assert facts.level_word(scale, getattr(clip, scale)) == word
    assert clip.voice == (() if feature is None else (feature,))
    captions = english.write(clip, np.random.default_rng(0))
    assert any(word in captions["style"][0] for word in words)


@pytest.mark.parametrize(
    ("units", "feature", "words"),
    [
        (dict(AU1=0.6, AU2=0.6), ("brows raised", False), ("raised eyebrows", "lifted eyebrows")),
        (dict(AU4=0.9), ("brows lowered", True), ("furrowed eyebrows", "a deep frown")),
        (dict(AU12=0.9), ("smile closed", True), ("a wide smile",)),
        (dict(AU26=0.5), ("jaw dropped", False), ("a parted mouth",)),
        (dict(AU9=0.8), ("nose wrinkled", True), ("a deeply wrinkled nose", "a scrunched nose")),
    ],
)
def test_words_for_the_face_are_true(units, feature, words):
    clip = facts_with(expression=units)
    assert clip.face == (feature,)
    for caption in english.write(clip, np.random.default_rng(0))["overall"]:
        assert any(word in caption for word in words), caption


def test_a_face_at_rest_is_called_so():
    captions = english.write(facts_with(expression={}, emotion="neutral"), np.random.default_rng(0))["overall"]
    assert all("eyebrows" in caption and not re.search("raised|frown|smile", caption) for caption in captions)


def test_without_a_face_nothing_is_seen(corpora):
    for spec, captions in corpora["en"]:
        if not spec.has_video:
            seen = re.compile(r"\b(face|eyes?|eyebrows|mouth|smile|lips?|nose|bearded|glasses|long-haired|looks)\b")
            assert not any(seen.search(c) for refs in captions.values() for c in refs), captions


def test_every_emotion_and_intensity_has_words_of_its_own(corpora):
    words = collections.defaultdict(set)
    for spec, captions in corpora["en"]:
        words[spec.emotion, spec.intensity] |= set(WORD.findall(captions["emotion"][0].lower()))
    for emotion in EMOTIONS[1:]:
        assert words[emotion, "strong"] - words[emotion, "mild"] and words[emotion, "mild"] - words[emotion, "strong"]


@pytest.fixture(scope="module")
def rationales(corpora):
    """(clip, rationale, its sentences) by language."""
    ends = {"en": r"(?<=[.]) ", "zh": "(?<=。)(?=.)"}
    return {
        language: [(spec, text, re.split(ends[language], text)) for spec, _ in clips for text in [rationale_of(spec)]]
        for language, clips in corpora.items()
    }


@pytest.mark.parametrize("language", ["en", "zh"])
def test_rationales_say_what_each_modality_shows_and_what_follows(rationales, language):
    for spec, text, sentences in rationales[language]:
        shown = [spec.shown("audio")[0], *([spec.shown("video")[0]] if spec.has_video else []), spec.emotion]
        assert [first_emotion_word(sentence) for sentence in sentences] == shown, (spec, text)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_parts_of_structured_answers_name_the_emotion_where_they_should(corpora, language):
    for spec, _ in corpora[language][:400]:
        parts = attributes_of(spec)
        assert ("vis_desc" in parts) == spec.has_video
        assert parts["step1"].startswith(parts["aud_desc"]) and parts["step1"].endswith(parts.get("vis_desc", ""))
        assert first_emotion_word(parts["step2"]) == spec.emotion
        if language == "en":  # calm brows are called so
            assert {first_emotion_word(parts[name]) for name in ("aud_desc", "step1", "step3")} == {None}
        negative = spec.emotion in ("sad", "angry", "disgusted", "fearful")
        assert (("is negative" if language == "en" else "是消极") in parts["step3"]) == negative


@pytest.mark.parametrize("language, grammar", [("en", english), ("zh", chinese)])
def test_rationales_name_cues_that_were_rendered_and_no_others(rationales, language, grammar):
    named = set()
    for spec, text, sentences in rationales[language]:
        clip = facts_of_clip(spec)
        parts = [(sentences[0], grammar.VOICE, clip.voice), (sentences[1], grammar.FACE, clip.face)]
        for sentence, table, features in parts[: 1 + clip.has_face]:
            true = {word for name, strong in features for word in table[name][strong]}
            told = {word for both in table.values() for words in both for word in words if _names(word, sentence)}
            assert all(any(word in other for other in true) for word in told), text  # "loud" is part of "very loud"
            assert bool(told) == bool(features), text
            named |= told
        assert any(_names(word, sentences[0]) for word in grammar.TEMPO[clip.tempo]), text
    assert len(named) > 40  # most wordings occur
    assert len({text for _, text, _ in rationales[language]}) > 0.9 * CLIPS


def _names(words: str, sentence: str) -> bool:
    return re.search(words if re.search("[\u3400-\u9fff]", words) else rf"\b{words}\b", sentence) is not None
