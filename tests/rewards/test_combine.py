import dataclasses
import logging
import math
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from mecap_jax.config import ConfigError, RewardConfig, RewardSpec
from mecap_jax.data.questions import Asked
from mecap_jax.rewards.anchors import build_anchors
from mecap_jax.rewards.base import RewardError, Sample, checked_questions
from mecap_jax.rewards.combine import RewardFunction, build_reward, check_terms
from mecap_jax.rewards.combine import Term as Combined
from mecap_jax.rewards.custom import load_custom
from mecap_jax.rewards.validity import is_degenerate
from mecap_jax.rewards.watch import RewardWatch
from mecap_jax.tasks.base import Judges
from mecap_jax.tasks.captioning import Captioning
from tests.data.clips import record
from tests.rewards.captions import CAPTIONS
from tests.rewards.conftest import TableEncoder, sample

ROOT = Path(__file__).parents[2]


class Term:
    """A term that returns what it is given, or does what it is told."""

    def __init__(self, name, values):
        self.name, self.values = name, values

    def __call__(self, samples):
        return self.values(samples) if callable(self.values) else self.values


def texts(n):
    return [sample(f"caption number {i}", ["a reference"]) for i in range(n)]


def test_weighted_sum_by_hand():
    reward = RewardFunction([(Term("a", [1.0, 0.5, -1.0]), 2.0), (Term("b", np.array([3, 4, 5])), -0.5)], 10)
    batch = reward(texts(3))
    np.testing.assert_allclose(batch.total, [0.5, -1.0, -4.5])
    np.testing.assert_array_equal(batch.terms["a"], [1, 0.5, -1])
    assert batch.total.dtype == batch.terms["b"].dtype == np.float64
    assert batch.degenerate == (None,) * 3 and batch.failures == {}
    assert not batch.failed["a"].any() and not batch.failed["b"].any()


def test_missing_values_are_skipped():
    terms = [(Term("a", [1.0, None, None, math.nan]), 1.0), (Term("b", [2.0, 2.0, None, math.inf]), 1.0)]
    batch = RewardFunction(terms, 10)(texts(4))
    np.testing.assert_array_equal(batch.total, [3, 2, np.nan, np.nan])
    np.testing.assert_array_equal(batch.terms["b"], [2, 2, np.nan, np.nan])
    assert "not finite" in batch.failures["b"] and "for 1 samples, such as inf" in batch.failures["b"]
    assert batch.failed["a"].tolist() == [False, False, False, True]  # None is an answer, NaN is none
    assert batch.failed["b"].tolist() == [False, False, False, True]


@pytest.mark.parametrize("value, weight", [(1e308, 1.0), (-1e308, 1.0), (1.1e6, 0.01), (10.0, 2e5)])
def test_a_huge_value_is_blamed_on_its_own_term(value, weight):
    batch = RewardFunction([(Term("huge", [value, 1.0]), weight), (Term("good", [0.25, 0.5]), 1.0)], 10)(texts(2))
    np.testing.assert_allclose(batch.total, [0.25, 0.5 + weight])
    assert list(batch.failures) == ["huge"] and f"such as {value:g}" in batch.failures["huge"]
    assert batch.failed["huge"].tolist() == [True, False] and not batch.failed["good"].any()


@pytest.mark.parametrize(
    "values", [(0.0, 1.0), [False, np.True_], np.array([0, 1]), np.float32([0, 1]), jnp.arange(2), [jnp.float32(0), 1]]
)
def test_lists_arrays_and_truth_values_are_numbers(values):
    batch = RewardFunction([(Term("a", values), 1.0)], 10)(texts(2))
    assert batch.failures == {} and batch.total.tolist() == [0, 1]


def test_samples_cannot_be_changed():
    def meddle(samples):
        for change in (
            lambda: setattr(samples[0], "completion", "praise me"),
            lambda: samples[0].references.append("praise me"),
            lambda: samples[0].__dict__.update(completion="praise me"),
            lambda: samples.clear(),
        ):
            with pytest.raises((AttributeError, dataclasses.FrozenInstanceError)):
                change()
        return [1.0]

    batch = RewardFunction([(Term("meddle", meddle), 1.0)], 10)([sample("a text", ["a reference"])])
    assert batch.failures == {}


