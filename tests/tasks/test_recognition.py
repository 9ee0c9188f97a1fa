"""What a clip teaches is what the parser reads back; what is malformed is wrong in every metric."""

import dataclasses
import json
import pickle
import types

import numpy as np
import pytest

from mecap_jax.config import ConfigError, SyntheticConfig, load
from mecap_jax.data.questions import Asked
from mecap_jax.data.synthetic.corpus import attributes_of, labels_of, plan, rationale_of
from mecap_jax.evaluation.faithfulness import QUADRANTS
from mecap_jax.evaluation.intervals import bootstrap
from mecap_jax.evaluation.report import write_report
from mecap_jax.rewards.anchors import build_anchors
from mecap_jax.rewards.base import Sample
from mecap_jax.rewards.explanation import Verifier
from mecap_jax.tasks.base import Answer, Judges
from mecap_jax.tasks.coordinates import coordinates
from mecap_jax.tasks.labels import label_set
from mecap_jax.tasks.protocols import LONGEST_ANSWER, MOST_WORDS, PROTOCOLS
from mecap_jax.tasks.recognition import Recognition
from mecap_jax.tasks.registry import make_task
from mecap_jax.tasks.verifiers import classifier_verifier, verifier_judge
from tests.data.test_checks import clip
from tests.rewards.conftest import TableEncoder

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
    fields = task.read(target)
    label = task.answer(fields)
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
        assert task.answer(task.read(target)) == spec.emotion


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


# --- as the task of a run -----------------------------------------------------------------------------------------


def configured(*overrides):
    return load("configs/r1_omni.py", overrides)


@pytest.mark.parametrize(
    "override, message",
    [
        ("task.protocol=caption", "'task.protocol': 'caption' has no answer; choose one of answer, think_answer"),
        ("task.protocol=tags", "'task.protocol': 'tags' has no answer"),
        ("task.labels=moods", "'task.labels': there is no label set 'moods'"),
        ("task.labels=moods.toml", "'task.labels': .*moods.toml"),
        ("task.places=moods", "'task.places': there are no coordinates 'moods'"),
    ],
)
def test_what_a_task_cannot_be_made_of_is_named(override, message):
    with pytest.raises(ConfigError, match=message):
        make_task(configured(override))


def test_a_task_reaches_a_reader_process():
    task = make_task(configured("task.places=plutchik"))
    again = pickle.loads(pickle.dumps(task))
    assert again.request(None) == task.request(None) and again.targets(row()) == task.targets(row()) != ()


def rewarded(completions, *overrides, judges=None, records=None):
    """What completions of a clip that is angry (or of these clips) earn, in total and by term."""
    config = configured(*overrides)
    task = make_task(config)
    records = records or [row()] * len(completions)
    asked = [Asked(record, task.request(record), "", task.targets(record)) for record in records]
    batch = task.rewards(config.grpo.reward, judges or Judges(None, None, ()))(
        [Sample.of(*pair, True, 0, task.read(pair[1])) for pair in zip(asked, completions, strict=True)]
    )
    assert batch.failures == {} and batch.degenerate == (None,) * len(completions)
    return batch


def test_r1_omni_adds_up_accuracy_and_format():
    batch = rewarded([answer("Loud, loud, loud: the voice, the voice.", "Anger"), answer("Low.", "sad"), "angry", ""])
    assert batch.total.tolist() == [2, 1, 0, 0]


HACKS = (
    answer("Loud.", "angry") + "<answer>sad</answer>",
    "<answer>angry</answer>" + answer("Loud.", "angry"),
    answer("Loud.", "angry or sad"),
    answer("", "angry"),
    answer("<answer>angry</answer>", "angry"),
    "<think>" * 2000 + answer("Loud.", "angry"),
    "I say " + answer("Loud.", "angry"),
)


@pytest.mark.parametrize("hack", HACKS)
def test_what_the_published_format_check_lets_pass_earns_no_accuracy(hack):
    assert rewarded([hack]).terms["accuracy"].tolist() == [0]


