"""Captions made from labels name the emotion, say only what is known, vary, and are the same every time."""

import re

import pytest

from mecap_jax.data.importers import template_captions
from mecap_jax.data.utterance import Utterance
from mecap_jax.emotion_words import first_emotion_word
from mecap_jax.emotions import LABELS


def made(language="en", id="a", label="sad", captions=None, **attributes):
    utterance = Utterance(
        id=id,
        dataset="d",
        split="train",
        speaker="s",
        labels={"multimodal": label} if label else {},
        captions=captions or {},
        attributes=attributes,
    )
    return template_captions.fill(utterance, language).captions


@pytest.mark.parametrize("label", [*LABELS, "hangry", "abandonment"])
def test_every_caption_names_the_emotion_and_no_other(label):
    for number in range(40):
        gender, intensity = ("female", "male", "?")[number % 3], ("strong", "normal")[number % 2]
        captions = made(id=str(number), label=label, gender=gender, intensity=intensity)
        assert [len(captions[kind]) for kind in ("emotion", "overall")] == [1, 5]
        assert len(set(captions["overall"])) == 5
        for caption in (*captions["emotion"], *captions["overall"]):
            assert first_emotion_word(caption, {*LABELS, label}) == label, caption
            assert re.fullmatch(r"[A-Z][a-z ,'-]+\.", caption) and "  " not in caption, caption
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption), caption


@pytest.mark.parametrize("label", LABELS)
def test_chinese_captions_name_no_other_emotion(label):
    for number in range(20):
        captions = made("zh", id=str(number), label=label, gender="male", intensity="strong")
        assert len(set(captions["overall"])) == 5
        for caption in captions["overall"]:
            assert first_emotion_word(caption, LABELS) in (label, None) and re.search("[\u4e00-\u9fff]", caption)
    assert "“hangry”" in "".join(made("zh", label="hangry")["overall"])


def test_gender_is_said_where_it_is_known_and_nowhere_else():
    texts = {}
    for gender in ("Female", "m", "unknown"):
        captions = [made(id=str(i), gender=gender) for i in range(40)]
        texts[gender] = " ".join(text for kinds in captions for of_kind in kinds.values() for text in of_kind).lower()
    assert re.search(r"\bwoman\b", texts["Female"]) and not re.search(r"\b(man|male|his)\b", texts["Female"])
    assert re.search(r"\bman\b", texts["m"]) and not re.search(r"\b(woman|female|her)\b", texts["m"])
    assert not re.search(r"\b(man|male|his|woman|female|her)\b", texts["unknown"])
    assert "speaker" not in made(label="sad") and "speaker" in made(gender="male")


def test_intensity_changes_the_words():
    strong = {t for i in range(40) for t in made(id=str(i), intensity="strong")["overall"]}
    normal = {t for i in range(40) for t in made(id=str(i), intensity="normal")["overall"]}
    assert not strong & normal


def test_what_a_clip_has_stays_and_a_clip_without_label_gets_nothing():
    captions = made(captions={"overall": ("Mine.",)})
    assert captions["overall"] == ("Mine.",) and captions["emotion"]
    assert made(label=None) == {}
    assert made(id="b") == made(id="b") != made(id="c")
