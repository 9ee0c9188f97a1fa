"""Emotions that lie close together are similar, opposites and the middle are not."""

import numpy as np
import pytest

from mecap_jax.config import ConfigError
from mecap_jax.tasks.coordinates import coordinates, similarity
from mecap_jax.tasks.labels import label_set

PLUTCHIK = similarity(coordinates("plutchik", label_set("mafw")))


def test_similarity_is_that_of_a_wheel():
    labels = label_set("mafw").labels
    for first in labels:
        assert PLUTCHIK(first, first) == 1
        for second in labels:
            assert PLUTCHIK(first, second) == PLUTCHIK(second, first)
            assert 0 <= PLUTCHIK(first, second) <= 0.5 or first == second
    assert PLUTCHIK("angry", "contemptuous") > PLUTCHIK("angry", "disgusted") > 0
    assert PLUTCHIK("anxious", "fearful") > PLUTCHIK("surprised", "fearful") > 0
    for opposites in (("happy", "sad"), ("angry", "fearful")):
        assert PLUTCHIK(*opposites) == 0


def test_the_middle_is_no_safe_answer():
    basic = ("happy", "sad", "angry", "fearful", "surprised", "disgusted")
    assert [PLUTCHIK("neutral", label) for label in basic] == pytest.approx([0] * 6)


def test_labels_off_the_table_are_like_themselves_only():
    assert PLUTCHIK("helpless", "helpless") == 1
    assert PLUTCHIK("helpless", "sad") == 0


def test_mikels_by_valence_and_arousal():
    places = coordinates("mikels", label_set("mikels"))
    assert len(places) == 8
    similar = similarity(places)
    assert similar("amused", "excited") == similar("angry", "fearful") == 0.5  # signs do not tell them apart
    assert similar("amused", "sad") == similar("amused", "contentment") == 0


@pytest.mark.parametrize("suffix, mark", [(".csv", ","), (".tsv", "\t")])
def test_a_table_of_ones_own(tmp_path, suffix, mark):
    path = tmp_path / f"vad{suffix}"
    rows = [("Term", "Valence", "Arousal", "Dominance"), ("Anger", ".2", ".9", ".6"), ("joy", "1", ".8", ".7"), ()]
    path.write_text("\n".join(mark.join(row) for row in rows))
    places = coordinates(str(path), label_set("meld"))
    assert {k: v.tolist() for k, v in places.items()} == {"angry": [0.2, 0.9, 0.6], "happy": [1, 0.8, 0.7]}


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "need columns"),
        ("word,valence\nanger,1", "need columns"),
        ("word,valence,arousal\nanger,1,much", "line 2: no word with numbers"),
        ("word,valence,arousal\njoy,1,1\nanger,1,nan", "line 3: no word with numbers"),
        ("word,valence,arousal\nanger,1", "line 2: no word with numbers"),
        ("word,valence,arousal\n" + "a" * 200_000, "cannot be read: field larger than"),
        ("word,valence,arousal\nanger,1,1", "fewer than two of the labels"),
    ],
)
def test_a_table_that_is_none_is_named(tmp_path, text, message):
    path = tmp_path / "vad.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        coordinates(str(path), label_set("meld"))
    assert str(path) in str(error.value)


def test_what_there_is_not():
    with pytest.raises(ConfigError, match="no coordinates 'nrc'.*'plutchik'"):
        coordinates("nrc", label_set("meld"))
    with pytest.raises(ConfigError, match="cannot be read"):
        coordinates("missing.csv", label_set("meld"))
    assert np.linalg.norm(coordinates("plutchik", label_set("goemotions"))["grief"]) == pytest.approx(1)