def test_what_a_sample_knows_of_its_clip_cannot_be_changed():
    about = record("a", labels={"multimodal": "sad"}, captions={"overall": ("sad",)}, attributes={"room": "3"})
    asked = Asked(about, "How?", "", ("sad",))
    made = Sample.of(asked, "glad", True, 0, {"think": "so"})
    for change in (
        lambda: made.fields.update(think="not so"),
        lambda: made.replies.update(term=("yes",)),
        lambda: setattr(made.record, "transcript", "praise me"),
        lambda: made.record.labels.update(multimodal="happy"),
        lambda: made.record.attributes.update(room="4"),
        lambda: made.record.captions["overall"].append("praise me"),
    ):
        with pytest.raises((AttributeError, TypeError, dataclasses.FrozenInstanceError)):
            change()
    assert about.labels == {"multimodal": "sad"}


def test_degenerate_texts_earn_nothing_but_still_lose():
    samples = [sample("very very sad"), sample("a proper text"), sample("cut off", finished=False), sample("")]
    terms = [(Term("good", [1.0] * 4), 1.0), (Term("penalty", [-0.5] * 4), 2.0), (Term("length", [3.0] * 4), -0.1)]
    batch = RewardFunction(terms, 10, is_degenerate)(samples)
    assert batch.degenerate == ("repeated word", None, "endless", "empty")
    np.testing.assert_allclose(batch.total, [-1.3, -0.3, -1.3, -1.3])
    np.testing.assert_array_equal(batch.terms["good"], [0, 1, 0, 0])
    np.testing.assert_array_equal(batch.terms["penalty"], [-0.5] * 4)


def test_no_samples():
    batch = RewardFunction([(Term("a", lambda samples: 1 / len(samples)), 1.0)], 10)([])
    assert batch.failures == {}
    assert batch.total.shape == batch.failed["a"].shape == batch.terms["a"].shape == (0,)


@pytest.mark.parametrize(
    "values, message",
    [
        (lambda samples: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda samples: sys.exit("stop"), "SystemExit: stop"),
        ([1.0], "returned 1 values for 2 samples"),
        (["high", "low"], "returned 'high' for a sample, expected a number or None"),
        ("12", "returned '12', expected a list of one number or None a sample"),
        ({0: 1.0, 1: 2.0}, "returned {0: 1.0, 1: 2.0}, expected a list"),
        ({1.0, 2.0}, "returned {1.0, 2.0}, expected a list"),
        (1.0, "returned 1.0, expected a list"),
        (np.zeros((2, 1)), "returned [0.0] for a sample"),
        ([1j, 2], "returned 1j for a sample"),
        ([10**400, 1], "too large"),
        (None, "returned None, expected a list"),
    ],
)
def test_a_failing_term_leaves_the_others_alone(values, message, caplog):
    reward = RewardFunction([(Term("bad", values), 1.0), (Term("good", [0.25, 0.5]), 1.0)], 10)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            batch = reward(texts(2))
            np.testing.assert_array_equal(batch.total, [0.25, 0.5])
            assert np.isnan(batch.terms["bad"]).all() and list(batch.failures) == ["bad"]
            assert batch.failed["bad"].all() and not batch.failed["good"].any()
            assert message in batch.failures["bad"]
    assert list(reward.reasons) == ["bad"]
    assert len(caplog.records) == 1 and "'bad'" in caplog.text and message in caplog.text


def test_a_failure_everywhere_gives_nan():
    batch = RewardFunction([(Term("bad", lambda samples: 1 / 0), 1.0)], 10)(texts(2))
    assert np.isnan(batch.total).all()


def test_a_slow_term_times_out_and_the_run_goes_on():
    release, calls = threading.Event(), []

    def slow(samples):
        calls.append(len(samples))
        release.wait(60)
        return [1.0] * len(samples)

    reward = RewardFunction([(Term("slow", slow), 1.0), (Term("good", [2.0, 2.0]), 1.0)], 0.2)
    start = time.monotonic()
    first, second = reward(texts(2)), reward(texts(2))
    assert time.monotonic() - start < 10
    np.testing.assert_array_equal(first.total, [2, 2])
    assert "took longer than 0.2 s" in first.failures["slow"]
    # A term that hangs is not started again and again.
    assert "still running" in second.failures["slow"] and len(calls) == 1
    release.set()
    deadline = time.monotonic() + 30
    while "slow" in (batch := reward(texts(2))).failures and time.monotonic() < deadline:
        time.sleep(0.01)
    np.testing.assert_array_equal(batch.total, [3, 3])


