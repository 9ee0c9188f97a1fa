"""What a clip teaches is what the parser reads back; what is malformed is wrong in every metric."""

import types

import numpy as np
import pytest

from mecap_jax.config import ConfigError, SyntheticConfig
from mecap_jax.data.synthetic.corpus import attributes_of, labels_of, plan, rationale_of
from mecap_jax.evaluation.faithfulness import QUADRANTS
from mecap_jax.evaluation.intervals import bootstrap
from mecap_jax.rewards.explanation import Verifier
from mecap_jax.tasks.coordinates import coordinates
from mecap_jax.tasks.labels import label_set
from mecap_jax.tasks.protocols import PROTOCOLS
from mecap_jax.tasks.recognition import Recognition, classifier_verifier, verifier_judge
from tests.data.test_checks import clip

TASK = Recognition(PROTOCOLS["think_answer"], label_set("dfew"))
CHINESE = Recognition(PROTOCOLS["think_answer"], label_set("mafw"), "zh")


def row(label="angry", rationale="The voice is loud."):
    return clip(0, labels={} if label is None else {"multimodal": label}, rationale=rationale)


def test_which_clips_can_be_used():
    assert TASK.usable(row()) is None
    assert TASK.usable(row(None)) == "has no emotion label"
    assert TASK.usable(row("anxious")) == "has the label 'anxious', which is not in the label set 'dfew'"
    assert CHINESE.usable(row("anxious")) is None


@pytest.mark.parametrize("task, answer", [(TASK, "angry"), (CHINESE, "愤怒")])
def test_a_target_is_an_answer_that_the_request_asks_for(task, answer):
    (target,) = task.targets(row())
    assert target == f"<think>The voice is loud.</think>\n<answer>{answer}</answer>"
    fields, label = task.read(target)
    assert fields["think"] == "The voice is loud." and label == "angry"
    request = task.request(row())
    assert all(name in request for name in task.labels.names[task.language])
    assert request.endswith(task.protocol.instruction(task.language, task.labels.names[task.language]))


@pytest.mark.parametrize("rationale", [None, "", "...", "a </think> b", "<answer>sad</answer>"])
def test_a_clip_without_a_rationale_that_can_stand_there_teaches_no_answer(rationale):
    assert TASK.targets(row(rationale=rationale)) == ()


def test_labels_alone_need_no_rationale():
    task = Recognition(PROTOCOLS["answer"], label_set("dfew"))
    assert task.targets(row("surprised", None)) == ("<answer>surprise</answer>",)
    assert task.targets(row("anxious", None)) == task.targets(row(None, None)) == ()
    assert "eea" not in task.score(["<answer>sad</answer>"], ["sad"], judge=lambda texts: ["sad"]).statistics


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", ["answer", "think_answer", "modalities_think_answer", "steps_boxed"])
def test_the_synthetic_corpus_teaches_every_protocol(name, language):
    task = Recognition(PROTOCOLS[name], label_set("emotiontalk"), language)
    specs = [spec for spec in plan(SyntheticConfig(clips=60, caption_language=language)) if spec.has_video]
    for spec in specs:
        row = clip(0, labels=labels_of(spec), attributes=attributes_of(spec), rationale=rationale_of(spec))
        assert task.usable(row) is None
        (target,) = task.targets(row)
        assert task.read(target)[1] == spec.emotion


def answer(think, label):
    return f"<think>{think}</think><answer>{label}</answer>"


TEXTS = [
    answer("It sounds angry.", "Anger."),  # right, explained by the right emotion
    answer("It sounds happy.", "angry"),  # right, explained by another
    answer("It sounds sad.", "happy"),  # wrong, explained by the right one
    answer("It sounds happy.", "happy"),  # wrong twice, consistently
    answer("It sounds sad.", "sad or happy"),  # no answer
    "It sounds sad. The answer is sad.",  # malformed
]
GOLD = ["angry", "angry", "sad", "sad", "sad", "sad"]