def test_near_misses_count_where_a_table_is_named():
    texts = [answer("Loud.", label) for label in ("angry", "disgusted", "happy")]
    batch = rewarded(texts, "grpo.reward.terms.accuracy.options={'similarity': 'plutchik'}")
    right, near, far = batch.terms["accuracy"]
    assert right == 1 and 0 < near < 1 and far < near
    with pytest.raises(ConfigError, match="'accuracy': there are no coordinates 'moods'"):
        rewarded(texts, "grpo.reward.terms.accuracy.options={'similarity': 'moods'}")


def test_an_explanation_counts_behind_a_right_answer_where_it_is_gated():
    encoder = TableEncoder({"it sounds angry.": [1, 0], "it sounds happy.": [0, 1], "rage": [1, 0], "joy": [0, 1]})
    anchors = build_anchors(encoder, {"angry": ["rage"], "happy": ["joy"]}, kind="templates", source="a test")
    texts = [answer(f"It sounds {said}.", label) for label in ("angry", "sad") for said in ("angry", "happy")]
    terms = "grpo.reward.terms=accuracy,format,explanation,repetition=0.5,length=0.5"
    judges = Judges(encoder, anchors, ())
    assert rewarded(texts, terms, judges=judges).terms["explanation"].tolist() == [1, 0, 1, 0]
    batch = rewarded(texts, terms, "grpo.reward.terms.explanation.gate=accuracy", judges=judges)
    assert batch.terms["explanation"].tolist() == [1, 0, 0, 0]
    assert batch.total.tolist() == [4, 3, 2, 2]
    with pytest.raises(ConfigError, match="'explanation': answers of this protocol have no part 'think'"):
        rewarded(texts, "task.protocol=answer", terms, judges=judges)
    with pytest.raises(ConfigError, match="'explanation': the variant must be one of"):
        rewarded(texts, terms, "grpo.reward.terms.explanation.options={'variant': 'all'}", judges=judges)
    with pytest.raises(ConfigError, match="'explanation': .*absent"):
        rewarded(texts, terms, "grpo.reward.terms.explanation.options={'verifier': 'absent'}", judges=judges)


def test_what_a_set_takes_for_one_class_is_one(tmp_path):
    """In answers, gold labels and what explanations speak for."""
    mine = tmp_path / "mine.toml"
    mine.write_text('labels = [["happy", "excited"], ["sad", "helpless"]]')
    encoder = TableEncoder({"it sounds excited.": [1, 0], "thrill": [1, 0], "gloom": [0, 1]})
    anchors = build_anchors(encoder, {"excited": ["thrill"], "sad": ["gloom"]}, kind="templates", source="a test")
    judges = Judges(encoder, anchors, ())
    settings = ("grpo.reward.terms=accuracy,explanation", f"task.labels={mine}")
    text, clips = answer("It sounds excited.", "happy"), [row("excited"), row("sad")]
    batch = rewarded([text, text], *settings, judges=judges, records=clips)
    assert batch.terms["accuracy"].tolist() == [1, 0] and batch.terms["explanation"].tolist() == [1, 0]
    result = make_task(configured(*settings)).evaluate([Answer(clip, text, True) for clip in clips], judges, None)
    assert [clip.label for clip in result.clips] == ["happy", "sad"] and result.predicted == ("happy", "happy")
    values = result.metrics
    assert (values["war"], values["eea"], values["fcr"], values["epc"]) == (0.5, 0.5, 0.5, 1)
    with pytest.raises(ConfigError, match="the verifier 'judge' is no path; write './judge'"):
        rewarded([text], *settings, "grpo.reward.terms.explanation.options={'verifier': 'judge'}", judges=judges)


def test_a_judge_that_cannot_be_loaded_is_named_before_training(tmp_path):
    config = configured(f"task.judge={tmp_path / 'absent'}")
    (problem,) = make_task(config).check(config, [row()], [row()], [row()]).problems
    assert problem.startswith("config key 'task.judge': ") and "absent" in problem
    config = configured(f"task.judge={tmp_path / 'absent'}", "task.protocol=answer")
    assert not make_task(config).check(config, [row()], [row()], [row()]).problems  # nobody explains


