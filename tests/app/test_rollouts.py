"""What the page knows of a run: its groups and curves, while it trains and when it is long, within its directories."""

import json
import tracemalloc

import pytest

from mecap_jax.app import rendering
from mecap_jax.app.curves import CURVES, MetricsLog, paired
from mecap_jax.app.places import find_data, find_runs, find_stages, inside
from mecap_jax.app.rollouts import RolloutLog, by_reward, by_step, choose
from mecap_jax.app.words import differing
from mecap_jax.config import ConfigError


def completion(text="calm", reward=1.0, degenerate=None, finished=True, **terms):
    return {
        "text": text,
        "finished": finished,
        "degenerate": degenerate,
        "reward": reward,
        "rewards": terms,
        "advantage": None if reward is None else reward - 1,
    }


def group(step, *completions, clip="clip-1", label="sad", stage="grpo"):
    known = {"stage": stage, "step": step, "utterance_id": clip, "label": label, "prompt": "?", "transcript": ""}
    return {**known, "references": ["A sad voice."], "completions": list(completions)}


def append(path, *rows):
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write((row if isinstance(row, str) else json.dumps(row)) + "\n")


GROUPS = (
    group(1, completion(reward=1.0), completion(reward=3.0)),
    group(1, completion(reward=0.0, degenerate="empty"), completion(reward=0.0, format=0.0), clip="clip-2"),
    group(2, completion(reward=None), completion(reward=None, finished=False), label=None),
)


def test_groups_become_rows(tmp_path):
    append(tmp_path / "log", *GROUPS)
    log = RolloutLog(tmp_path / "log")
    log.update()
    first, second, third = log.rows
    assert (first.mean, first.best, first.worst, first.spread) == (2.0, 3.0, 1.0, 1.0)
    assert (second.degenerate, second.misread, second.spread) == (1, 1, 0.0)
    assert (third.mean, third.spread, third.label, third.unfinished) == (None, None, "", 1)
    assert log.read(1)["completions"][0]["degenerate"] == "empty" and not log.problem
    with pytest.raises(ConfigError, match="no group 3, only 3"):
        log.read(3)
    with pytest.raises(ConfigError, match="no group -1"):
        log.read(-1)
    step = by_step(log.rows)[0]
    assert (step.step, step.groups, step.completions, step.mean, step.no_spread) == (1, 2, 4, 1.0, 1)
    assert by_reward(GROUPS[0]["completions"] + [completion(reward=None)]) == [1, 0, 2]


def test_a_run_that_trains_is_followed_and_one_that_goes_back_is_read_anew(tmp_path):
    path = tmp_path / "log"
    log = RolloutLog(path)
    log.update()  # nothing there yet
    append(path, GROUPS[0])
    with path.open("a") as file:
        file.write(json.dumps(GROUPS[1])[:50])  # being written
    log.update()
    assert len(log.rows) == 1 and not log.problem
    with path.open("a") as file:
        file.write(json.dumps(GROUPS[1])[50:] + "\n")
    log.update()
    assert [row.clip for row in log.rows] == ["clip-1", "clip-2"] and log.read(1)["utterance_id"] == "clip-2"
    append(tmp_path / "new", GROUPS[2])
    (tmp_path / "new").replace(path)  # as a run that takes up an earlier step does
    log.update()
    assert [row.step for row in log.rows] == [2]
    path.unlink()
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        log.read(0)
    log.update()
    assert log.rows == []


def test_lines_of_another_version_are_left_out_and_said(tmp_path):
    without_text = group(1, {key: value for key, value in completion().items() if key != "text"})
    endless = "[" * 100_000
    append(tmp_path / "log", without_text, GROUPS[0], "no json", '{"stage": NaN}', endless, group(1))
    log = RolloutLog(tmp_path / "log")
    log.update()
    assert [row.mean for row in log.rows] == [2.0]
    assert log.problem == (
        "log: 5 lines are left out, which this version does not read (completions.0.text: Field required)"
    )


@pytest.mark.parametrize(
    "bad",
    [
        group(10**400, completion()),
        group(1, completion(reward=10**400)),
        group(1, completion(reward=1e200), completion(reward=-1e200)),
        group(1, completion(emotion=-1e200)),
        group(1, completion(), clip="c" * 1001),
        group(1, completion(), stage="s" * 1001),
        group(1, completion(), label="l" * 1001),
    ],
)
def test_groups_with_numbers_or_names_of_no_run_are_left_out(tmp_path, bad):
    append(tmp_path / "log", bad, group(1, completion(), clip="c" * 1000))
    log = RolloutLog(tmp_path / "log")
    log.update()
    assert [len(row.clip) for row in log.rows] == [1000] and "log: 1 line is left out" in log.problem


def test_metrics_with_numbers_of_no_run_are_left_out(tmp_path):
    good = {"stage": "grpo", "step": 1, "reward": 1.0, "kl": None}
    append(tmp_path / "log", good, good | {"step": 10**400}, good | {"kl": 10**400}, good | {"reward": -1e200})
    append(tmp_path / "log", good | {"step": 2**60}, "[1]", "no json", {"event": "end"})
    log = MetricsLog(tmp_path / "log")
    log.update()
    assert log.curves()[0].steps == (1,) and log.problem == (
        "log: 6 lines are left out (no JSON object, or a number that is too large)"
    )
    (tmp_path / "log").unlink()
    log.update()
    assert not log.curves() and not log.problem


