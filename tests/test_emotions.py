"""Labels are an open set; a caption's first emotion word is read in the classes that a corpus has."""

import pytest

from mecap_jax.emotion_words import first_emotion_word
from mecap_jax.emotions import EMOTIONS, LABELS, LEXICON, canonical_label, phrases


@pytest.mark.parametrize(
    "raw, label",
    [
        ("Anger", "angry"),
        ("HAPPINESS", "happy"),
        (" surprise ", "surprised"),
        ("angrily", "angry"),
        ("pleasant_surprise", "surprised"),
        ("boredom", "bored"),
        ("Ärger/Wut", "angry"),
        ("Contempt", "contemptuous"),
        ("anxiety", "anxious"),
        ("worry", "worried"),
        ("helplessness", "helpless"),
        ("disappointment", "disappointed"),
        ("frustration", "frustrated"),
        ("惊讶", "surprised"),
        ("无聊", "bored"),
        ("Hangry", "hangry"),
        ("so  so", "so so"),
        ("3", "3"),
    ],
)
def test_spellings_of_one_emotion_are_one_label_and_others_stay(raw, label):
    assert canonical_label(raw) == label
    assert canonical_label(label) == label


def test_an_empty_label_is_none():
    with pytest.raises(ValueError, match="empty"):
        canonical_label(" _ ")


def test_emotions_that_are_alike_stay_two():
    assert len({canonical_label(label) for label in ("fear", "anxiety", "worried", "helpless", "despair")}) == 5


@pytest.mark.parametrize(
    "caption, labels, expected",
    [
        ("A calm, peaceful voice.", (), "neutral"),
        ("A calm, peaceful voice, close to tears.", (), "sad"),
        ("A peaceful voice.", ("calm",), "calm"),
        ("He sounds weary, then sad.", (), "sad"),
        ("He sounds weary, then sad.", ("bored",), "bored"),
        ("Contempt in every word.", (), "disgusted"),
        ("Contempt in every word.", ("contemptuous",), "contemptuous"),
        ("An anxious woman.", EMOTIONS, "fearful"),
        ("An anxious woman.", (*EMOTIONS, "anxious"), "anxious"),
        ("She is not bored but happy.", ("bored",), "happy"),
        ("He speaks hangrily.", ("hangry",), "hangry"),
        ("His resentfulness shows.", ("resentful",), "resentful"),
        ("Spoken in a so so mood, sadly.", ("so so",), "so so"),
        ("她听起来很平静。", (), "neutral"),
        ("她听起来很平静。", ("calm",), "calm"),
        ("她听起来很郁闷。", ("郁闷",), "郁闷"),
        ("Die Stimme klingt ärgerlich.", ("ärgerlich",), "ärgerlich"),
    ],
)
def test_the_first_word_is_read_in_the_classes_that_there_are(caption, labels, expected):
    assert first_emotion_word(caption, labels) == expected


def test_every_label_is_a_word_of_itself_among_all_others():
    labels = (*LABELS, "hangry", "melancholy", "fury")
    assert [first_emotion_word(f"It sounds {label}.", labels) for label in labels] == list(labels)


@pytest.mark.parametrize("label", LABELS)
def test_phrases_name_their_own_emotion_and_no_other(label):
    assert all(LEXICON[language][label] for language in ("en", "zh"))
    for strong in (False, True):
        states, nouns = phrases(label, strong=strong)
        assert states and nouns
        for phrase in (*states, *nouns):
            assert first_emotion_word(phrase, LABELS) == label, phrase
    for state in phrases(label, "zh")[0]:
        assert first_emotion_word(state, LABELS) in (label, None), state


def test_phrases_of_a_label_that_is_not_known_are_made_from_it():
    assert phrases("hangry") == (("hangry",), ("a hangry mood", "a hangry tone"))
    assert phrases("abandonment", strong=True) == (("very full of abandonment",), ("intense abandonment",))
    assert phrases("3") == (("like “3”",), ("the emotion “3”",))
    assert phrases("hangry", "zh") == (("“hangry”",), ())
