import dataclasses
import math

import numpy as np
import pytest

from mecap_jax.emotions import EMOTIONS
from mecap_jax.evaluation.stage import EvaluatedClip, compare, score_stage
from tests.evaluation.conftest import make_stage

CLIPS = [
    EvaluatedClip("a", "x", ("a happy voice",), "happy"),
    EvaluatedClip("b", "y", ("a sad voice", "sadness"), "sad"),
    EvaluatedClip("c", "y", ("an angry voice",), None),
]


def test_all_metrics_of_the_contract(meteor, corpus):
    result = make_stage(*corpus, accuracy=0.8, meteor=meteor)
    contract = (
        "bleu_1 bleu_2 bleu_3 bleu_4 rouge_l meteor cider_d sbert_similarity emotion_reward emotion_uar emotion_war "
        "emotion_word_uar retrieval vocabulary_size distinct_1 distinct_2 distinct_captions repetition mean_length"
    ).split()
    assert set(contract) <= set(result.metrics)
    assert all(math.isfinite(result.metrics[key]) for key in contract)
    intervals = result.confidence(resamples=200)
    assert set(intervals) == set(result.metrics)
    for key in contract:
        low, high = intervals[key]
        assert low <= result.metrics[key] <= high, key


def test_emotion_metrics_by_hand(no_java):
    coordinates = np.zeros((3, 7))
    coordinates[:, EMOTIONS.index("happy")] = 1
    captions = ["a glad voice", "a sad voice", "a voice"]
    result = score_stage(CLIPS, captions, EMOTIONS, coordinates=coordinates, rewards=np.array([1.0, 0.5, 0.0]))
    assert result.metrics["emotion_war"] == 0.5  # the clip without a label is left out
    assert result.metrics["emotion_word_uar"] == 1
    assert result.metrics["emotion_reward"] == 0.5
    assert result.predicted == ("happy",) * 3


def test_a_label_without_an_anchor_counts_as_missed(no_java):
    result = score_stage(CLIPS, ["happy", "sad", "calm"], ("happy", "angry"), coordinates=np.eye(2)[[0, 0, 1]])
    assert result.classes == ("happy", "angry", "sad")
    assert result.metrics["emotion_uar"] == 0.5 and result.metrics["emotion_war"] == 0.5
    assert result.confusion.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert result.metrics["emotion_word_uar"] == 1  # a word needs no anchor


def test_an_empty_caption_expresses_no_emotion(no_java):
    coordinates = np.eye(7)[[EMOTIONS.index("happy"), EMOTIONS.index("sad"), 0]]
    result = score_stage(CLIPS, ["", "a sad voice", " "], EMOTIONS, coordinates=coordinates)
    assert result.predicted == (None, "sad", None)
    assert result.metrics["emotion_uar"] == 0.5


def test_what_was_not_given_is_unavailable_with_a_reason(no_java):
    unlabelled = [dataclasses.replace(clip, label=None) for clip in CLIPS]
    result = score_stage(unlabelled, ["a", "b", "c"], EMOTIONS)
    assert result.confusion is None
    for key in ("emotion_uar", "emotion_word_uar", "emotion_reward", "meteor", "sbert_similarity"):
        assert result.metrics[key] is None and result.unavailable[key]
        assert result.confidence(10)[key] is None
    alike = [dataclasses.replace(clip, label="sad") for clip in CLIPS]
    assert "same emotion" in score_stage(alike, ["a", "b", "c"], EMOTIONS).unavailable["retrieval"]


def test_a_stage_against_itself_and_against_a_better_one(no_java, corpus):
    worse, better = make_stage(*corpus, accuracy=0.3), make_stage(*corpus, accuracy=0.95)
    for difference in compare(worse, worse).values():
        assert difference.value == 0 and difference.interval == (0, 0)
    gain = compare(better, worse)["emotion_uar"]
    assert gain.value == pytest.approx(better.metrics["emotion_uar"] - worse.metrics["emotion_uar"])
    assert gain.interval[0] > 0


def test_stages_that_do_not_compare(no_java, corpus):
    clips, captions = corpus
    whole, part = make_stage(clips, captions, 0.8), make_stage(clips[1:], captions[1:], 0.8)
    with pytest.raises(ValueError, match="only on the same clips"):
        compare(whole, part)
    with pytest.raises(ValueError, match="'words' and 'ptb' do not compare"):
        compare(whole, dataclasses.replace(whole, tokenisation="ptb"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"captions": ["a"]}, "1 captions for 3 clips"),
        ({"coordinates": np.zeros((2, 7))}, "2 emotion coordinates for 3 clips"),
        ({"rewards": np.array([0.0, np.nan, 1.0])}, "reward of clip 'b' is not finite"),
        ({"clips": [CLIPS[0], CLIPS[1], CLIPS[0]]}, "clip 'a' occurs twice"),
    ],
)
def test_bad_input_is_named(no_java, changes, message):
    arguments = {"clips": CLIPS, "captions": ["a", "b", "c"], "classes": EMOTIONS} | changes
    with pytest.raises(ValueError, match=message):
        score_stage(**arguments)
