"""Steps of a model of which a part is frozen: only the other part has gradients and moments, and moves."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mecap_jax.generation.scoring import completion_logprobs
from mecap_jax.models.checkpoints.table import flatten
from mecap_jax.models.lora import ADAPTER_LEAVES, Draw
from mecap_jax.models.parameters import merge_params, split_params
from mecap_jax.rl.learner import GrpoLearner
from mecap_jax.rl.rollout import RolloutEngine
from mecap_jax.sharding import put_batch
from mecap_jax.train_state import abstract_model, make_gradient
from mecap_jax.training.sft import SftBatch, sft_loss
from tests import miniature
from tests.training import harness

MAKERS = {"sft": harness.sft_step, "grpo": harness.grpo_step}
TOP = harness.Parts(miniature.CONFIG, (r"language_model\.layers\.1\..*", r"visual\.merger\..*", r".*\.norm\.scale"))


def _after(made, steps=2):
    _, state, step = made
    metrics = []
    for number in range(steps):
        state, values, _ = step(state, number)
        metrics.append({k: v for k, v in values.items() if not k.startswith("timing_s")})
    return jax.device_get(state), metrics


@pytest.mark.parametrize("kind", MAKERS)
def test_only_adapters_move_and_have_moments(kind):
    """SFT in the miniature has Muon, GRPO AdamW: both work on the partial tree."""
    on = harness.mesh()
    frozen = harness.frozen_params(on, harness.ADAPTERS)
    before = jax.tree.map(lambda x: np.array(x), frozen)
    made = MAKERS[kind](on, parts=harness.ADAPTERS)
    start = jax.device_get(made[1].params)
    state, _ = _after(made)
    chex.assert_trees_all_equal(jax.device_get(harness.frozen_params(on, harness.ADAPTERS)), before)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), state.params, start)
    assert all(flatten(moved).values()), moved
    assert {path.rpartition(".")[2] for path in flatten(state.params)} == set(ADAPTER_LEAVES)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)]
    moments = [path[-1].key for path in paths if isinstance(path[-1], jax.tree_util.DictKey)]
    assert moments and set(moments) == set(ADAPTER_LEAVES)


def test_the_gradient_has_no_frozen_leaf():
    on = harness.mesh()
    graphdef, state = harness.initial_state(on, harness.DESCENT, harness.ADAPTERS)
    prompt, targets, _ = harness.rows(0)
    gradients, _ = jax.eval_shape(
        make_gradient(graphdef, state.params, functools.partial(sft_loss, normalization="token")),
        state.params,
        None,
        harness.frozen_params(on, harness.ADAPTERS),
        SftBatch(*put_batch((prompt, targets, np.arange(harness.BATCH, dtype=np.int32)), on)),
        jnp.float32(1),
        Draw(np.uint32(0), jnp.int32(0), jnp.arange(harness.BATCH)),
    )
    assert jax.tree.structure(gradients) == jax.tree.structure(state.params)


def test_what_trains_takes_the_step_that_it_takes_when_all_train():
    on = harness.mesh()
    whole, _ = _after(harness.sft_step(on, optimizer=harness.DESCENT), steps=1)
    part, _ = _after(harness.sft_step(on, optimizer=harness.DESCENT, parts=TOP), steps=1)
    expected, _ = split_params(whole.params, TOP.trainable)
    chex.assert_trees_all_close(part.params, expected, atol=1e-6)
    start = jax.device_get(harness.initial_state(on, harness.DESCENT, TOP)[1].params)
    assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(part.params), jax.tree.leaves(start)))


def test_eight_devices_equal_one():
    """Adapters are divided as their kernels are; dropout draws the same masks."""
    options = {"optimizer": harness.DESCENT, "parts": harness.ADAPTERS}
    expected, expected_metrics = _after(harness.grpo_step(harness.mesh(), **options))
    actual, metrics = _after(harness.grpo_step(harness.mesh(2, 2, 2), **options))
    chex.assert_trees_all_close(actual.params, expected.params, atol=1e-5)
    chex.assert_trees_all_close(metrics, expected_metrics, atol=1e-4, rtol=1e-4)


def test_frozen_towers_run_once_a_step(monkeypatch):
    """What they make of a clip is handed to reference and gradient; the step is the same."""
    on, parts = harness.mesh(data=2, fsdp=2), harness.Parts(miniature.CONFIG, (r"language_model\..*",))
    options = {"micro": 1, "optimizer": harness.DESCENT, "parts": parts}
    with monkeypatch.context() as patch:
        patch.setattr(RolloutEngine, "_with_media", lambda self, params, micro: (micro, None))
        expected, every_time = _after(harness.grpo_step(on, **options))
    seen, update = [], GrpoLearner._update

    def recorded(self, state, parts, accumulate):
        seen.extend(example for part in parts for example, _ in part)
        return update(self, state, parts, accumulate)

    monkeypatch.setattr(GrpoLearner, "_update", recorded)
    actual, once = _after(harness.grpo_step(on, **options))
    assert {(e.prompt.audio.shape[1], e.prompt.patches.shape[1]) for e in seen} == {(0, 0)}
    chex.assert_trees_all_close(actual.params, expected.params, atol=1e-6)
    for one, other in zip(once, every_time, strict=True):
        assert one.pop("flops") < other.pop("flops") and one.pop("flops/update") < other.pop("flops/update")
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


def test_adapters_follow_the_axes_of_their_kernels():
    on = harness.mesh(2, 2, 2)
    _, abstract = abstract_model(harness.ADAPTERS.model, on)
    projection = abstract["language_model"]["layers"][0]["self_attn"]["q_proj"]
    assert projection["kernel"].sharding.spec == jax.P("fsdp", "tensor")
    assert projection["lora_a"].sharding.spec == jax.P("fsdp")
    assert projection["lora_b"].sharding.spec == jax.P(None, "tensor")


def test_the_reference_policy_of_fresh_adapters_is_the_model_without_them():
    on = harness.mesh()
    prompt, completions, _ = harness.rows(0)
    inputs = put_batch((prompt, completions), on)
    graphdef, state = harness.initial_state(on, harness.DESCENT, harness.ADAPTERS)
    params = merge_params(state.params, harness.frozen_params(on, harness.ADAPTERS))
    base_graphdef, base = harness.initial_state(on, harness.DESCENT)
    actual = completion_logprobs(graphdef, params, *inputs, temperature=1.0)
    expected = completion_logprobs(base_graphdef, base.params, *inputs, temperature=1.0)
    chex.assert_trees_all_close(actual, expected, atol=5e-6)
