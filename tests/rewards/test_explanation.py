"""ERV's explanation reward against values worked out by hand from the paper's formula, and texts that try to cheat it.

The classifier is a table: what each sentence speaks for is written down, so that M, N and N_nn can be counted.
"""

import numpy as np
import pytest

from mecap_jax.rewards.explanation import (
    VARIANTS,
    Verifier,
    anchor_verifier,
    explanation_rewards,
    verifier_labels,
)

LABELS = ("neutral", "happy", "sad", "angry", "excited", "proud")
TABLE = {
    "She beams.": {"happy": 0.9},  # {happy}
    "She skips along!": {"happy": 0.6, "excited": 0.5},  # {happy, excited}
    "She laughs in triumph.": {"proud": 0.3, "happy": 0.5, "excited": 0.6},  # the top two: {excited, happy}
    "He grins and shouts.": {"happy": 0.6, "proud": 0.7, "excited": 0.8},  # the top two: {excited, proud}
    "He sobs.": {"sad": 0.8},  # {sad}
    "He clenches his fists?": {"angry": 0.7},  # {angry}
    "Both hands shake.": {"angry": 0.4, "sad": 0.3},  # {angry, sad}
    "The room is large.": {"neutral": 0.9},  # {neutral}
    "It is noon.": {"neutral": 0.7},  # {neutral}
    "He says little.": {"neutral": 0.6, "sad": 0.2},  # {neutral, sad}
    "A pause.": {"sad": 0.5, "neutral": 0.4, "angry": 0.3},  # the top two: {sad, neutral}
    "A chair.": {"neutral": 0.05, "sad": 0.04},  # nothing above .1: the likeliest, {neutral}
    "A slight smile.": {"happy": 0.08, "neutral": 0.05},  # nothing above .1: the likeliest, {happy}
    "A raised brow.": {"happy": 0.1, "neutral": 0.3},  # .1 is not above .1: {neutral}
    "no full stop": {"happy": 0.9},  # {happy}
    'He said "Fine. Go."': {"angry": 0.8},  # one sentence, {angry}
    "他笑了。": {"happy": 0.9},  # {happy}
    "房间很大。": {"neutral": 0.9},  # {neutral}
}


