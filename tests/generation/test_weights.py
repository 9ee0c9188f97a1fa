"""Sampling with weights that are gathered and rounded once gives what sampling with the training parameters gives."""

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mecap_jax.batch import Completions
from mecap_jax.generation import weights
from mecap_jax.generation.sampler import generate
from mecap_jax.generation.scoring import completion_logprobs
from mecap_jax.generation.weights import sampling_params
from mecap_jax.models.checkpoints.table import flatten
from mecap_jax.sharding import put_batch
from mecap_jax.train_state import abstract_model
from tests import miniature
from tests.training.harness import mesh

GROUP, LENGTH, ROWS = 2, 5, 8


def _placed(config, on):
    """The miniature's weights as training has them on a mesh."""
    graphdef, abstract = abstract_model(config, on)
    params = miniature.model(config=config)[1]
    return graphdef, jax.tree.map(lambda x, a: jax.device_put(np.asarray(x), a.sharding), params, abstract)


def _arguments(on):
    prompt = put_batch(jax.tree.map(np.asarray, miniature.prompts(ROWS)), on)
    return prompt, np.array([3, 1], np.uint32), put_batch(np.arange(ROWS, dtype=np.int32), on)


_OPTIONS = dict(group_size=GROUP, max_new_tokens=LENGTH, temperature=1.1, end_ids=(miniature.END,))


def _gathers_in_loops(text: str) -> int:
    """All-gathers in what the program's loops run at each turn."""
    bodies = dict(re.findall(r"^%?([\w.-]+) \(.*?\) -> .*? \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    inside, found = set(), re.findall(r"\bbody=%?([\w.-]+)", text)
    assert found, "a sampling program without a loop"
    while found:
        name = found.pop()
        if name not in inside and name in bodies:
            inside.add(name)
            found += re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)", bodies[name])
    return sum(len(re.findall(r" all-gather(?:-start)?\(", bodies[name])) for name in inside)


def test_no_token_waits_for_weights():
    """Eight devices over which parameters are divided: each holds all of them, and no turn of the loop gathers any."""
    on = mesh(fsdp=8)
    graphdef, params = _placed(miniature.CONFIG, on)
    whole = sampling_params(params, "float32", True)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(whole))
    arguments = _arguments(on)
    compiled = {
        name: generate.lower(graphdef, p, *arguments, **_OPTIONS).compile()
        for name, p in (("divided", params), ("whole", whole))
    }
    gathers = {name: _gathers_in_loops(program.as_text()) for name, program in compiled.items()}
    assert gathers["whole"] == 0 < gathers["divided"]
    divided, gathered = (generate(graphdef, p, *arguments, **_OPTIONS) for p in (params, whole))
    np.testing.assert_array_equal(divided.tokens, gathered.tokens)
    chex.assert_trees_all_close(divided.logprobs, gathered.logprobs, atol=1e-6)


def test_heads_stay_divided():
    on = mesh(fsdp=2, tensor=2)
    _, params = _placed(miniature.CONFIG, on)
    for path, x in flatten(sampling_params(params, "float32", True)).items():
        axes = {axis for axis in x.sharding.spec if axis}
        assert axes == {axis for axis in flatten(params)[path].sharding.spec if axis} - {"fsdp"}, path
        np.testing.assert_array_equal(x, flatten(params)[path])


@pytest.mark.parametrize("config", [miniature.CONFIG, miniature.LORA], ids=["whole", "adapters"])
def test_rounding_once_is_rounding_at_every_use(config):
    """Stored in float32, multiplied in bfloat16: the same tokens and log-probabilities, bit for bit."""
    config = dataclasses.replace(config, dtype="bfloat16")
    graphdef, params = _placed(config, mesh())
    params = miniature.trained_adapters(params)
    rounded = sampling_params(params, "bfloat16", True)
    assert {x.dtype for x in jax.tree.leaves(rounded) if x.ndim > 1} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(rounded) if x.ndim < 2} == {jnp.dtype("float32")}
    expected, actual = (generate(graphdef, p, *_arguments(mesh()), **_OPTIONS) for p in (params, rounded))
    chex.assert_trees_all_equal(actual, expected)
    completions = Completions(actual.tokens, actual.mask())
    prompt = miniature.prompts(ROWS)
    scored = [completion_logprobs(graphdef, p, prompt, completions, temperature=1.0) for p in (params, rounded)]
    chex.assert_trees_all_equal(*scored)


def test_no_program_makes_more_than_its_bound(monkeypatch):
    """Parameters that do not fit into one program go by several, and come out the same."""
    _, params = _placed(miniature.CONFIG, mesh(fsdp=8))
    leaves = jax.tree.leaves(params)
    sizes = [x.nbytes for x in leaves]
    monkeypatch.setattr(weights, "_AT_ONCE", max(sizes) - 1)
    parts = [indices for indices, _ in weights.conversions(leaves, "float32", True)]
    made = [sum(sizes[i] for i in part) for part in parts]
    assert len(parts) > 2 and max(sizes) in made and sorted(made)[-2] <= max(sizes)
    assert all(len(part) == 1 or size < max(sizes) for part, size in zip(parts, made))
    for a, b in zip(jax.tree.leaves(sampling_params(params, "float32", True)), leaves, strict=True):
        assert a.sharding.is_fully_replicated
        np.testing.assert_array_equal(a, b)


def test_what_need_not_change_is_not_copied():
    for on, gather in ((mesh(), True), (mesh(fsdp=8), False), (mesh(data=8), True)):
        _, params = _placed(miniature.CONFIG, on)
        same = sampling_params(params, "float32", gather)
        assert all(a is b for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(params), strict=True))
    _, params = _placed(dataclasses.replace(miniature.CONFIG, param_dtype="bfloat16"), mesh())
    assert all(
        a is b for a, b in zip(jax.tree.leaves(sampling_params(params, "float32", True)), jax.tree.leaves(params))
    )