def test_explanations_that_no_judge_can_read_are_no_reward():
    chinese, english = [row(rationale="她的声音很响。")], [row()]
    plain, paid = configured(), configured("grpo.reward.terms=accuracy,explanation")
    for config, clips, problems, remarks in (
        (plain, english, 0, 0),
        (plain, chinese, 0, 1),
        (paid, chinese, 1, 1),
        (configured("grpo.reward.terms=explanation", "encoder.path=there"), chinese, 0, 0),
    ):
        found = make_task(config).check(config, clips, clips, clips)
        assert (len(found.problems), len(found.remarks)) == (problems, remarks)
        assert all("reads English only" in text for text in [*found.problems, *found.remarks])


def test_a_run_is_told_what_is_odd_about_its_clips():
    config = configured()
    train = [row("angry"), row("sad"), row("sad", rationale=None)]
    found = make_task(config).check(config, train, [row("happy")], train)
    assert found.problems == [] and found.remarks == [
        "labels that no training clip has: 'happy' (1 clips)",
        "1 of 3 training clips lack what an answer in the form 'think_answer' is made of; they are left to "
        "reinforcement learning",
    ]


# --- EMO-R3: steps, and a policy that reads them again ----------------------------------------------------------------

STEPS = {"step1": "One sees a frown.", "step2": "Such a person feels angry.", "step3": "It is negative."}


def structured(*overrides):
    return load("configs/emo_r3.py", overrides)


def still(label="angry", **parts):
    return clip(0, labels={"multimodal": label}, attributes=STEPS | parts)


def in_steps(label, **parts):
    fields = STEPS | parts
    return "\n".join(f"<{name}>{text}</{name}>" for name, text in fields.items()) + f"\n\\boxed{{{label}}}"


def test_steps_are_taught_asked_for_and_explain():
    task = make_task(structured())
    assert task.targets(still()) == (in_steps("angry"),) and task.targets(clip(0, labels={"multimodal": "sad"})) == ()
    fields = task.read(in_steps("angry"))
    assert task.answer(fields) == "angry" and task.explanation(fields) == " ".join(STEPS.values())
    assert all(mark in task.request(None) for mark in ("<step1>", "<step2>", "<step3>", r"\boxed{"))


def reflected(texts, replies, *overrides):
    config = structured(*overrides)
    task = make_task(config)
    asked = Asked(still(), task.request(still()), "", task.targets(still()))
    samples = [Sample.of(asked, text, True, 0, task.read(text)) for text in texts]
    if replies is not None:
        samples = [dataclasses.replace(sample, replies={"reflection": pair}) for sample, pair in zip(samples, replies)]
    reward = task.rewards(config.grpo.reward, Judges(None, None, ()))
    return reward, samples, reward(samples)


def test_emo_r3_weighs_accuracy_reflection_and_format():
    """(1 - l1 - l2) R_acc + l1 R_RER + l2 R_format, with l1 = l2 = 0.1."""
    texts = [in_steps("angry"), in_steps("sad"), in_steps("angry"), "angry"]
    replies = [("Yes", "angry"), ("yes", "angry"), ("No.", "sad"), (None, None)]
    _, _, batch = reflected(texts, replies)
    assert batch.terms["reflection"].tolist() == [1, 1, 0, 0]
    np.testing.assert_allclose(batch.total, [1.0, 0.2, 0.9, 0.0])
    # The model's own answer as what its text should express: a wrong answer that is wrong throughout.
    _, _, batch = reflected(texts, [("yes", "sad")] * 4, "grpo.reward.terms.reflection.options={'target': 'own'}")
    assert batch.terms["reflection"].tolist() == [0.5, 1, 0.5, 0]


