"""Sentences as ERV's pattern splits them, in linear time; guards see repetition, whatever its form."""

import re
import time

import pytest

from mecap_jax.rewards.sentences import (
    distinct_phrase_share,
    distinct_sentence_share,
    distinct_sentences,
    length_reward,
    split_sentences,
)


@pytest.mark.parametrize(
    "text",
    [
        "One. Two! Three?",
        "One.Two. three",
        'He said "no. never!" Then he left.',
        'He said "no." She "yes. yes." and left. Done.',
        '"All. of it."',
        "Mr. Smith...  is here.\n\nNow.",
        "No end",
    ],
)
def test_balanced_text_is_split_as_the_published_pattern_does(text):
    quadratic = re.split(r'(?<=[.!?])\s+(?=(?:[^"]*"[^"]*")*[^"]*$)', text.strip())
    assert split_sentences(text) == quadratic


@pytest.mark.parametrize(
    "text, sentences",
    [
        ("", []),
        (" ... ! ", []),
        ("他笑了。声音很高！为什么？", ["他笑了。", "声音很高！", "为什么？"]),
        ("他说：“好。走吧。”声音很低。", ["他说：“好。走吧。”声音很低。"]),
        ("She said “no. never” and left. He stayed.", ["She said “no. never” and left.", "He stayed."]),
        ('A 5" mark. Then. More.', ['A 5" mark.', "Then.", "More."]),
    ],
)
def test_beyond_the_pattern(text, sentences):
    assert split_sentences(text) == sentences


@pytest.mark.parametrize("piece", ["a. ", '"a. ', ". ", '" ', "。", "a 。“"])
def test_hostile_text_takes_linear_time(piece):
    start = time.process_time()
    distinct_sentence_share(piece * 300_000)
    assert time.process_time() - start < 10


def test_guards_see_repetition():
    assert distinct_sentences("He sobs. HE SOBS! Sobs he, he sobs. She beams.") == ["He sobs.", "She beams."]
    assert distinct_sentence_share("He sobs. She beams.") == 1
    assert distinct_sentence_share("He sobs. " * 4) == 1 / 4
    assert distinct_sentence_share("") == 0
    assert distinct_phrase_share("the voice is low and the face is still") == 1
    assert distinct_phrase_share("a b c d a b c d") == 4 / 5
    assert distinct_phrase_share("sad " * 100) == pytest.approx(1 / 97)
    assert distinct_phrase_share("sad") == 1
    assert distinct_phrase_share("...") == 0


@pytest.mark.parametrize("words, value", [(0, 0), (5, 0.5), (10, 1), (20, 1), (30, 0.5), (40, 0), (99, 0)])
def test_length(words, value):
    assert length_reward("so " * words, least=10, most=20) == value
    assert length_reward("好" * words, least=10, most=20) == value


def test_length_bounds_are_checked():
    for least, most in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="expected 0 <= least"):
            length_reward("a", least, most)
