"""Sides in processes of their own, in turn; one that is missing or dies is named, and the others go on."""

import sys

import pytest

from benchmarks.throughput import rounds
from benchmarks.throughput.cost import cost
from benchmarks.throughput.curves import plot_sweep, sweep_table
from benchmarks.throughput.models import DECODER
from benchmarks.throughput.rounds import Side, SideError, compare, prepare
from benchmarks.throughput.tables import machine, table
from benchmarks.throughput.work import Work


@pytest.fixture
def result(tmp_path, monkeypatch):
    sides = {
        "ours": Side("ours", "side", ("1", "measures")),
        "slow": Side("slow", "side", ("6",)),
        "dying": Side("dying", "side", ("2", "dies")),
        "missing": Side("missing", "side", ("2",), "no-such-trainer"),
    }
    monkeypatch.setattr(rounds, "SIDES", sides)
    for module in ("tables", "curves"):
        monkeypatch.setattr(f"benchmarks.throughput.{module}.SIDES", sides)
    monkeypatch.setattr(rounds, "MODULES", "tests.benchmarks")
    found = compare(tmp_path, ("ours", "slow", "dying", "missing"), sys.executable, 2)
    return {"row": "text", "work": vars(Work("text")), "date": "2026-11-28", "machine": machine(), **found}


def test_sides_are_compared_and_what_cannot_be_measured_is_said(result):
    ours, slow, dying, missing = result["sides"].values()
    assert [step["seconds"] for step in ours["steps"]] == [1.0, 1.0]
    assert slow["settings"] == {"seconds": 6.0} and slow["versions"] == {"side": "1.0"}
    assert ours["first_step"]["seconds"] == 1.0 and 0 < ours["peak_gb"] < 10
    assert dying["problem"] == "ended with status 1: it cannot"
    assert missing["problem"].startswith("no-such-trainer is not installed: pip install")
    (ratio,) = result["ratios"].values()
    same = dict.fromkeys(("step", "fastest", "rollout", "reference", "update"), 6.0)
    assert ratio == same | {"step_range": [6.0, 6.0]}

    text = table(result)
    assert "| step, s | 1.00 | 6.00 | – | – |" in text
    assert "| × ours | 1 | **6.0** (6.0–6.0) | – | – |" in text
    assert "Ours: 50% of the matrix rate" in text and "the update 75%" in text
    assert "missing: no-such-trainer is not installed" in text


def test_a_platform_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "rocm")
    with pytest.raises(SideError, match="cannot be prepared: JAX sees no device of the platform 'rocm'"):
        prepare(Work("text"), tmp_path)


def test_a_side_that_has_the_machine_to_itself_runs_behind_the_others(result, tmp_path):
    alone = compare(tmp_path, ("ours", "slow"), sys.executable, 1, in_turn=False)
    assert alone["ratios"]["slow"]["step"] == 6.0
    assert alone["sides"]["ours"]["end"]["rollout_s"] == 2.0 and alone["sides"]["slow"]["end"] == {}
    alone["sides"]["ours"]["settings"] = {"device": "NVIDIA H200"}
    text = table({**result, **alone})
    assert "one side behind the other; NVIDIA H200" in text
    assert "The update reaches 60% of the median rate of products" in text
    assert "Decoding takes 1.50 of a roll-out's 2.00 s" in text and "at 3 GB/s, 75% of the rate of a copy" in text


def test_a_sweep_is_drawn_of_what_was_measured(result, tmp_path):
    longer = {**result, "work": vars(Work("text", prompt_tokens=1024)), "sides": {}, "ratios": {}}
    plot_sweep([longer, result], "prompt_tokens", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    lines = sweep_table([longer, result], "prompt_tokens").splitlines()
    assert lines[2].startswith("| 512 | 1.00 |") and lines[2].endswith("| 6.0 | 5.3 |")
    assert lines[3].startswith("| 1,024 | – | – |") and lines[3].endswith("| – | 6.3 |")


def test_a_shared_prefix_saves_nothing_of_a_single_completion_and_nearly_the_group_of_a_long_prompt():
    single = Work("text", group=1)
    assert cost(single, DECODER, shared=True) == cost(single, DECODER, shared=False)
    shared, separate = (cost(Work("text", group=8, prompt_tokens=65_536), DECODER, way) for way in (True, False))
    assert 7.9 < separate.operations / shared.operations < 8