def test_choosing(tmp_path):
    append(tmp_path / "log", *GROUPS)
    log = RolloutLog(tmp_path / "log")
    log.update()

    def numbers(**wanted):
        return [row.number for row in choose(log.rows, **wanted)]

    assert numbers() == [2, 1, 0] and numbers(order="oldest first") == [0, 1, 2]
    assert numbers(order="most disagreeing") == [0, 1, 2] == numbers(order="best completion")
    assert numbers(order="worst completion") == [1, 0, 2] == numbers(order="lowest mean reward")
    assert numbers(keep="with a degenerate completion") == [1] == numbers(keep="with a parse failure")
    assert numbers(keep="rewards are all the same") == [1] and numbers(keep="rewards differ") == [0]
    assert numbers(keep="without any reward") == [2] == numbers(keep="with a completion cut off")
    assert numbers(label="sad") == [1, 0] and numbers(clip="-2") == [1] and numbers(stage="sft") == []
    assert numbers(first=2) == [2] and numbers(last=1) == [1, 0]
    with pytest.raises(ConfigError, match="order must be one of .* got 'prettiest'"):
        numbers(order="prettiest")


def test_a_long_run_fits(tmp_path):
    """100,000 completions: what is kept of them is small, however long they are."""
    line = json.dumps(group(1, *[completion("calm " * 60, reward=i / 10, emotion=0.5) for i in range(8)]))
    (tmp_path / "log").write_text(f"{line}\n" * 12_500)
    log = RolloutLog(tmp_path / "log")
    tracemalloc.start()
    log.update()
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(log.rows) == 12_500 and kept < 20e6 and most < 40e6


def test_words_that_differ():
    assert differing("A calm, low voice.", "a calm voice.") == [("A calm", False), (", low ", True), ("voice.", False)]
    assert differing("很悲伤", "很高兴") == [("很", False), ("悲伤", True)]
    for text in ("one  two\n", "", " ", "x" * 3):
        assert "".join(piece for piece, _ in differing(text, "two")) == text
    for text in ("a " * 5000, "a" * 20_001):  # too many words, and one that is too long
        assert differing(text, "b") == [(text, False)] and differing("b", text) == [("b", False)]


def test_curves(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"stage": "grpo", "step": step, "reward": float(step), "rewards/emotion/mean": 0.5, "kl": None, "other": 1.0}
        for step in range(1, 1001)
    ]
    append(path, {"stage": "sft", "step": 1, "token_nll": 2.0}, *rows, "no json", [1], {"stage": 1, "step": 2})
    log = MetricsLog(path)
    log.update()
    assert log.stages() == ["sft", "grpo"]
    reward, emotion = log.curves("grpo")
    assert (reward.name, emotion.name) == ("reward", "rewards/emotion/mean")
    assert len(reward.steps) <= 400 and reward.steps[-1] == 1000 and reward.values[-1] == 1000.0
    titles = [title for title, _ in paired(log.curves(), log.curves("sft"))]
    assert titles == ["grpo: reward", "grpo: rewards/emotion/mean", "sft: token_nll"]
    assert [bool(other) for _, (_, other) in paired(log.curves(), log.curves("sft"))] == [False, False, True]


def test_the_latest_stage_has_its_curves_however_many_were_before(tmp_path):
    """A run with its rows of comparison has more curves than the page draws at a time."""
    stages = [f"row-{number}" for number in range(8)]
    row = {"step": 1} | {name: 0.5 for name in (*CURVES, *(f"rewards/{term}/mean" for term in "abcd"))}
    append(tmp_path / "metrics.jsonl", *({"stage": stage} | row for stage in stages))
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.update()
    assert log.stages() == stages and len(log.curves()) == 8 * (len(CURVES) + 4)
    page = rendering.charts(log.curves(), (), ["run"])
    assert page.count("row-7: ") == 2 * (len(CURVES) + 4) and "row-0: " not in page  # titles, and for who hears them
    assert f"48 of {8 * (len(CURVES) + 4)} curves are shown" in page
    assert "are shown" not in rendering.charts(log.curves("row-0"), (), ["run"])


def test_nothing_outside_the_named_directory_is_found(tmp_path):
    root, outside = tmp_path / "runs", tmp_path / "secret"
    for run in (root / "a", root / "deep" / "b", outside):
        (run / "checkpoints" / "sft").mkdir(parents=True)
        for name in ("metrics.jsonl", "config.json"):
            (run / name).touch()
    (root / "link").symlink_to(outside)
    (root / "data").mkdir()
    (root / "data" / "manifest.csv").touch()
    assert find_runs(root) == ["a", "deep/b"] and find_data(root) == ["data"]
    assert find_stages(root) == ["a/checkpoints/sft", "deep/b/checkpoints/sft"]
    assert inside(root, "deep/b") == root / "deep" / "b" and inside(root, ".") == root
    for name in ("../secret", str(outside), "a/../../secret", "link"):
        with pytest.raises(ConfigError, match="leads out of .*runs; only what is in there is shown"):
            inside(root, name)
    for name in ("gone", "a/config.json"):
        with pytest.raises(ConfigError, match="holds no directory"):
            inside(root, name)
    for name in ("a\0b", "x" * 5000):
        with pytest.raises(ConfigError, match="is no directory of"):
            inside(root, name)
    assert find_runs(tmp_path / "absent") == []
