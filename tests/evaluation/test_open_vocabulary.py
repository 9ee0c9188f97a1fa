"""Sets of words against sets of words: means over clips, then F, then over wheels."""

import numpy as np
import pytest

from mecap_jax.evaluation.intervals import bootstrap
from mecap_jax.evaluation.open_vocabulary import mer2024_scores, set_scores, wheel_scores
from mecap_jax.evaluation.predictions import PredictionsError
from mecap_jax.rewards.wheels import EmotionWheels

FIRST, SECOND = {"happy": "joy", "glad": "joy", "sad": "sorrow", "angry": "anger"}, {"happy": "up", "sad": "down"}
WHEELS = EmotionWheels((FIRST, SECOND))
GOLD = [["happy", "sad"], ["angry"], ["glad"], ["shoe"]]
PREDICTED = [["Happy", "happy", "angry"], [], ["happy", "box"], ["happy"]]


def test_by_hand():
    scores = wheel_scores(PREDICTED, GOLD, WHEELS)
    # First wheel, clips 0 to 2 have gold classes: {joy, anger} against {joy, sorrow}, nothing, {joy} against {joy}.
    first = (1 / 2 + 0 + 1) / 3, (1 / 2 + 0 + 1) / 3
    # Second wheel, clip 0 alone: {up} against {up, down}.
    second = 1, 1 / 2
    assert scores.precision.value == pytest.approx((first[0] + second[0]) / 2)
    assert scores.recall.value == pytest.approx((first[1] + second[1]) / 2)
    assert scores.f1.value == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores.average.value == pytest.approx((1 / 2 + 3 / 4) / 2)


def test_a_wheel_that_knows_no_word_of_any_label_says_nothing():
    wheels = EmotionWheels((FIRST, {"calm": "rest"}))
    assert (
        wheel_scores(PREDICTED, GOLD, wheels).f1.value
        == wheel_scores(PREDICTED, GOLD, EmotionWheels((FIRST,))).f1.value
    )


def test_nothing_right_and_nothing_to_judge():
    assert wheel_scores([["sad"]], [["happy"]], WHEELS).f1.value == 0
    assert np.isnan(wheel_scores([["sad"]], [["shoe"]], WHEELS).f1.value)
    assert bootstrap({"f1": wheel_scores([["sad"]] * 4, [["happy"]] * 4, WHEELS).f1}, list("abcd")) == {"f1": (0, 0)}
    with pytest.raises(ValueError, match="predicted sets by wheel"):
        set_scores([[set()]], [[set(), set()]])


@pytest.fixture
def released(tmp_path):
    """MER2024's layout: tables of lists in quotes, and a string of lists a clip."""
    (tmp_path / "openset-synonym").mkdir()
    truth = "name,openset\na,\"['Happy', 'sad']\"\nb,\"['angry']\"\nc,\"['calm']\"\n"
    (tmp_path / "check-openset.csv").write_text(truth)
    said = 'name,openset\na,"[\'glad\', \'angry\']"\nb,"[\'mad\', ""don\'t care""]"\nc,\n'
    (tmp_path / "predict-openset.csv").write_text(said)
    for clip, groups in {"a": "[['happy', 'glad'], ['sad'], ['angry']]", "b": "[['mad', 'angry']]", "c": "[]"}.items():
        np.save(tmp_path / "openset-synonym" / f"{clip}.npy", groups)
    return tmp_path


def test_mer2024_s_example_by_hand(released):
    scores = mer2024_scores(released)
    # a: {happy, angry} against {happy, sad}; b: {mad, don, t care} against {mad}; c: nothing against {calm}.
    assert scores.precision.value == pytest.approx((1 / 2 + 1 / 3 + 0) / 3)
    assert scores.recall.value == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert scores.average.value == pytest.approx((5 / 18 + 1 / 2) / 2)


@pytest.mark.parametrize(
    "path, content, message",
    [
        ("check-openset.csv", "word\nx\n", "line 2: expected columns"),
        ("check-openset.csv", "name,openset\na,\n", "no clip 'b'"),
        ("openset-synonym/a.npy", "nothing", "cannot be read"),
    ],
)
def test_files_that_are_not_what_they_should_be_are_named(released, path, content, message):
    (released / path).write_text(content)
    with pytest.raises(PredictionsError, match=message):
        mer2024_scores(released)


def test_pickled_objects_are_not_read(released):
    np.save(released / "openset-synonym" / "a.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(PredictionsError, match="a.npy cannot be read"):
        mer2024_scores(released)
    np.save(released / "openset-synonym" / "a.npy", np.zeros(3))
    with pytest.raises(PredictionsError, match="a.npy: expected one string"):
        mer2024_scores(released)


def test_what_is_not_there_is_named(released, tmp_path):
    with pytest.raises(PredictionsError, match="check-openset.csv cannot be read"):
        mer2024_scores(tmp_path / "elsewhere")
    for path in (released / "openset-synonym").glob("*.npy"):
        path.unlink()
    with pytest.raises(PredictionsError, match="no groups of synonyms"):
        mer2024_scores(released)