def test_the_policy_is_asked_about_what_can_be_read_and_nothing_else():
    reward, samples, batch = reflected([in_steps("angry"), "angry"], None)
    (term,) = reward.asking
    about, told = term.questions(samples[0])
    assert STEPS["step1"] in about.text and STEPS["step2"] not in about.text
    assert all(text in told.text for text in (STEPS["step1"], STEPS["step2"], "happy", "disgust"))
    assert term.questions(samples[1]) == (None, None) and term.asks == (True, False)
    # In validation nobody is asked, and the term has nothing to say.
    assert np.isnan(batch.terms["reflection"]).all() and batch.failures == {}
    assert reflected([""], None, "grpo.reward.terms.reflection.weight=0")[0].asking == ()
    for option, words in (({"target": "all"}, "the target must be"), ({"reply_tokens": 0}, "at least 1")):
        with pytest.raises(ConfigError, match=f"'reflection': .*{words}"):
            reflected([""], None, f"grpo.reward.terms.reflection.options={option}")
    with pytest.raises(ConfigError, match="'reflection': answers of this protocol have no part 'step1'"):
        rewarded([""], "grpo.reward.terms=reflection")


def test_exercises_are_the_questions_of_the_reflection_with_their_answers():
    task, rng = make_task(structured()), np.random.default_rng(0)
    other = still("happy", step1="One sees a smile.")
    drawn = [task.exercise(still(), other, rng) for _ in range(200)]
    about, told = ([e for e in drawn if e.media is media] for media in (True, False))
    assert 70 < len(told) < 130 and {e.answer for e in told} == {"angry"}
    assert {(STEPS["step1"] in e.prompt, e.answer) for e in about} == {(True, "yes"), (False, "no")}
    assert 0.3 < np.mean([e.answer == "yes" for e in about]) < 0.7
    # Another clip of the same class may look the same: its description is not called untrue.
    assert {e.answer for _ in range(50) if (e := task.exercise(still(), still(), rng)).media} == {"yes"}
    assert task.exercise(clip(0, labels={"multimodal": "sad"}), other, rng) is None
    assert make_task(configured()).exercise(still(), other, rng) is None


def test_answers_near_the_longest_length_are_punished_softly():
    """DAPO's equation 13, by hand: longest 20, buffer 8."""
    config = configured("grpo.reward.terms=accuracy,overlong", "grpo.reward.terms.overlong.options={'buffer': 8}")
    task = make_task(config)
    reward = task.rewards(config.grpo.reward, Judges(None, None, (), longest_answer=20))
    asked = Asked(row(), "", "", ())
    lengths = {1: 0, 12: 0, 13: -1 / 8, 16: -1 / 2, 20: -1}
    samples = [Sample.of(asked, "", True, 0, {}, tokens) for tokens in lengths]
    assert reward(samples).terms["overlong"].tolist() == list(lengths.values())
    assert reward([Sample.of(asked, "", False, 0, {}, 20)]).terms["overlong"].tolist() == [-1]
    with pytest.raises(ConfigError, match=r"'overlong': buffer must be in \[1, 6\]"):
        task.rewards(config.grpo.reward, Judges(None, None, (), longest_answer=6))


def test_the_modality_that_shows_the_emotion_comes_first_where_that_is_paid():
    """MIGR: 1 for the dominant modality first, -1 for the other; half a point where both show it."""
    parts = {"vis_desc": "A frown.", "aud_desc": "A loud voice.", "think": "Both tell.", "answer": "angry"}
    seen_first = "".join(f"<{name}>{text}</{name}>" for name, text in parts.items())
    heard_first = "".join(f"<{name}>{parts[name]}</{name}>" for name in ("aud_desc", "vis_desc", "think", "answer"))
    settings = ("task.protocol=modalities_think_answer", "grpo.reward.terms=accuracy,modality_order")
    labels = {"multimodal": "angry", "audio": "angry", "video": "sad"}
    heard, both, untold = (
        clip(0, labels=labels), clip(0, labels=labels | {"video": "angry"}), clip(0, labels={"multimodal": "angry"})
    )  # fmt: skip
    texts = [seen_first, heard_first, heard_first, seen_first, "angry"]
    batch = rewarded(texts, *settings, records=[heard, heard, both, untold, heard])
    np.testing.assert_array_equal(batch.terms["modality_order"], [-1, 1, 0.5, np.nan, -1])
    assert batch.terms["accuracy"].tolist() == [1, 1, 1, 1, 0]
    with pytest.raises(ConfigError, match="'modality_order': answers of this protocol have no part 'vis_desc'"):
        rewarded(texts[:1], "grpo.reward.terms=modality_order")