def judge(texts):
    assert texts
    return [next((label for label in ("angry", "happy", "sad") if label in text), None) for text in texts]


def test_scores_by_hand():
    scores = TASK.score(TEXTS, GOLD, judge)
    assert scores.answers == ("angry", "angry", "happy", "happy", None, None)
    values = {key: statistic.value for key, statistic in scores.statistics.items()}
    assert values["format"] == pytest.approx(5 / 6)
    assert values["war"] == pytest.approx(2 / 6)
    assert values["uar"] == pytest.approx((1 + 0) / 2)
    assert values["recall/angry"] == 1 and values["recall/sad"] == 0
    assert (values["eea"], values["fcr"], values["epc"]) == pytest.approx((3 / 6, 1 / 6, 2 / 6))
    assert [values[name] for name in QUADRANTS] == pytest.approx([1 / 6, 1 / 6, 2 / 6, 2 / 6])
    assert values["label_kl"] > values["label_js"] > 0
    assert scores.agreement.confusion.sum() == 4
    assert set(bootstrap(scores.statistics, list("aabbcc"), 50)) == set(values)


def test_errors_of_valence_and_arousal_want_a_table():
    labels = label_set("mikels")
    task = Recognition(PROTOCOLS["answer"], labels, places=coordinates("mikels", labels))
    texts = [f"<answer>{label}</answer>" for label in ("anger", "sadness", "awe")] + ["anger"]
    scores = task.score(texts, ["fear"] * 4)
    # Fear is -/high as anger is; sadness is -/low, awe +/low, and malformed answers are as far off as can be.
    assert scores.statistics["affect_error"].value == pytest.approx((0 + 2 + 8**0.5 + 8**0.5) / 4)
    assert "affect_error" not in TASK.score(TEXTS, GOLD).statistics


def test_nothing_that_can_be_parsed_is_all_wrong():
    scores = TASK.score(["", "sad"], ["sad", "happy"], judge)
    values = {key: statistic.value for key, statistic in scores.statistics.items()}
    assert {values[key] for key in ("format", "war", "uar", "eea", "fcr", "epc", *QUADRANTS[:3])} == {0}


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="1 answers for 0 clips"):
        TASK.score([""], [])
    with pytest.raises(ValueError, match="gold label 'anxious' is not in the label set 'dfew'"):
        TASK.score([""], ["anxious"])


def test_a_verifier_judges_by_the_classes_of_the_set():
    columns = ("approval", "angry", "sad")
    verifier = Verifier(lambda texts: np.array([[0.9, 0.1, 0.2], [0.9, 0.3, 0.2]])[: len(texts)], columns)
    assert verifier_judge(verifier, TASK.labels)(["a", "b"]) == ["sad", "angry"]
    assert verifier_judge(verifier, TASK.labels)([]) == []
    assert verifier_judge(Verifier(verifier.probabilities, ("a", "b", "c")), TASK.labels)(["a"]) == [None]


def classifier(*labels):
    return types.SimpleNamespace(name="judge", labels=labels, predict=lambda texts: np.eye(len(labels))[: len(texts)])


def test_a_classifier_s_classes_become_labels():
    assert classifier_verifier(classifier("joy", "anger")).labels == ("happy", "angry")
    unnamed = classifier_verifier(classifier(*(f"LABEL_{k}" for k in range(28)))).labels
    assert [unnamed[k] for k in (17, 2, 11, 14, 25, 26, 27)] == list(
        ("happy", "angry", "disgusted", "fearful", "sad", "surprised", "neutral")
    )
    assert [unnamed[k] for k in (19, 16, 9, 10)] == ["anxious", "helpless", "disappointed", "contemptuous"]
    with pytest.raises(ConfigError, match="'judge': its 2 classes have no names"):
        classifier_verifier(classifier("LABEL_0", "LABEL_1"))
