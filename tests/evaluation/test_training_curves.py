"""What the pictures of a training run show."""

import math

import numpy as np
import pytest

from mecap_jax.evaluation import plots
from mecap_jax.evaluation.plots import running_mean


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
    """Calls a plot function and returns the lines of its first panel by label."""
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))

    def lines(plot, rows):
        plot(rows, tmp_path / "unused.png")
        return {line.get_label(): line.get_xydata().tolist() for line in figures[-1].axes[0].get_lines()}

    return lines


def test_sft_shows_training_and_validation_in_one_unit(drawn):
    rows = [{"step": step, "loss": 100.0, "token_nll": 2.0} for step in (1, 2, 3, 4)]
    rows[1]["validation/token_nll"], rows[3]["validation/token_nll"] = 2.5, 2.25
    lines = drawn(plots.plot_sft, rows)
    assert lines["training"] == [[step, 2.0] for step in (1, 2, 3, 4)]
    assert lines["validation"] == [[2, 2.5], [4, 2.25]]


def test_grpo_shows_the_reward_of_greedy_captions(drawn):
    rows = [{"step": step, "reward": 0.5, "reward_std": 0.1} for step in (1, 2)]
    rows[1]["validation/reward"] = 0.75
    assert drawn(plots.plot_grpo, rows)["validation, greedy"] == [[2, 0.75]]
    assert "validation, greedy" not in drawn(plots.plot_grpo, rows[:1])