def test_sets_of_words_are_compared_on_a_users_wheels(tmp_path):
    wheels = {
        "format_mapping": {"angry": ["angry"], "furious": ["angry"], "sad": ["sad"]},
        "raw_mapping": {"angry": ["anger"], "sad": ["sadness"]},
        "wheel_map_whole": {"wheel1": {"level1": {"anger": "anger", "sadness": "sadness"}}},
    }
    (tmp_path / "wheels.json").write_text(json.dumps(wheels))
    texts = [answer("Loud.", words) for words in ("furious", "furious, sad", "happy")]
    option = f"grpo.reward.terms.set_f1.options={ {'wheels': str(tmp_path / 'wheels.json')} }"
    batch = rewarded(texts, "grpo.reward.terms=set_f1", option)
    np.testing.assert_allclose(batch.terms["set_f1"], [1, 2 / 3, 0])
    for wrong, words in (("wheels", "must be the path"), (f"{tmp_path}/absent.json", "cannot be read")):
        with pytest.raises(ConfigError, match=f"'set_f1': .*{words}"):
            rewarded(texts, "grpo.reward.terms=set_f1", f"grpo.reward.terms.set_f1.options={ {'wheels': wrong} }")


WHEEL_FILE = {
    "format_mapping": {"happy": ["happy"], "glad": ["happy"], "sad": ["sad"], "tearful": ["sad"], "calm": ["calm"]},
    "raw_mapping": {"happy": ["joy"], "sad": ["sorrow"], "calm": ["peace"]},
    "wheel_map_whole": {"w": {"level1": {"joy": "up", "sorrow": "down", "peace": "flat"}, "level2": {}}},
}


@pytest.fixture
def open_task(tmp_path):
    (tmp_path / "wheels.json").write_text(json.dumps(WHEEL_FILE))
    return make_task(load("configs/r1_omni.py", ["task.labels=open", f"task.wheels={tmp_path / 'wheels.json'}"]))


def test_an_open_vocabulary_asks_for_words_and_is_scored_by_wheels(open_task, tmp_path):
    records = [row("Happy, Calm"), row("sad")]
    assert all(open_task.usable(record) is None for record in records) and open_task.usable(row(None))
    assert open_task.targets(records[0]) == ("<think>The voice is loud.</think>\n<answer>calm, happy</answer>",)
    request = open_task.request(records[0])
    assert "<answer>all emotion words that fit, between commas</answer>" in request and "one word" not in request
    assert "Which emotions" in request and "happy" not in request.lower() and request == open_task.request(None)
    texts = [answer("It is bright.", "glad, tearful, shiny"), "no form"]
    found = open_task.evaluate([Answer(record, text, True) for record, text in zip(records, texts)], None, None)
    values = {key: statistic.value for key, statistic in found.statistics.items()}
    # First clip: {up, down} of {up, flat}; second: nothing of {down}.
    assert values == pytest.approx(
        {"format": 0.5, "wheel_precision": 0.25, "wheel_recall": 0.25, "wheel_f1": 0.25, "wheel_average": 0.25}
    )
    assert found.predicted == ("glad, shiny, tearful", None) and found.confusion is None and found.classes == ()
    assert open_task.about(load("configs/r1_omni.py")).limits[0].startswith("It answers with emotion words of its own")
    report = write_report(
        tmp_path,
        seed=0,
        config={},
        data={"synthetic": False, "quarantined": []},
        results={"sft": found, "grpo": found},
        metrics_log=[],
        timing={},
        ablation={"grpo": {"audio": found}},
        resamples=10,
    )
    assert report["confusion"] == {} and report["eval"]["grpo"]["wheel_f1"] == pytest.approx(0.25)
    assert "F1 by emotion wheels" in (tmp_path / "report.md").read_text() and (tmp_path / "plots/ablation.png").exists()


