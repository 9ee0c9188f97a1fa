"""Sides in processes of their own, in turn; one that is missing or dies is named, and the others go on."""

import sys

import pytest

from benchmarks.throughput import rounds
from benchmarks.throughput.rounds import Side, compare
from benchmarks.throughput.tables import machine, table
from benchmarks.throughput.work import Work


@pytest.fixture
def result(tmp_path, monkeypatch):
    sides = {
        "ours": Side("ours", "side", ("1",)),
        "slow": Side("slow", "side", ("6",)),
        "dying": Side("dying", "side", ("2", "dies")),
        "missing": Side("missing", "side", ("2",), "no-such-trainer"),
    }
    monkeypatch.setattr(rounds, "SIDES", sides)
    monkeypatch.setattr("benchmarks.throughput.tables.SIDES", sides)
    monkeypatch.setattr(rounds, "MODULES", "tests.benchmarks")
    found = compare(tmp_path, ("slow", "dying", "missing"), sys.executable, 2)
    return {"row": "text", "work": vars(Work("text")), "date": "2026-11-28", "machine": machine(), **found}


def test_sides_are_compared_and_what_cannot_be_measured_is_said(result):
    ours, slow, dying, missing = result["sides"].values()
    assert [step["seconds"] for step in ours["steps"]] == [1.0, 1.0]
    assert slow["settings"] == {"seconds": 6.0} and slow["versions"] == {"side": "1.0"}
    assert ours["first_step"]["seconds"] == 1.0 and 0 < ours["peak_gb"] < 10
    assert dying["problem"] == "ended with status 1: it cannot"
    assert missing["problem"].startswith("no-such-trainer is not installed: pip install")
    (ratio,) = result["ratios"].values()
    assert ratio == {"step": 6.0, "step_range": [6.0, 6.0], "rollout": 6.0, "reference": 6.0, "update": 6.0}

    text = table(result)
    assert "| step, s | 1.00 | 6.00 | – | – |" in text
    assert "| × ours | 1 | **6.0** (6.0–6.0) | – | – |" in text
    assert "missing: no-such-trainer is not installed" in text
