"""What a caption asserts is read, not what it denies, concedes or talks about."""

import json
import time
from pathlib import Path

import pytest

from mecap_jax.emotion_words import first_emotion_word


@pytest.mark.parametrize(
    "caption, emotion",
    [
        # inflections and derived forms
        ("He answers angrily.", "angry"),
        ("An angrier tone each time.", "angry"),
        ("Visibly saddened by the news.", "sad"),
        ("She is upset\u2014no, livid.", "angry"),
        ("A cheerless, tearful voice.", "sad"),
        # negation
        ("He is not angry at all.", None),
        ("There is no trace of joy in her voice.", None),
        ("Without a hint of fear, he laughs.", "happy"),
        ("Neither angry nor sad, simply neutral.", "neutral"),
        ("Far from happy, she sounds dejected.", "sad"),
        ("He is hardly what one would call cheerful; he sounds beaten.", "sad"),
        ("She isn't scared, she is furious.", "angry"),
        ("Joy is entirely absent.", None),
        ("She doesn\u2019t seem surprised.", None),
        # what looks like negation
        ("Not only angry but enraged.", "angry"),
        ("He cannot hide his anger.", "angry"),
        ("Barely contained rage.", "angry"),
        ("No doubt he is happy.", "happy"),
        ("Nothing but contempt.", "disgusted"),
        ("She speaks not without fear.", "fearful"),
        # concession, pretence, correction, tinges
        ("Although she claims to be happy, she is plainly furious.", "angry"),
        ("Feigned cheer over real grief.", "sad"),
        ("She sounds happy, but in truth it is fear.", "fearful"),
        ("A hint of sadness, and above all anger.", "angry"),
        ("Despite the joyful tune, the singer mourns.", "sad"),
        # side by side, the first one counts
        ("A happy face, but the voice sounds angry.", "happy"),
        # topics
        ("He talks about his sad childhood in a calm voice.", "neutral"),
        ("A happy birthday song, sung slowly.", None),
        # calm is neutral where nothing else is named; a calm brow says nothing
        ("A calm and serene delivery.", "neutral"),
        ("She has calm eyebrows and speaks fast.", None),
        ("A low voice, speaking slowly.", None),
        ("", None),
    ],
)
def test_english(caption, emotion):
    assert first_emotion_word(caption) == emotion


@pytest.mark.parametrize(
    "caption, emotion",
    [
        ("他听起来很难过。", "sad"),
        ("她并不生气。", None),
        ("他毫无惧色，语气愤怒。", "angry"),
        ("声音里没有一丝喜悦，只有悲伤。", "sad"),
        ("他非常惊讶。", "surprised"),
        ("她忍不住大笑，开心极了。", "happy"),
        ("他掩饰不住内心的恐惧。", "fearful"),
        ("虽然看起来高兴，但其实很伤心。", "sad"),
        ("故作镇定，声音里满是害怕。", "fearful"),
        ("略带厌恶，主要是愤怒。", "angry"),
        ("她讲述悲伤的往事，语气平静。", "neutral"),
        ("火冒三丈地质问。", "angry"),
        ("他语速很快，声音低沉。", None),
    ],
)
def test_chinese(caption, emotion):
    assert first_emotion_word(caption) == emotion


@pytest.mark.parametrize("name, count, most_wrong", [("free_captions", 200, 20), ("free_captions_seen", 300, 6)])
def test_free_captions_are_read_as_a_person_reads_them(name, count, most_wrong):
    """Written and labelled by somebody who did not know the lexicon; the first ones were looked at when nothing was
    changed any more, on the others it was made (`docs/reproduction.md`)."""
    text = Path(__file__).with_name(f"{name}.jsonl").read_text(encoding="utf-8")
    captions = [json.loads(line) for line in text.splitlines()]
    wrong = [c for c in captions if first_emotion_word(c["caption"]) != c["label"]]
    assert len(captions) == count and len(wrong) <= most_wrong, wrong


@pytest.mark.parametrize(
    "piece",
    ["not sad but angry, ", "but ", "no ", "a hint of ", "虽然难过但", "不", ",,", "(", "in fact "],
)
def test_hostile_text_takes_no_time(piece):
    start = time.process_time()
    first_emotion_word(piece * 200_000)
    assert time.process_time() - start < 1