class Table:
    """Knows the sentences above; counts its calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, texts):
        assert texts, "a tokenizer of nothing would crash"
        self.calls.append(list(texts))
        return np.array([[self.row(text).get(label, 0.01) for label in LABELS] for text in texts], np.float32)

    @staticmethod
    def row(text):
        known = {" ".join(sentence.split()): row for sentence, row in TABLE.items()}
        return known.get(" ".join(text.split())) or {"excited": 0.9}


def reward(rationale, gold, **arguments):
    return explanation_rewards([rationale], [gold], Verifier(Table(), LABELS), **arguments)[0]


# Rationale, gold label, the value by hand. M: sentences for the gold emotion; N: all; N_nn: for more than neutral.
BY_HAND = [
    ("She beams.", "happy", 1 / 1),
    ("He sobs.", "happy", 0 / 1),
    ("She beams. He sobs.", "happy", 1 / 2),
    ("She beams. He sobs.", "sad", 1 / 2),
    ("She beams. He sobs. Both hands shake.", "sad", 2 / 3),
    ("She beams. He sobs. Both hands shake.", "angry", 1 / 3),
    ("She beams. He sobs. Both hands shake.", "proud", 0 / 3),
    # Neutral sentences do not count in the denominator of another emotion.
    ("She beams. The room is large.", "happy", 1 / 1),
    ("The room is large. It is noon. She beams. He sobs.", "happy", 1 / 2),
    ("The room is large. It is noon.", "happy", 0.0),  # N_nn is 0
    ("The room is large.", "sad", 0.0),
    # Neutral beside another emotion is not neutral alone.
    ("He says little.", "sad", 1 / 1),
    ("He says little. She beams.", "sad", 1 / 2),
    ("He says little. She beams.", "happy", 1 / 2),
    ("A pause.", "sad", 1 / 1),
    # A neutral clip: M / N.
    ("The room is large.", "neutral", 1 / 1),
    ("The room is large. She beams.", "neutral", 1 / 2),
    ("The room is large. It is noon. She beams.", "neutral", 2 / 3),
    ("He says little.", "neutral", 1 / 1),
    ("She beams. He sobs.", "neutral", 0 / 2),
    ("A pause. The room is large. He sobs. She beams.", "neutral", 2 / 4),
    # At most the two likeliest.
    ("She skips along!", "excited", 1 / 1),
    ("She laughs in triumph.", "happy", 1 / 1),
    ("She laughs in triumph.", "proud", 0 / 1),
    ("He grins and shouts.", "happy", 0 / 1),
    ("He grins and shouts.", "proud", 1 / 1),
    ("A pause.", "angry", 0 / 1),
    # None above the threshold: the likeliest.
    ("A chair.", "neutral", 1 / 1),
    ("A chair.", "sad", 0.0),
    ("A slight smile.", "happy", 1 / 1),
    ("A slight smile. He sobs.", "happy", 1 / 2),
    # The threshold itself is not above it.
    ("A raised brow.", "happy", 0.0),
    ("A raised brow. She beams.", "happy", 1 / 1),
    # How sentences end.
    ("She skips along! He clenches his fists? no full stop", "happy", 2 / 3),
    ("She beams.\n\n  He sobs.\n", "happy", 1 / 2),
    ('She beams. He said "Fine. Go."', "angry", 1 / 2),
    ('He said "Fine. Go."', "angry", 1 / 1),
    ("他笑了。房间很大。", "happy", 1 / 1),
    ("他笑了。房间很大。", "neutral", 1 / 2),
    # Nothing to read, or nothing to judge it by.
    ("", "happy", 0.0),
    (" \n", "neutral", 0.0),
    ("...", "neutral", 0.0),
    (None, "happy", 0.0),
    ("She beams.", None, None),
    ("She beams.", "ashamed", None),
    (None, None, None),
]


@pytest.mark.parametrize("rationale, gold, expected", BY_HAND)
def test_the_paper_s_formula(rationale, gold, expected):
    assert reward(rationale, gold) == (expected if expected is None else pytest.approx(expected))


def test_a_batch_is_classified_at_once_and_gives_each_its_own():
    table = Table()
    texts, gold, expected = zip(*BY_HAND)
    assert explanation_rewards(texts, gold, Verifier(table, LABELS)) == pytest.approx(list(expected), nan_ok=True)
    assert len(table.calls) == 1


def test_without_any_text_the_classifier_is_left_alone():
    table = Table()
    for variant in VARIANTS:
        rewards = explanation_rewards([None, "", "!"], ["sad"] * 3, Verifier(table, LABELS), variant, ["sad"] * 3)
        assert rewards == [0, 0, 0]
    assert explanation_rewards([], [], Verifier(table, LABELS)) == []
    assert not table.calls


@pytest.mark.parametrize("variant", VARIANTS)
def test_repeating_a_sentence_earns_nothing(variant):
    honest = "She beams. He sobs. The room is large."
    for hack in (honest + " She beams." * 9, "She beams. SHE beams! Beams, she. " + honest, honest + " !" * 9):
        pair = explanation_rewards([honest, hack], ["happy"] * 2, Verifier(Table(), LABELS), variant, ["happy"] * 2)
        assert pair[1] <= pair[0]


@pytest.mark.parametrize(
    "hack",  # of four sentences ERV's pattern finds one, and three
    [
        'She beams. He sobs. He clenches his fists? Both hands shake."',
        'She beams. " He sobs. He clenches his fists? Both hands shake.',
    ],
)
def test_a_stray_quote_does_not_make_one_sentence_of_all(hack):
    assert reward(hack, "happy") == pytest.approx(1 / 4)


def test_a_lone_sentence_earns_its_share_of_what_is_asked():
    assert reward("She beams.", "happy", least=4) == 1 / 4
    assert reward("She beams. She skips along! The room is large.", "happy", least=4) == 2 / 4
    assert reward("The room is large.", "neutral", least=2) == 1 / 2
    assert reward("She beams. She skips along! He sobs.", "happy", least=2) == pytest.approx(2 / 3)


TEXT = "She beams. The room is large."
TABLE[TEXT] = {"happy": 0.6, "proud": 0.55, "sad": 0.52}  # as a whole: {happy, proud} above .5 at most two


@pytest.mark.parametrize(
    "variant, gold, answer, expected",
    [
        ("sentences_with_neutral", "happy", None, 1 / 2),
        ("sentences_with_neutral", "neutral", None, 1 / 2),
        ("whole_text", "happy", None, 1),
        ("whole_text", "proud", None, 1),
        ("whole_text", "sad", None, 0),
        ("top_1", "happy", None, 1),
        ("top_1", "proud", None, 0),
        ("consistency", "sad", "happy", 1),
        ("consistency", "happy", "sad", 0),
        ("consistency", "happy", None, 0),
        ("chain", "happy", "happy", 1),
        ("chain", "happy", "sad", 0),
        ("chain", "proud", "proud", 0),
        ("chain", "happy", None, 0),
    ],
)
def test_variants(variant, gold, answer, expected):
    assert reward(TEXT, gold, variant=variant, answers=[answer]) == expected


def test_an_answer_that_cannot_be_verified_is_no_way_out():
    assert reward(TEXT, "happy", variant="consistency", answers=["ashamed"]) == 0


def test_erv_s_classifier_by_its_classes():
    assert verifier_labels(("joy", "grief", "nervousness", "disapproval", "neutral", "remorse")) == (
        "happy",
        "helpless",
        "anxious",
        "contemptuous",
        "neutral",
        "remorse",
    )


def test_anchors_verify_what_a_sentence_speaks_for(encoder, anchors):
    verifier = anchor_verifier(encoder, anchors["captions"])
    told = {
        "It sounds furious.": "angry",
        "The loud, rough voice sounds irritated.": "angry",
        "One sees wide eyes and stretched lips: it looks afraid.": "fearful",
        "The face has a broad smile, which looks happy.": "happy",
        "The voice is slow and falling, which sounds sorrowful.": "sad",
    }
    assert [emotion in said for emotion, said in zip(told.values(), verifier.emotions(list(told), 0.1))] == [True] * 5
    text = "She talks briskly in a high voice: it sounds joyful. The face has a wide smile, which looks happy."
    assert explanation_rewards([text, text], ["happy", "sad"], verifier) == [1, 0]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(variant="think"), "variant must be one of"),
        (dict(variant="chain"), "'chain' needs the answers"),
        (dict(answers=[]), "1 rationales, 1 labels, 0 answers"),
        (dict(least=0), "least 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        reward("She beams.", "happy", **arguments)
