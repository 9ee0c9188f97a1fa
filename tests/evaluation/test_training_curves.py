"""What the pictures of a training run show."""

import math
import weakref

import numpy as np
import pytest

from mecap_jax.evaluation import plot_style, training_plots
from mecap_jax.evaluation.training_plots import SampledGroups, reward_spread, running_mean


def test_the_running_mean_begins_at_the_first_value_and_follows():
    values = np.array([5.0] + [1.0] * 199)
    smooth = running_mean(values)
    assert smooth[0] == 5.0 and (np.diff(smooth[:20]) < 0).all()
    np.testing.assert_allclose(smooth[-1], 1.0, atol=1e-6)
    np.testing.assert_allclose(running_mean(np.full(7, 2.5)), 2.5)
    # By hand, over 100 values: the weight of a value halves with every later one.
    np.testing.assert_allclose(running_mean(np.array([4.0, 1.0, *np.zeros(98)]))[:3], [4, (2 + 1) / 1.5, 1.5 / 1.75])


def test_gaps_do_not_break_the_running_mean():
    smooth = running_mean(np.array([math.nan, 2.0, math.nan, 2.0] + [2.0] * 60))
    assert math.isnan(smooth[0])
    np.testing.assert_allclose(smooth[1:], 2.0)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Calls a plot function and returns the lines of one of its panels by label."""
    figures = []
    monkeypatch.setattr(plot_style, "save", lambda figure, path: figures.append(figure))

    def lines(plot, *arguments, panel=0):
        plot(*arguments, tmp_path / "unused.png")
        axis = figures[-1].axes[panel]
        curves = {line.get_label(): line.get_xydata().tolist() for line in axis.get_lines()}
        return curves | {part.get_label(): part.get_paths()[0].vertices.max(axis=0)[1] for part in axis.collections}

    return lines


def test_sft_shows_training_and_validation_in_one_unit(drawn):
    rows = [{"step": step, "loss": 100.0, "token_nll": 2.0} for step in (1, 2, 3, 4)]
    rows[1]["validation/token_nll"], rows[3]["validation/token_nll"] = 2.5, 2.25
    lines = drawn(training_plots.plot_sft, rows)
    assert lines["training"] == [[step, 2.0] for step in (1, 2, 3, 4)]
    assert lines["validation"] == [[2, 2.5], [4, 2.25]]


STEPS = [
    {"step": step, "reward": 2.5, "reward_std": 0.1, "rewards/emotion/mean": 1.0, "rewards/a/b.py:f/mean": 0.5,
     "frac_degenerate": 0.25, "learning_rate": 0.1 * step, "validation/rewards/emotion": 0.75,
     "validation/rewards/emotion/failures": 0.0}
    for step in (1, 2)
]  # fmt: skip


def test_grpo_shows_the_reward_of_greedy_captions(drawn):
    rows = [{"step": step, "reward": 0.5, "reward_std": 0.1} for step in (1, 2)]
    rows[1]["validation/reward"] = 0.75
    assert drawn(training_plots.plot_grpo, rows, {})["validation, greedy"] == [[2, 0.75]]
    assert "validation, greedy" not in drawn(training_plots.plot_grpo, rows[:1], {})


def test_terms_are_stacked_by_their_weights_where_these_are_fixed(drawn):
    weights = {"emotion": 2.0, "a/b.py:f": 1.0}
    stacked = drawn(training_plots.plot_grpo, STEPS, weights, panel=1)
    assert stacked == {"emotion": 2.0, "b.py:f": 2.5}
    assert drawn(training_plots.plot_grpo, STEPS, {}, panel=1)["b.py:f"] == [[1, 0.5], [2, 0.5]]
    below = [row | {"rewards/emotion/mean": -1.0} for row in STEPS]
    assert drawn(training_plots.plot_grpo, below, weights, panel=1)["emotion"] == [[1, -1.0], [2, -1.0]]


def test_shares_validation_terms_and_learning_rate_are_drawn(drawn):
    shares, validation, rate = (drawn(training_plots.plot_grpo, STEPS, {}, panel=panel) for panel in (5, 6, 7))
    assert shares == {"degenerate captions": [[1, 0.25], [2, 0.25]]}
    assert validation == {"emotion": [[1, 0.75], [2, 0.75]]}
    assert list(rate.values()) == [[[1, 0.1], [2, 0.2]]]


def test_degenerate_captions_do_not_count_in_the_spread_of_a_group():
    def group(*rewards):
        return {"completions": [{"reward": reward, "degenerate": None if reward else "empty"} for reward in rewards]}

    assert reward_spread(group(1.0, 3.0, 0.0, None)) == 1.0 and reward_spread(group(0.0, None)) == 0.0


def test_groups_are_gone_through_one_at_a_time():
    """A long run samples gigabytes: what the report tells of them is held, and the texts of five groups."""
    alive = weakref.WeakSet()

    class Row(dict):
        __hash__ = object.__hash__

    def rows():
        for step in range(1, 101):
            completions = [
                {"text": "x" * step, "reward": 1.0, "advantage": None},
                {"text": "", "reward": 1.0 + step % 50, "advantage": 0.5},
            ]
            row = Row(stage="grpo" if step != 99 else "reward_off", step=step, completions=completions)
            alive.add(row)
            yield row
            del row, completions
            assert len(alive) <= 7  # five to show, this one, and the one before

    groups = SampledGroups.read(rows())
    assert [row["step"] for row in groups.widest] == [49, 48, 98, 47, 97]  # of equal ones the earlier first
    assert len(groups.steps) == 99 and groups.spreads[3] == 2.0
    assert np.isnan(groups.advantages[::2]).all() and (groups.advantages[1::2] == 0.5).all()
    assert groups.lengths[:4].tolist() == [1, 0, 2, 0] and groups.completion_steps[:4].tolist() == [1, 1, 2, 2]
    assert SampledGroups.read([{"stage": "sft_control", "step": 1}]) is None
