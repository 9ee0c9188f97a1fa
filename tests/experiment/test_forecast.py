"""The estimate of a run's time."""

import re

import jax
import pytest
from flax import nnx

from mecap_jax.config import Bucket, load
from mecap_jax.experiment import forecast
from mecap_jax.experiment.forecast import Cost, Forecast, first_forecast, seconds_of_runs
from mecap_jax.train_state import abstract_model
from tests import miniature
from tests.training.harness import mesh


def test_the_work_of_a_prompt_is_what_its_program_multiplies():
    prompt = miniature.prompts(4)
    on = mesh()
    graphdef, params = abstract_model(miniature.CONFIG, on)
    lowered = jax.jit(lambda p, b: nnx.merge(graphdef, p).prefill(b)[0]).lower(params, prompt)
    media = (prompt.audio.shape[1], *prompt.windows.shape[1:3], prompt.features.shape[1], prompt.patches.shape[2])
    counted = 4 * Cost(miniature.CONFIG, Bucket(prompt.tokens.shape[1], *media), on).prompt
    # XLA also counts what the estimate leaves out: attention between positions, norms, positions.
    assert 0.3 < counted / lowered.cost_analysis()["flops"] < 1.1


def test_parts_that_are_done_correct_what_is_left():
    ahead = Forecast({"sft": 600.0, "grpo": 1200.0, "evaluation": 0.0}, rate=10.0)
    assert ahead.seconds() == 180 and str(ahead) == "about 3 minutes"
    ahead.done("sft", 30.0)  # twice as fast
    assert ahead.seconds() == pytest.approx(60) and str(ahead) == "about a minute"
    ahead.done("grpo", 60.0)
    ahead.done("evaluation", 0.0)
    assert ahead.seconds() == 0
    ahead = Forecast({"sft": 1.0, "grpo": 1200.0}, rate=10.0)
    ahead.done("sft", 5.0)  # the last step of a stage that was interrupted says nothing of the next stage
    assert ahead.seconds() == 120


def test_the_first_estimate_counts_the_corpus_and_every_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "_matmul_rate", lambda model: 1e11)
    monkeypatch.setattr(forecast.os, "sched_getaffinity", lambda pid: {0, 1})

    def minutes(*overrides):
        text = first_forecast(load("configs/grpo.py", list(overrides)), tmp_path, mesh())
        return [int(n) for n in re.findall(r"about (\d+) minutes", text)]

    whole, corpus = minutes("data.synthetic.clips=20000")
    assert corpus == 15 and whole > corpus
    longer, same = minutes("data.synthetic.clips=20000", "grpo.steps=2000")
    assert same == corpus and longer > 1.5 * whole
    several = [load("configs/grpo.py", [f"seed={seed}", "data.synthetic.clips=20000"]) for seed in range(3)]
    first, *others = (seconds / 60 for seconds in seconds_of_runs([(config, tmp_path) for config in several]))
    assert round(first) == whole and others == pytest.approx([first - 15] * 2)