def test_a_call_that_hangs_for_one_purpose_keeps_no_other_waiting():
    release = threading.Event()

    def slow(samples):
        if len(samples) > 2:
            release.wait(60)
        return [1.0] * len(samples)

    training = RewardFunction([(Term("slow", slow), 1.0)], 30)
    validation = training.with_timeout(0.1)
    assert "took longer than 0.1 s" in validation(texts(3)).failures["slow"]
    assert training(texts(2)).failures == {}
    assert "still running" in validation(texts(2)).failures["slow"]
    release.set()


def test_a_hanging_term_does_not_keep_the_interpreter_alive():
    code = (
        "import threading\n"
        "from mecap_jax.rewards.base import Sample\n"
        "from mecap_jax.rewards.combine import RewardFunction\n"
        "class Hang:\n"
        "    name = 'hang'\n"
        "    def __call__(self, samples): threading.Event().wait()\n"
        "reward = RewardFunction([(Hang(), 1.0)], 0.1)\n"
        "samples = [Sample('a text', True, '', 'u', (), None, 0)]\n"
        "assert 'hang' in reward(samples).failures\n"
        "reward.submit(samples)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_terms_run_beside_each_other_and_beside_the_caller():
    meeting = threading.Barrier(3, timeout=30)

    def meet(samples):
        meeting.wait()
        return [1.0] * len(samples)

    reward = RewardFunction([(Term("a", meet), 1.0), (Term("b", meet), 1.0)], 60)
    future = reward.submit(texts(2))
    meeting.wait()  # both terms are running while this thread is here
    np.testing.assert_array_equal(future.result(timeout=30).total, [2, 2])


# --- a term that goes on failing ----------------------------------------------------------------------------------


def metrics(failures, missing):
    return {"rewards/a/failures": failures, "rewards/a/missing": missing}


def test_a_term_that_goes_on_failing_stops_the_run():
    reward = RewardFunction([(Term("a", lambda samples: 1 / 0), 1.0)], 10)
    watch = RewardWatch(reward, 3)
    reward(texts(2))
    for step, (failures, missing) in enumerate([(1, 0.5), (0, 1), (0, 0.9), (2, 1), (1, 0.5)]):
        watch(step, metrics(failures, missing))  # a step with values in between starts the count anew
    with pytest.raises(
        RewardError, match=r"term 'a' failed in 3 steps in a row, the last one step 9 .*'grpo.max_rewar"
    ):
        watch(9, metrics(2, 1))
    with pytest.raises(RewardError, match="ZeroDivisionError: division by zero"):
        watch(10, metrics(2, 1))


def test_a_term_without_any_value_stops_the_run():
    reward = RewardFunction([(Term("a", [None, None]), 1.0)], 10)
    assert reward(texts(2)).failures == {}
    with pytest.raises(RewardError, match="'a' failed in 1 steps.*no value for any sample"):
        RewardWatch(reward, 1)(1, metrics(0, 1))


def test_names_must_differ():
    with pytest.raises(ValueError, match=r"\['a', 'a'\]"):
        RewardFunction([(Term("a", []), 1.0), (Term("a", []), 1.0)], 1)


# --- custom terms -------------------------------------------------------------------------------------------------


@pytest.fixture
def custom_file(tmp_path):
    path = tmp_path / "my terms=1.py"
    path.write_text(
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Length:\n"
        "    words: 'int'\n"
        "def brevity(samples):\n"
        "    return [-float(Length(len(s.completion.split())).words) if s.references else None for s in samples]\n"
        "constant = 3\n"
    )
    return path


def test_custom_term(custom_file):
    term = load_custom(f"{custom_file}:brevity")
    assert term.name == "brevity"
    assert term([sample("three little words", ["r"]), sample("two words")]) == [-3, None]


@pytest.mark.parametrize(
    "spec, message",
    [
        ("{}", "expected path/to/file.py:function"),
        ("{}:", "expected path/to/file.py:function"),
        ("{}.absent:brevity", "no such file"),
        ("{}:levity", "defines no function 'levity'"),
        ("{}:constant", "defines no function 'constant'"),
    ],
)
def test_custom_errors_name_the_spec(custom_file, spec, message):
    spec = spec.format(custom_file)
    with pytest.raises(ConfigError) as error:
        load_custom(spec)
    assert message in str(error.value) and spec in str(error.value)


def test_a_custom_term_may_ask_the_policy(tmp_path):
    """As the README has it; what is missing of such a term is said when it is loaded."""
    (example,) = re.findall(r"```python\n(# asks.py.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "asks.py").write_text(example)
    term = load_custom(f"{tmp_path}/asks.py:Loudness")
    assert RewardFunction([(term, 1.0)], 60).asking == (term,) and (term.asks, term.reply_tokens) == ((True,), 4)
    (question,) = checked_questions(term, sample("A loud voice."))
    assert question.text.startswith("A loud voice. Is that")
    samples = [dataclasses.replace(sample("x"), replies={"Loudness": (said,)}) for said in ("Yes.", "no", None)]
    assert term(samples) == [1, 0, 0]
    for line, words in (
        ("asks = ()", "'asks' has to say of each question"),
        ("reply_tokens = 0", "'reply_tokens' has to be a number"),
        ("questions = None", "no method 'questions'"),
        ("__init__ = None", "making one raised TypeError"),
    ):
        path = tmp_path / f"odd_{line.split()[0]}.py"
        path.write_text(f"{example}\nclass Odd(Loudness):\n    {line}\n")
        with pytest.raises(ConfigError, match=f"{path.name}:Odd.*{words}"):
            load_custom(f"{path}:Odd")


@pytest.mark.parametrize(
    "questions, words",
    [([], "0 questions about a sample, but 'asks' is of 1"), (["Is it loud?"], "'Is it loud.' is no Question")],
)
def test_questions_are_as_announced(questions, words):
    term = type("Asks", (), {"asks": (True,), "questions": lambda self, sample: questions})()
    with pytest.raises((TypeError, ValueError), match=words):
        checked_questions(term, sample("x"))


def test_custom_file_that_fails_to_import(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import no_such_module_anywhere\n")
    with pytest.raises(ConfigError, match="broken.py:f.*ModuleNotFoundError.*no_such_module_anywhere"):
        load_custom(f"{path}:f")


# --- from the configuration ---------------------------------------------------------------------------------------


def of_captions(terms, encoder, anchors, references=()):
    """The reward of captioning with these terms, over training clips with these captions."""
    task = Captioning("overall", "Describe the emotion.")
    train = [record(f"clip-{i}", captions={"overall": tuple(texts)}) for i, texts in enumerate(references)]
    specs = tuple(RewardSpec(name, weight) for name, weight in terms.items())
    return task.rewards(RewardConfig(specs), Judges(encoder, anchors, train))


def test_the_reward_has_the_configured_terms(encoder, anchors, custom_file):
    references = [group[:3] for group in CAPTIONS.values()]
    terms = {"emotion": 1, "semantic": 0.5, "rouge_l": 0.25, "cider_d": 0.1, "distinctiveness": 0.2}
    reward = of_captions({**terms, f"{custom_file}:brevity": 0.01}, encoder, anchors["captions"], references)
    assert reward.weights == {
        "emotion": 1,
        "semantic": 0.5,
        "rouge_l": 0.25,
        "cider_d": 0.1,
        "distinctiveness": 0.2,
        "brevity": 0.01,
    }
    happy, sad = CAPTIONS["happy"], CAPTIONS["sad"]
    batch = reward(
        [
            sample(happy[4], happy[:3], group=0),
            sample(sad[4], happy[:3], group=0),
            sample(sad[4], sad[:3], group=1),
            sample("happy happy happy", happy[:3], group=0),
        ]
    )
    assert batch.failures == {} and not np.isnan(batch.total).any()
    assert batch.total[0] > batch.total[1] < batch.total[2]
    assert batch.degenerate == (None, None, None, "repeated word") and batch.total[3] < 0
    np.testing.assert_allclose(batch.total, sum(reward.weights[name] * x for name, x in batch.terms.items()))


def test_terms_of_weight_zero_are_left_out(encoder, anchors):
    terms = {"emotion": 0, "semantic": 0, "rouge_l": 1}
    assert list(of_captions(terms, encoder, anchors["captions"]).weights) == ["rouge_l"]
    with pytest.raises(ConfigError, match="grpo.reward.terms"):
        of_captions({"emotion": 0, "semantic": 0}, encoder, anchors["captions"])


def test_terms_that_cannot_be_made_are_named():
    makers = {"length": lambda context, most=10: Term("length", [most])}
    for spec, message in (
        (RewardSpec("width"), "no term 'width'; it has length"),
        (RewardSpec("length", options={"least": 1}), "'length' has no option 'least'; it has most"),
        (RewardSpec("a.py:f"), "no such file: a.py"),
    ):
        with pytest.raises(ConfigError, match=f"'grpo.reward.terms': .*{message}"):
            check_terms(RewardConfig((spec,)), makers)
    made = build_reward(RewardConfig((RewardSpec("length", options={"most": 3}),)), makers, None)
    assert made([sample("a text")]).total.tolist() == [3]

    def fails(context):
        raise ValueError("the moon is in the wrong place")

    with pytest.raises(ConfigError, match="'length': the moon"):
        build_reward(RewardConfig((RewardSpec("length"),)), {"length": fails}, None)


# --- how terms come together --------------------------------------------------------------------------------------


def test_a_gate_lets_a_term_count_only_where_another_one_is_high():
    right, rationale = Term("right", [1.0, 0.0, None, 1.0]), Term("why", [0.5, 0.5, 0.5, None])
    function = RewardFunction([Combined(right, 1.0), Combined(rationale, 2.0, "right", 0.5)], 10)
    batch = function(texts(4))
    np.testing.assert_array_equal(batch.terms["why"], [0.5, 0.0, np.nan, np.nan])
    np.testing.assert_array_equal(batch.total, [2.0, 0.0, np.nan, 1.0])
    # A gate that is worth nothing by itself opens and closes all the same.
    specs = (RewardSpec("right", 0.0), RewardSpec("why", 2.0, gate="right", gate_above=0.5))
    makers = {"right": lambda context: right, "why": lambda context: rationale}
    np.testing.assert_array_equal(
        build_reward(RewardConfig(specs), makers, None)(texts(4)).total, [1.0, 0.0, np.nan, np.nan]
    )
    with pytest.raises(ValueError, match="gates that are no terms"):
        RewardFunction([Combined(rationale, 1.0, "right")], 10)


def test_a_gate_that_is_shut_shuts_those_behind_it():
    """HumanOmniV2's chain: without context no logic counts, without logic no answer."""
    terms = [
        Combined(Term("right", [1.0, 1.0]), 1.0, "logic", 0.4),
        Combined(Term("logic", [0.9, 0.9]), 1.0, "context", 0.4),
        Combined(Term("context", [0.2, 0.5]), 1.0),
    ]
    np.testing.assert_allclose(RewardFunction(terms, 10)(texts(2)).total, [0.2, 2.4])
    circle = [Combined(Term("a", [1.0]), 1.0, "b"), Combined(Term("b", [1.0]), 1.0, "a")]
    with pytest.raises(ValueError, match="gates in a circle"):
        RewardFunction(circle, 10)


def test_a_schedule_moves_a_weight():
    terms = [Combined(Term("a", [1.0]), 2.0, schedule=((10, 0.0), (20, 1.0))), Combined(Term("b", [1.0]), 1.0)]
    function = RewardFunction(terms, 10)
    totals = [function(texts(1), step).total[0] for step in (0, 10, 15, 20, 99)]
    assert totals == [1.0, 1.0, 2.0, 3.0, 3.0] and function(texts(1)).total[0] == 3.0
    assert function.weights == {"a": 2.0, "b": 1.0} and function.weights_at(15) == {"a": 1.0, "b": 1.0}


def test_a_schedule_may_go_over_the_mean_of_another_term():
    """EmotionThinker's: reasoning is paid for once answers are right, from a fifth of them on, in full from three."""
    ramp = ((0.2, 0.0), (0.6, 1.0))
    right = [1.0, 0.0, 0.0, None, 1.0]  # a mean of 1/2, of four
    terms = [
        Combined(Term("why", [1.0, 0.0, 0.0, 0.0, 0.0]), 2.0, schedule=ramp, schedule_over="right"),
        Combined(Term("right", right), 0.0),
        Combined(Term("form", [1.0] * 5), 1.0),
    ]
    function = RewardFunction(terms, 10)
    np.testing.assert_allclose(function(texts(5), 7).total, [1 + 2 * 0.75, 1, 1, 1, 1])
    by_mean = {mean: function.weights_at(0, {"right": np.array([[mean]])})["why"] for mean in (0.0, 0.2, 0.4, 0.9)}
    assert list(by_mean.values()) == pytest.approx([0, 0, 1, 2])
    assert function.weights_at(0, {"right": np.full((1, 2), np.nan)})["why"] == 0  # nothing is known to be right
    assert function.weights["why"] == 2 and function(texts(5)).total[0] == 3  # in validation
    specs = (RewardSpec("why", 2.0, schedule=ramp, schedule_over="right"), RewardSpec("right", 0.0))
    makers = {term.reward.name: lambda context, made=term.reward: made for term in terms}
    assert build_reward(RewardConfig(specs), makers, None).followed == ("right",)
    with pytest.raises(ValueError, match=r"schedules over what is no term: \['right'\]"):
        RewardFunction(terms[:1], 10)


def test_a_product_is_worth_nothing_where_one_term_is():
    terms = [(Term("a", [0.5, 0.5, None, None]), 1.0), (Term("b", [0.5, 0.0, 0.25, None]), 2.0)]
    batch = RewardFunction(terms, 10, how="product")(texts(4))
    np.testing.assert_array_equal(batch.total, [0.5, 0.0, 0.5, np.nan])


def test_two_faults_are_no_merit_in_a_product():
    """A malformed answer (-1 for its order) that is cut at the longest length (-1) must not earn 1."""
    terms = [(Term("order", [-1.0, -1.0, 1.0]), 1.0), (Term("overlong", [-1.0, 0.5, 0.5]), 1.0)]
    np.testing.assert_array_equal(RewardFunction(terms, 10, how="product")(texts(3)).total, [-1.0, -0.5, 0.5])


def test_how_long_a_term_took_is_told():
    terms = [(Term("slow", lambda samples: time.sleep(0.05) or [1.0]), 1.0), (Term("bad", lambda samples: 1 / 0), 1.0)]
    seconds = RewardFunction(terms, 10)(texts(1)).seconds
    assert 0.05 <= seconds["slow"] < 5 and seconds["bad"] == 0


def test_a_file_is_imported_once_and_files_of_one_name_are_two(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "terms.py").write_text(
            f"calls = []\ndef f(samples):\n    return [{ord(folder)}]\ndef g(samples):\n    return calls\n"
        )
    first, again = (load_custom(f"{tmp_path}/a/terms.py:{name}") for name in "fg")
    other = load_custom(f"{tmp_path}/b/terms.py:f")
    assert (first([None]), other([None])) == ([ord("a")], [ord("b")])
    assert first.function.__globals__ is again.function.__globals__


def test_custom_term_may_not_take_a_name_twice(encoder, anchors, tmp_path):
    path = tmp_path / "terms.py"
    path.write_text("def semantic(samples):\n    return [0.0] * len(samples)\n")
    with pytest.raises(ConfigError, match="semantic"):
        of_captions({"semantic": 1, f"{path}:semantic": 1}, encoder, anchors["captions"])


def test_anchors_of_another_encoder_are_refused(encoder):
    other = TableEncoder({"joy": [1, 0], "rage": [0, 1]})
    foreign = build_anchors(other, {"happy": ["joy"], "angry": ["rage"]}, kind="captions", source="")
    with pytest.raises(ConfigError, match="'emotion': .*table.*all-MiniLM-L6-v2"):
        of_captions({"emotion": 1}, encoder, foreign)
