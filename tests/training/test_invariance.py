"""One step is one step: on one device, on eight, in micro-batches, sharded, in two processes; also where the rows of a
batch do not divide evenly, and the places that are left are filled up with rows that must not count."""

import functools
import gc
import socket
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from mecap_jax.models.multimodal_lm import MultimodalLM
from tests.training import harness

ROOT = Path(__file__).parents[2]


def _after(made, steps=2):
    _, state, step = made
    metrics = []
    for number in range(steps):
        state, values, _ = step(state, number)
        metrics.append({k: v for k, v in values.items() if not k.startswith("timing_s")})
    return jax.device_get(state.params), metrics


@pytest.fixture(scope="module", params=["sft", "grpo"])
def expected(request):
    make = {"sft": harness.sft_step, "grpo": harness.grpo_step}[request.param]
    return make, *_after(make(harness.mesh(), optimizer=harness.DESCENT))


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 8, 1)], ids=lambda s: "data{}-fsdp{}-tensor{}".format(*s))
def test_eight_devices_equal_one(expected, shape):
    make, params, metrics = expected
    actual, actual_metrics = _after(make(harness.mesh(*shape), optimizer=harness.DESCENT))
    chex.assert_trees_all_close(actual, params, atol=1e-5)
    chex.assert_trees_all_close(actual_metrics, metrics, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("micro", [2, 5])
def test_micro_batches_equal_one_batch(expected, micro):
    make, params, metrics = expected
    actual, actual_metrics = _after(make(harness.mesh(), micro=micro, optimizer=harness.DESCENT))
    chex.assert_trees_all_close(actual, params, atol=1e-5)
    chex.assert_trees_all_close(actual_metrics, metrics, atol=1e-4, rtol=1e-4)


def test_a_step_moves_every_parameter(expected):
    """Otherwise the comparisons above would prove nothing."""
    _, params, _ = expected
    before = jax.device_get(harness.initial_state(harness.mesh(), harness.DESCENT)[1].params)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), params, before)
    stuck = [jax.tree_util.keystr(path) for path, m in jax.tree_util.tree_leaves_with_path(moved) if not m]
    assert stuck == []


@pytest.fixture(scope="module")
def taken_elsewhere(tmp_path_factory):
    """(processes, devices of each) -> the directory with what each kind of step gave there; all kinds start once."""

    @functools.cache
    def take(processes, devices):
        directory = tmp_path_factory.mktemp("elsewhere")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "tests.training.worker", "sft,grpo,asking" if processes > 1 else "sft,grpo"]
        rest = [str(processes), str(port), str(devices), directory]
        workers = [
            subprocess.Popen([*command, str(i), *rest], cwd=ROOT, stderr=subprocess.PIPE, text=True)
            for i in range(processes)
        ]
        messages = [worker.communicate(timeout=400)[1] for worker in workers]
        assert [worker.returncode for worker in workers] == [0] * processes, messages[0][-3000:]
        return directory

    return take


@pytest.mark.slow
@pytest.mark.parametrize("processes, devices", [(2, 2), (1, 64)])
def test_other_processes_take_the_same_step(expected, taken_elsewhere, processes, devices):
    """Each of two processes with two devices brings about half of the rows; on 64 devices most places are filled up."""
    make, params, metrics = expected
    kind = "grpo" if make is harness.grpo_step else "sft"
    assert_same(taken_elsewhere(processes, devices) / f"{kind}.npz", params, metrics)


@pytest.mark.slow
def test_the_policy_is_asked_the_same_everywhere(taken_elsewhere):
    """What it replies decides the step: on one device, in micro-batches on eight, and over two processes."""
    make = functools.partial(harness.grpo_step, optimizer=harness.DESCENT, curious=True)
    params, metrics = _after(make(harness.mesh()))
    assert metrics[0]["rewards/curious/std"] > 0 and metrics[0]["rewards/curious/failures"] == 0
    actual, actual_metrics = _after(make(harness.mesh(4, 2), micro=1))
    chex.assert_trees_all_close(actual, params, atol=1e-5)
    chex.assert_trees_all_close(actual_metrics, metrics, atol=1e-4, rtol=1e-4)
    assert_same(taken_elsewhere(2, 2) / "asking.npz", params, metrics)


def assert_same(file, params, metrics):
    result = np.load(file)
    expected_values = harness.flat(params, metrics)
    assert set(result.files) == set(expected_values)
    for name, value in expected_values.items():
        np.testing.assert_allclose(result[name], value, atol=1e-4 if "metrics" in name else 1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [harness.sft_step, harness.grpo_step], ids=["sft", "grpo"])
def test_no_program_is_compiled_after_the_first_step(make, monkeypatch):
    """Mixed lengths and missing modalities are masks, not other programs."""
    on = harness.mesh(data=4, fsdp=2)
    _, state, step = make(on)
    state, _, _ = step(state, 0)
    untraced = chex.assert_max_traces(MultimodalLM.encode_media, n=0)
    monkeypatch.setattr(MultimodalLM, "encode_media", untraced)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    try:
        for number in (1, 2, harness.COMPLETE, harness.SILENT):
            state, _, _ = step(state, number)
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled == []
    # Nor is anything kept of the whole weights that completions were sampled with.
    gc.collect()
    embeddings = state.params["language_model"]["embed_tokens"]["embedding"]
    like = [x for x in jax.live_arrays() if x.shape == embeddings.shape and getattr(x.sharding, "mesh", None) == on]
    assert like and not any(x.sharding.is_fully_replicated for x in like)
