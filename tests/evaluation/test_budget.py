"""Curves over the length of SFT say where the reward teaches something, by intervals of paired differences."""

import dataclasses

import pytest

from mecap_jax.evaluation.budget import KEYS, budget_tables, plot_budget
from mecap_jax.evaluation.reproduction import ReproductionError
from tests.evaluation.test_reproduction import REPORTS, SEEDS, cells, result


def seeds_of(sft, grpo):
    values = {"sft": sft, "grpo": grpo, "reward_off": sft}
    return [
        {stage: result(10 * seed + s, **dict.fromkeys(KEYS, value)) for s, (stage, value) in enumerate(values.items())}
        for seed in SEEDS
    ]


BUDGETS = {900: seeds_of(0.8, 0.8), 150: seeds_of(0.4, 0.6)}


def test_gains_are_told_by_length():
    means, compared = budget_tables(REPORTS, BUDGETS).split("| steps of SFT | difference")
    assert means.index("| 150 | SFT |") < means.index("| 150 | GRPO |") < means.index("| 900 | SFT |")
    assert "mean of 3 seeds (0, 1, 2)" in means and "over speakers and seeds" in means
    short, long = (cells(compared, f"{steps} | GRPO − Reward off") for steps in (150, 900))
    assert (short[-1], long[-1]) == ("above", "not told apart")
    assert short[1].startswith("+0.") and "[" in short[1]


def test_a_row_that_not_every_length_has_is_left_out():
    budgets = {**BUDGETS, 900: [{k: v for k, v in found.items() if k != "reward_off"} for found in BUDGETS[900]]}
    assert "Reward off" not in budget_tables(REPORTS, budgets)


def test_other_tasks_are_told_by_their_own_measures(tmp_path):
    seeds = [
        {stage: result(seed, war=0.5, uar=value) for stage, value in (("sft", 0.2), ("grpo", 0.4))} for seed in SEEDS
    ]
    budgets = {steps: seeds for steps in (1, 2)}
    lines = budget_tables(REPORTS, budgets).splitlines()
    (header,) = (line for line in lines if line.startswith("| steps of SFT | stage"))
    assert [title.split()[0] for title in header.split(" | ")[2:]] == ["WAR", "UAR"]
    plot_budget(budgets, tmp_path / "budget.png")


def test_lengths_are_compared_on_the_same_clips():
    fewer = [
        {stage: dataclasses.replace(of, clips=of.clips[1:]) for stage, of in found.items()} for found in BUDGETS[900]
    ]
    with pytest.raises(
        ReproductionError, match="behind 150 steps, sft: evaluated on other clips than seed 0 behind 900"
    ):
        budget_tables(REPORTS, {**BUDGETS, 900: fewer})


def test_curves_are_drawn(tmp_path):
    plot_budget(BUDGETS, tmp_path / "budget.png")
    assert (tmp_path / "budget.png").read_bytes().startswith(b"\x89PNG")