def test_a_long_list_of_words_is_an_answer_and_trying_words_earns_little(open_task, tmp_path):
    """The bound is on words, not on characters; a list of all that there are is precise in nothing."""
    unknown = [f"a feeling that no wheel has, {i}".replace(",", "") for i in range(15)]
    long = ", ".join(["glad", *unknown])
    every = ", ".join([*WHEEL_FILE["format_mapping"], *unknown])
    assert len(long) > LONGEST_ANSWER and open_task.targets(row(long)) != ()
    texts = [answer("It is.", words) for words in ("glad", long, every, ", ".join(map(str, range(MOST_WORDS + 1))))]
    scores = open_task.score(texts, ["happy"] * 4)
    assert (
        scores.statistics["format"].value == 3 / 4 and scores.answers[1].endswith("glad") and scores.answers[3] is None
    )
    option = f"grpo.reward.terms.set_f1.options={ {'wheels': str(tmp_path / 'wheels.json')} }"
    config = load("configs/r1_omni.py", ["task.labels=open", "grpo.reward.terms=set_f1", option])
    reward = open_task.rewards(config.grpo.reward, Judges(None, None, ()))
    asked = Asked(row("happy"), "", "", ())
    batch = reward([Sample.of(asked, text, True, 0, open_task.read(text)) for text in texts])
    assert batch.terms["set_f1"][0] == 1 and all(batch.terms["set_f1"][1:] < 0.15) and batch.terms["set_f1"][3] == 0


def test_wheels_score_the_classes_of_a_set_too(open_task):
    closed = dataclasses.replace(open_task, labels=label_set("dfew"))
    scores = closed.score([answer("It is.", "happiness"), answer("It is.", "anger")], ["happy", "sad"])
    values = {key: statistic.value for key, statistic in scores.statistics.items()}
    assert values["wheel_f1"] == pytest.approx(0.5) and values["war"] == 0.5


@pytest.mark.parametrize(
    "settings, words",
    [
        (["task.wheels=absent.json"], "'task.wheels': emotion wheels '.*absent.json' cannot be read"),
        (["task.labels=open", "task.places=plutchik"], "'task.places': an open vocabulary has no classes"),
    ],
)
def test_what_an_open_vocabulary_cannot_have(settings, words):
    with pytest.raises(ConfigError, match=words):
        make_task(load("configs/r1_omni.py", settings))


def test_explanations_are_judged_for_one_class(open_task):
    judges = Judges(None, None, (), 32)
    with pytest.raises(ConfigError, match="explanation.*an open vocabulary has none"):
        open_task.rewards(load("configs/erv.py").grpo.reward, judges)


def test_reflection_needs_classes(open_task):
    steps = dataclasses.replace(open_task, protocol=PROTOCOLS["steps_boxed"])
    config = load("configs/emo_r3.py").grpo.reward
    judges = Judges(None, None, (), 32)
    with pytest.raises(ConfigError, match="reflection.*an open vocabulary has none"):
        steps.rewards(config, judges)
    known = row("happy", None)
    known.attributes.update(step1="a", step2="b", step3="c")
    assert steps.exercise(known, known, np.random.default_rng(0)) is None


def test_nobody_is_told_that_an_unmeasured_answer_is_good(open_task):
    config, records = load("configs/r1_omni.py", ["task.labels=open"]), [row("happy, calm"), row("sad")]
    unmeasured = dataclasses.replace(open_task, wheels=None)
    (remark,) = (r for r in unmeasured.check(config, records, records, records).remarks if "wheels" in r)
    assert "config key 'task.wheels'" in remark
    assert not open_task.check(config, records, [row("proud")], records).remarks  # a new word is none that is missing
