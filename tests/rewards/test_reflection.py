"""EMO-R3's reflective reward, case by case: (consistency + coherence) / 2, and nothing for what cannot be read."""

import pytest

from mecap_jax.rewards.reflection import coherence_question, consistency, consistency_question, reflective_reward
from mecap_jax.tasks.labels import label_set
from mecap_jax.tasks.protocols import PROTOCOLS

MIKELS = label_set("mikels")
FIELDS = {"step1": "A dog runs.", "step2": "One laughs.", "step3": "positive, high", "boxed": "amusement"}


# Reply about the media, reply about the text, gold label, own answer, target, the value by hand.
BY_HAND = [
    ("Yes", "amusement", "amusement", "amused", "gold", (1 + 1) / 2),
    ("yes.", "Amusement.", "amusement", "amused", "gold", (1 + 1) / 2),
    ("No", "amusement", "amusement", "amused", "gold", (0 + 1) / 2),
    ("Yes", "awe", "amusement", "amused", "gold", (1 + 0) / 2),
    ("No", "awe", "amusement", "amused", "gold", 0),
    # Gold against own: a wrong answer whose text expresses the gold emotion, and one whose text expresses itself.
    ("Yes", "amusement", "amusement", "awe", "gold", (1 + 1) / 2),
    ("Yes", "awe", "amusement", "awe", "gold", (1 + 0) / 2),
    ("Yes", "awe", "amusement", "awe", "own", (1 + 1) / 2),
    ("Yes", "amusement", "amusement", "awe", "own", (1 + 0) / 2),
    ("Yes", "awe", "amusement", None, "own", (1 + 0) / 2),
    ("No", "awe", "amusement", None, "own", 0),
    # Replies that the published code gives half a point.
    ("", "amusement", "amusement", "amused", "gold", (0 + 1) / 2),
    ("Maybe", "amusement", "amusement", "amused", "gold", (0 + 1) / 2),
    ("Yes", "", "amusement", "amused", "gold", (1 + 0) / 2),
    ("Yes", "none", "amusement", "amused", "gold", (1 + 0) / 2),
    ("", "", "amusement", "amused", "gold", 0),
    # What it takes for yes because the letters occur.
    ("No, yesterday.", "amusement", "amusement", "amused", "gold", (0 + 1) / 2),
    ("Not at all, yes-man.", "amusement", "amusement", "amused", "gold", (0 + 1) / 2),
    ("Yesterday", "amusement", "amusement", "amused", "gold", (0 + 1) / 2),
    ("Nobody says yes", "amusement", "amusement", "amused", "gold", (0 + 1) / 2),
    # Replies with words around.
    ("Yes, it does.", "**amusement**", "amusement", "amused", "gold", (1 + 1) / 2),
    (" \n**Yes**", '"Amusement"', "amusement", "amused", "gold", (1 + 1) / 2),
    ("Yes", "amused", "amusement", "amused", "gold", (1 + 1) / 2),
    ("Yes", "amusement or awe", "amusement", "amused", "gold", (1 + 0) / 2),
    ("Yes", "not amusement", "amusement", "amused", "gold", (1 + 0) / 2),
    ("是", "逗乐", "amusement", "amused", "gold", (1 + 1) / 2),
    ("是的。", "愤怒", "anger", "angry", "gold", (1 + 1) / 2),
    ("不是", "愤怒", "anger", "angry", "gold", (0 + 1) / 2),
    ("否", "恐惧", "anger", "angry", "gold", 0),
    ("对的，", "恐惧", "anger", "angry", "gold", (1 + 0) / 2),
    # What only begins like yes in Chinese: "whether it is", "sorry, I cannot say", "the other one".
    ("是否如实，无法判断", "恐惧", "anger", "angry", "gold", 0),
    ("对不起，我无法判断。", "恐惧", "anger", "angry", "gold", 0),
    ("对方", "恐惧", "anger", "angry", "gold", 0),
    # The policy was not asked, or there is nothing to judge by.
    (None, None, "amusement", "amused", "gold", 0),
    (None, "amusement", "amusement", "amused", "gold", (0 + 1) / 2),
    ("Yes", "amusement", None, "amused", "gold", None),
    ("Yes", "amusement", "hangry", "amused", "own", None),
]


@pytest.mark.parametrize("consistent, coherent, gold, own, target, expected", BY_HAND)
def test_by_hand(consistent, coherent, gold, own, target, expected):
    value = reflective_reward(FIELDS, consistent, coherent, gold, own, MIKELS.normalise, target)
    assert value == expected


def test_a_malformed_answer_is_asked_nothing_and_earns_nothing():
    malformed = PROTOCOLS["steps_boxed"].parse(r"<step1>None</step1>\boxed{anger}").fields
    assert consistency_question(malformed) is coherence_question(malformed, MIKELS.names["en"]) is None
    assert reflective_reward(malformed, "Yes", "anger", "anger", "angry", MIKELS.normalise) == 0
    assert reflective_reward(malformed, "Yes", "anger", None, "angry", MIKELS.normalise) is None


@pytest.mark.parametrize("language", ["en", "zh"])
def test_questions_hold_the_steps_and_the_choices(language):
    seen = consistency_question(FIELDS, language)
    assert FIELDS["step1"] in seen and FIELDS["step2"] not in seen
    told = coherence_question(FIELDS, MIKELS.names[language], language)
    assert all(text in told for text in (FIELDS["step1"], FIELDS["step2"], *MIKELS.names[language]))
    assert FIELDS["step3"] not in told and r"\boxed" not in told  # the conclusion must not give it away


def test_steps_with_braces_are_text_like_any_other():
    fields = FIELDS | {"step1": "A {text} and {0}."}
    assert "A {text} and {0}." in consistency_question(fields)
    assert "A {text} and {0}." in coherence_question(fields, ["awe"])


def test_replies():
    assert [consistency(reply) for reply in ("YES!", "对", "不", "n", None)] == [1, 1, 0, 0, 0]
    with pytest.raises(ValueError, match="target must be one of"):
        reflective_reward(FIELDS, "Yes", "awe", "awe", "awe", MIKELS.normalise, "both")
