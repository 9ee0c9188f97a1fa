import pytest

from mecap_jax.rewards.templates import template_sentences
from mecap_jax.rewards.validity import is_degenerate
from tests.rewards.captions import CAPTIONS
from tests.rewards.train_captions import TRAIN_CAPTIONS


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("... !", "empty"),
        ("forceful and forceful", "repeated word"),
        ("a very very sad voice", "repeated word"),
        ("Sad, sad and low.", "repeated word"),
        ("bitter and bitter words", "repeated word"),
        ("an angry voice angry voice", "repeated word"),
        ("the voice is sad the voice is sad", "repeated phrase"),
        ("She has a low sad voice and he has a low sad voice", "repeated phrase"),
        ("Very sad. He cries. Very sad.", "repeated sentence"),
        ("He is sad. The voice is low. He is sad.", "repeated sentence"),
        ("声音非常非常悲伤", "repeated word"),
        ("悲伤和悲伤", "repeated word"),
        ("他很很很生气", "repeated word"),
        ("说话人的声音很低。说话人的声音很低。", "repeated sentence"),
        ("说话人的声音低沉，说话人的声音颤抖", "repeated phrase"),
    ],
)
def test_degenerate_texts(text, reason):
    for variant in (text, text.upper(), text.replace(" ", "\n  ")):
        assert is_degenerate(variant, finished=True) == reason


@pytest.mark.parametrize(
    "text",
    [
        "sad",
        "The voice grows louder and louder.",
        "She asks again and again, more and more desperate.",
        "He had a sad voice, and the voice had little strength.",
        "A sad and low, low-pitched tone.",
        "他慢慢地说话，声音渐渐低下去。",
        "他一次又一次地叹气。",
        "明明白白的快乐",
        "说话人声音低沉，说话人很悲伤。",
    ],
)
def test_proper_texts(text):
    assert is_degenerate(text, finished=True) is None


def test_natural_captions_are_proper():
    phrases = template_sentences(tuple(CAPTIONS))
    every = [t for table in (CAPTIONS, TRAIN_CAPTIONS, phrases) for group in table.values() for t in group]
    assert {text: reason for text in every if (reason := is_degenerate(text, finished=True))} == {}


def test_text_that_was_cut_is_endless():
    assert is_degenerate("a low and halting", finished=False) == "endless"
    assert is_degenerate("", finished=False) == "empty"
