import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, recall_score

from mecap_jax.emotions import EMOTIONS
from mecap_jax.evaluation.recognition import emotion_word_recognition, nearest_anchors, recognition

CLASSES = ("happy", "sad", "angry")


def test_recalls_equal_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    gold = [EMOTIONS[k] for k in rng.integers(0, 7, size=200)]
    predicted = [truth if rng.random() < 0.6 else EMOTIONS[rng.integers(0, 7)] for truth in gold]
    found = recognition(predicted, gold, EMOTIONS)
    assert found.uar.value == pytest.approx(balanced_accuracy_score(gold, predicted))
    assert found.war.value == pytest.approx(accuracy_score(gold, predicted))
    np.testing.assert_array_equal(found.confusion, confusion_matrix(gold, predicted, labels=EMOTIONS))
    recalls = [found.recalls[label].value for label in EMOTIONS]
    np.testing.assert_allclose(recalls, recall_score(gold, predicted, labels=EMOTIONS, average=None))


def test_absent_classes_missing_labels_and_unnamed_predictions():
    gold = ["happy", "happy", "happy", "sad", None]
    predicted = ["happy", "happy", None, "angry", "sad"]
    found = recognition(predicted, gold, CLASSES)
    assert found.uar.value == pytest.approx((2 / 3 + 0) / 2)  # no gold "angry": two classes
    assert found.war.value == pytest.approx(2 / 4)
    assert {label: recall.value for label, recall in found.recalls.items()} == {"happy": pytest.approx(2 / 3), "sad": 0}
    assert found.confusion.tolist() == [[2, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_nothing_labelled_is_undefined():
    found = recognition(["happy"], [None], CLASSES)
    assert np.isnan(found.uar.value) and np.isnan(found.war.value)


def test_first_emotion_word_decides():
    captions = ["She is sad, not angry", "A furious and happy voice", "A voice", "He sounds disgusted"]
    found = emotion_word_recognition(captions, ["sad", "angry", "happy", "angry"], CLASSES)
    assert found.war.value == 0.5  # no word, and a class outside the label set, are both wrong
    assert found.confusion.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_nearest_anchor():
    assert nearest_anchors(np.array([[0.1, 0.3, -1], [0.5, 0.2, 0.1]]), CLASSES) == ["sad", "happy"]
    with pytest.raises(ValueError, match=r"shape \(1, 2\), expected \[clips, 3\]"):
        nearest_anchors(np.zeros((1, 2)), CLASSES)
    with pytest.raises(ValueError, match="caption 1 are not finite"):
        nearest_anchors(np.array([[0, 0, 0], [0, np.nan, 0]]), CLASSES)


@pytest.mark.parametrize(
    ("predicted", "gold", "message"),
    [
        (["happy"], [], "1 predicted classes but 0"),
        (["joyous"], ["happy"], r"predicted classes \['joyous'\]"),
        (["happy"], ["calm"], r"gold classes \['calm'\]"),
    ],
)
def test_bad_input_is_named(predicted, gold, message):
    with pytest.raises(ValueError, match=message):
        recognition(predicted, gold, CLASSES)
