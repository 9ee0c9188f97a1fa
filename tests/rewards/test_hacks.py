"""Answers that would earn what they do not deserve earn no more than an honest one, and malformed ones nothing."""

import numpy as np
import pytest

from mecap_jax.rewards.accuracy import AccuracyReward
from mecap_jax.rewards.base import Sample
from mecap_jax.rewards.explanation import ExplanationReward, Verifier
from mecap_jax.rewards.guards import FormatReward, LengthReward, RepetitionReward

LABELS = ("neutral", "happy", "sad")
HONEST = "The voice is high and happy. The mouth smiles. The room is large. He sobs sadly."


def probabilities(texts):
    """Of words that stand in a text; neutral where none does."""
    named = np.array([[word in text for word in LABELS[1:]] for text in texts])
    return 0.9 * np.hstack([~named.any(axis=1, keepdims=True), named])


def normalise(text):
    return text if text in LABELS else None


REWARDS = (
    FormatReward(),
    AccuracyReward("answer", normalise),
    ExplanationReward(Verifier(probabilities, LABELS), "think", "answer", normalise, least=3),
    LengthReward("think", 10, 40),
    RepetitionReward("think"),
)


def rewards(fields, label="happy"):
    sample = Sample("", True, "", "clip", (), label, 0, fields)
    return {reward.name: reward([sample])[0] for reward in REWARDS}


def test_an_honest_answer():
    earned = rewards({"think": HONEST, "answer": "happy"})
    assert earned == {"format": 1, "accuracy": 1, "explanation": 1 / 3, "length": 1, "repetition": 1}


def test_a_malformed_answer_earns_nothing():
    """Also under every variant of the explanation reward, and whatever the label is."""
    for label in LABELS:
        assert set(rewards({}, label).values()) == {0}
    for variant in ("sentences_with_neutral", "whole_text", "top_1", "consistency", "chain"):
        reward = ExplanationReward(Verifier(probabilities, LABELS), "think", "answer", normalise, variant)
        assert reward([Sample("", True, "", "clip", (), "happy", 0)]) == [0]


def test_without_a_label_nothing_is_judged_right_or_wrong():
    earned = rewards({"think": HONEST, "answer": "happy"}, label=None)
    assert earned["accuracy"] is None and earned["explanation"] is None
    assert earned["format"] == 1


@pytest.mark.parametrize(
    "think, guard",
    [
        ("The voice is high and happy. " * 20, "repetition"),  # one sentence, again and again
        ("happy " * 40, "repetition"),  # one word, again and again
        ("happy", "explanation"),  # one word
        ("It is happy!", "explanation"),  # one sentence
        ("So happy. " + "happy and happy and " * 100, "length"),
    ],
)
def test_what_says_less_earns_less_than_saying_it_once(think, guard):
    earned, honest = rewards({"think": think, "answer": "happy"}), rewards({"think": HONEST, "answer": "happy"})
    assert earned[guard] <= min(0.35, honest[guard])
    assert earned["explanation"] <= 1 / 3 + 1e-9 or guard != "explanation"


def test_repeating_a_sentence_does_not_raise_the_explanation_reward():
    again = HONEST + " The voice is high and happy." * 9
    honest, repeated = (rewards({"think": text, "answer": "happy"}) for text in (HONEST, again))
    assert repeated["explanation"] == honest["explanation"]
    assert repeated["repetition"] < 0.5


@pytest.mark.parametrize("answer", ["happy or sad", "not happy", "happy sad neutral", "", "happy" * 99])
def test_an_answer_that_hedges_is_wrong(answer):
    assert rewards({"think": HONEST, "answer": answer})["accuracy"] == 0


def test_bad_arguments_are_refused_at_once():
    with pytest.raises(ValueError, match="variant must be one of"):
        ExplanationReward(Verifier(probabilities, LABELS), "think", "answer", normalise, "think_half")
    with pytest.raises(ValueError, match="expected 0 <= least"):
        LengthReward("think", 5, 4)


def test_graded_accuracy():
    reward = AccuracyReward("answer", normalise, lambda first, second: 1.0 if first == second else 0.3)
    samples = [Sample("", True, "", "clip", (), "happy", 0, {"answer": answer}) for answer in ("happy", "sad", "odd")]
    assert reward(samples) == [1, 0.3, 0]
