"""An answer counts for the class that it names, however it is spelt, and for none where it names none or several."""

import pytest

from mecap_jax.config import ConfigError
from mecap_jax.emotions import EMOTIONS, canonical_label
from mecap_jax.tasks.labels import LabelSet, label_set

SIZES = {
    "emotiontalk": 7,
    "dfew": 7,
    "mafw": 11,
    "ravdess": 8,
    "meld": 7,
    "iemocap": 4,
    "iemocap_6": 6,
    "crema_d": 6,
    "mikels": 8,
    "emotion6": 6,
    "goemotions": 28,
}


@pytest.mark.parametrize("name", SIZES)
def test_every_set_reads_its_own_names(name):
    known = label_set(name)
    assert len(known.labels) == len(set(known.labels)) == SIZES[name]
    for label in known.labels:
        assert canonical_label(label) == label  # what a clip carries is what the set holds
        for language in ("en", "zh"):
            shown = known.display(label, language)
            for text in (shown, shown.upper(), f" **{shown}**.", f'"{shown}"\n', f"《{shown}》。", label):
                assert known.normalise(text) == label


def test_the_sets_hold_the_labels_that_clips_carry():
    assert set(label_set("emotiontalk").labels) == set(label_set("dfew").labels) == set(EMOTIONS)
    assert label_set("goemotions").labels[17] == "happy"  # joy, by its published index
    assert label_set("goemotions").names["en"][27] == "neutral"


@pytest.mark.parametrize(
    "name, text, label",
    [
        ("dfew", "Happy.", "happy"),
        ("dfew", "happiness", "happy"),
        ("dfew", "**angry**", "angry"),
        ("dfew", "Anger!", "angry"),
        ("dfew", "furious", "angry"),
        ("dfew", "sadly", "sad"),
        ("dfew", "unhappy", "sad"),
        ("dfew", "ｈａｐｐｙ", "happy"),
        ("dfew", "'scared'", "fearful"),
        ("dfew", "高兴", "happy"),
        ("dfew", "生气。", "angry"),
        ("mafw", "contemptuous", "contemptuous"),
        ("mafw", "anxious", "anxious"),
        ("mafw", "Helpless", "helpless"),
        ("mafw", "disappointed", "disappointed"),
        ("iemocap", "excited", "happy"),
        ("iemocap_6", "excited", "excited"),
        ("ravdess", "calmly", "calm"),
        ("emotiontalk", "平静", "neutral"),
        ("ravdess", "平静", "calm"),
        ("goemotions", "annoyed", "annoyance"),
        ("goemotions", "nervous", "nervousness"),
        ("mikels", "content", "contentment"),
    ],
)
def test_case_inflection_synonyms_and_marks(name, text, label):
    assert label_set(name).normalise(text) == label


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "...",
        "not happy",
        "happy or sad",
        "happy, sad",
        "happy/sad",
        "happy happy",
        "somewhat happy",
        "no emotion is happy",
        "fearless",
        "不高兴",
        "happy" * 1000,
        " " * 1_000_000 + "happy",
        "anxious",  # an emotion of its own, which DFEW does not have
        "contempt",
        "bored",
        "shoe",
    ],
)
def test_what_names_no_class_or_several_is_no_answer(text):
    assert label_set("dfew").normalise(text) is None


def test_a_word_that_two_classes_share_is_no_answer():
    shared = LabelSet("", ("angry", "disgusted", "fearful", "surprised", "confused"), {}, {})
    assert shared.normalise("bewildered") is None  # of surprise and of confusion
    assert label_set("dfew").normalise("bewildered") == "surprised"


def test_a_set_of_ones_own(tmp_path):
    path = tmp_path / "moods.toml"
    path.write_text('labels = [["Hangry"], ["so so", "一般"], ["angry", "怒"]]', encoding="utf-8")
    own = label_set(str(path))
    assert own.name == "moods"
    assert own.labels == ("hangry", "so so", "angry")
    assert own.names == {"en": ("Hangry", "so so", "angry"), "zh": ("Hangry", "一般", "怒")}
    assert [own.normalise(text) for text in ("hangrily", "So_so!", "一般", "furious", "sad")] == [
        "hangry",
        "so so",
        "so so",
        "angry",
        None,
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        ("labels = [", "cannot be read"),
        ("", "must be two or more lists of names"),
        ('labels = [["happy"]]', "must be two or more lists of names"),
        ('labels = ["happy", "sad"]', "must be two or more lists of names"),
        ('labels = [["happy"], [""]]', "must be two or more lists of names"),
        ('labels = [["happy"], [1]]', "must be two or more lists of names"),
        ('labels = [["happy"], ["sad"], ["joy"]]', "'happy' stands for two labels"),
        ('labels = [["happy", "low"], ["sad", "low"]]', "'low' stands for two labels"),
    ],
)
def test_a_file_that_is_no_label_set_is_named(tmp_path, text, message):
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        label_set(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_set_is_named_with_those_that_there_are():
    with pytest.raises(ConfigError, match=r"no label set 'mafv'.*'mafw'"):
        label_set("mafv")
    with pytest.raises(ConfigError, match="cannot be read"):
        label_set("missing.toml")
