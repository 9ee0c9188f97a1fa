"""Right, nearly right and wrong answers; what would be judged by nothing is None, and what is malformed earns 0."""

import json
import time

import pytest

from mecap_jax.rewards.accuracy import SetF1Reward, accuracy, fold_name, set_f1, split_words
from mecap_jax.rewards.base import RewardError, Sample
from mecap_jax.rewards.modality_order import dominant_modality, modality_order
from mecap_jax.rewards.wheels import load_wheels

CLASSES = {"happy": "happy", "joy": "happy", "sad": "sad", "fear": "fear"}


def normalise(text):
    return CLASSES.get(text.lower().strip("."))


@pytest.mark.parametrize(
    "answer, gold, exact, graded",
    [
        ("Happy.", "joy", 1, 1),
        ("sad", "happy", 0, 0.25),
        ("happy or sad", "happy", 0, 0),
        ("", "happy", 0, 0),
        (None, "happy", 0, 0),
        ("happy", None, None, None),
        ("happy", "hangry", None, None),
        (None, None, None, None),
    ],
)
def test_right_wrong_and_near(answer, gold, exact, graded):
    assert accuracy(answer, gold, normalise) == exact
    assert accuracy(answer, gold, normalise, lambda first, second: 1.0 if first == second else 0.25) == graded


MAPPING = {
    "format_mapping": {
        "Happy": ["happy"],
        "happily": ["happy"],
        "proud": ["proud"],
        "glad": ["glad"],
        "sad": ["sad"],
        "odd": ["odd"],
    },
    "raw_mapping": {"happy": ["happy"], "proud": ["proud"], "glad": ["zeal", "happy"], "sad": ["sad"], "odd": ["odd"]},
    "wheel_map_whole": {
        "wheel2": {"level1": {"happy": "joy", "sad": "sorrow"}, "level2": {"happy": "happy", "sad": "sad"}},
        "wheel1": {
            "level1": {"happy": "joy", "proud": "joy", "zeal": "power", "sad": "sorrow"},
            "level2": {"happy": "happy", "proud": "proud", "zeal": "zeal", "sad": "sad"},
        },
    },
}


@pytest.fixture
def mapping(tmp_path):
    path = tmp_path / "wheels.json"
    path.write_text(json.dumps(MAPPING))
    return path


def test_words_reach_the_wheels_over_forms_and_synonyms(mapping):
    first, second = load_wheels(mapping).wheels
    assert first == {"happy": "joy", "happily": "joy", "proud": "joy", "glad": "joy", "sad": "sorrow"}
    assert second == {"happy": "joy", "happily": "joy", "glad": "joy", "sad": "sorrow"}
    assert load_wheels(mapping, "level2").wheels[0]["proud"] == "proud"


@pytest.mark.parametrize(
    "answer, gold, expected",
    [
        ("happily", ["Glad"], 1),
        ("sad", ["happy"], 0),
        ("happy, sad", ["happy"], 2 / 3),
        ("[happy; Happy; glad]", ["happy"], 1),  # one class, however often
        ("happy, shoe", ["happy"], 2 / 3),  # a word that no wheel knows is wrong
        ("proud", ["happy"], (1 + 0) / 2),  # the second wheel does not have it
        ("happy", ["proud"], 1),  # only the first wheel knows the gold word
        ("happy", ["shoe"], None),
        ("happy", [], None),
        ("", ["happy"], 0),
        (None, ["happy"], 0),
    ],
)
def test_set_f1(mapping, answer, gold, expected):
    value = set_f1(answer, gold, load_wheels(mapping))
    assert value == (expected if expected is None else pytest.approx(expected))


def test_the_reward_of_words_reads_the_label_as_a_list(mapping):
    reward = SetF1Reward("answer", load_wheels(mapping))
    samples = [Sample("", True, "", "clip", (), "happy, sad", 0, fields) for fields in ({"answer": "sad, glad"}, {})]
    assert reward(samples) == [1, 0]
    assert reward([Sample("", True, "", "clip", (), None, 0, {"answer": "sad"})]) == [None]


def test_trying_every_word_earns_less_than_the_right_one(mapping):
    wheels = load_wheels(mapping)
    assert set_f1(", ".join(["happy", "sad", *map(str, range(50))]), ["happy"], wheels) < 0.05
    assert set_f1("happy", ["happy"], wheels) == 1


def test_lists_in_whatever_form():
    assert split_words("Happy, proud.") == split_words("['happy', 'proud']") == ["happy", "proud"]
    assert split_words("高兴、自豪。") == ["高兴", "自豪"]
    assert split_words("Happy!, **proud**, “glad” (calm)") == ["happy", "proud", "glad” (calm"]
    assert split_words(" , ") == []


def test_hostile_names_take_linear_time():
    """Of quadratic work a megabyte of marks would cost an hour; a clip's label may be any text."""
    began = time.process_time()
    for marks in ("!" * 1_000_000, " *" * 500_000, "_" * 1_000_000):
        assert fold_name(f"{marks}Happy{marks}") == "happy"
        assert split_words(f"a{marks}b, sad{marks}")[-1] == "sad"
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "\x93", '{"format_mapping": 1, "raw_mapping": {}, "wheel_map_whole": {"w": {"level1": {}}}}'],
)
def test_a_mapping_that_is_none_is_named(tmp_path, text):
    path = tmp_path / "wheels.json"
    path.write_text(text)
    with pytest.raises(RewardError, match="holds no emotion wheels") as error:
        load_wheels(path)
    assert str(path) in str(error.value)
    with pytest.raises(RewardError, match="cannot be read"):
        load_wheels(tmp_path / "missing.json")
    with pytest.raises(RewardError, match="not 'level3'"):
        load_wheels(path, "level3")


@pytest.mark.parametrize(
    "fields, dominant, expected",
    [
        (("vis_desc", "aud_desc", "think"), "video", 1),
        (("aud_desc", "vis_desc", "think"), "video", -1),
        (("aud_desc", "vis_desc", "think"), "audio", 1),
        (("aud_desc", "vis_desc"), "both", 0.5),
        (("vis_desc", "aud_desc"), "both", 0.5),
        ((), "both", -1),
        ((), "audio", -1),
        (("think", "answer"), "audio", -1),
        (("vis_desc", "aud_desc"), None, None),
    ],
)
def test_modality_order(fields, dominant, expected):
    assert modality_order(fields, dominant) == expected


@pytest.mark.parametrize(
    "labels, dominant",
    [
        ({"multimodal": "sad", "audio": "sad", "video": "happy"}, "audio"),
        ({"multimodal": "sad", "audio": "neutral", "video": "sad"}, "video"),
        ({"multimodal": "sad", "audio": "sad", "video": "sad"}, "both"),
        ({"multimodal": "sad", "audio": "happy", "video": "happy"}, None),
        ({"multimodal": "sad", "audio": "sad"}, None),
        ({}, None),
    ],
)
def test_dominant_modality(labels, dominant):
    assert dominant_modality(labels) == dominant
