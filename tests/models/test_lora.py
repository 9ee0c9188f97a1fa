"""Low-rank adapters: where they sit, what they compute, how they merge and what their gradient is."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mecap_jax.config import ConfigError
from mecap_jax.model_config import LoraConfig
from mecap_jax.models.checkpoints.table import flatten
from mecap_jax.models.layers import Dtypes, Linear
from mecap_jax.models.lora import Draw, LoraLinear, merge_lora, use_dropout
from mecap_jax.models.multimodal_lm import MultimodalLM
from mecap_jax.models.parameters import split_params
from tests import miniature

LORA = miniature.LORA.lora
TOKENS = np.random.default_rng(0).integers(4, 64, (3, 2, 4)).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def logits(graphdef, params):
    model = nnx.merge(graphdef, params)
    return model.language_model.logits(model.completion_states(miniature.prompts(), jnp.asarray(TOKENS)))


@pytest.fixture(scope="module")
def adapted():
    graphdef, params = miniature.model(config=miniature.LORA)
    return graphdef, miniature.trained_adapters(params)


def adapters(params):
    return split_params(params, ())[0]


def test_fresh_adapters_change_no_weight_and_no_output():
    graphdef, params = miniature.model()
    adapted_graphdef, adapted_params = miniature.model(config=miniature.LORA)
    base = split_params(adapted_params, ())[1]
    chex.assert_trees_all_equal(base, params)
    # Not bitwise: the compiler sums the products of the two programs in different orders.
    chex.assert_trees_all_close(logits(adapted_graphdef, adapted_params), logits(graphdef, params), atol=5e-6)


def test_adapters_sit_where_targets_match_and_nowhere_else():
    _, params = miniature.model(config=miniature.LORA)
    found = {path.rpartition(".")[0] for path in flatten(adapters(params))}
    assert found == {
        "audio_tower.layers.0.fc1",
        *(f"visual.blocks.{i}.attn.q" for i in (0, 1)),
        *(f"language_model.layers.{i}.self_attn.{name}_proj" for i in (0, 1) for name in "qv"),
        *(f"language_model.layers.{i}.mlp.down_proj" for i in (0, 1)),
    }


def test_merged_equals_unmerged(adapted):
    """Over adapters in the decoder and in both towers."""
    graphdef, params = adapted
    merged = merge_lora(params, LORA)
    base_graphdef, base = miniature.model()
    chex.assert_trees_all_equal_shapes_and_dtypes(merged, base)
    actual = logits(base_graphdef, merged)
    chex.assert_trees_all_close(actual, logits(graphdef, params), atol=1e-5)
    assert np.abs(actual - logits(base_graphdef, base)).max() > 0.1
    for part in ("audio_tower", "visual"):  # each by itself matters
        assert np.abs(actual - logits(base_graphdef, {**merged, part: base[part]})).max() > 1e-3


def test_merging_rounds_once_to_the_dtype_of_the_kernel():
    rng = np.random.default_rng(0)
    a, b, kernel = (rng.normal(size=shape).astype(np.float32) for shape in ((6, 2), (2, 5), (6, 5)))
    params = {"kernel": jnp.asarray(kernel, jnp.bfloat16), "lora_a": jnp.asarray(a), "lora_b": jnp.asarray(b)}
    merged = merge_lora(params, LORA)["kernel"]
    exact = np.asarray(params["kernel"], np.float64) + LORA.alpha / LORA.rank * a.astype(np.float64) @ b
    np.testing.assert_array_equal(merged, jnp.asarray(exact.astype(np.float32), jnp.bfloat16))


def test_the_gradient_is_the_chain_rule_of_the_whole_kernels(adapted):
    """W' = W + s A B, so dL/dA = s (dL/dW) B^T and dL/dB = s A^T (dL/dW)."""
    graphdef, params = adapted
    weights = np.random.default_rng(1).normal(size=(*TOKENS.shape, 64))
    gradients = jax.grad(lambda params: jnp.sum(jnp.sin(logits(graphdef, params)) * weights))(params)
    values, slopes, scale = flatten(params), flatten(gradients), LORA.alpha / LORA.rank
    names = [path.removesuffix(".lora_a") for path in values if path.endswith(".lora_a")]
    assert len(names) == 9
    for name in names:
        a, b, slope = values[f"{name}.lora_a"], values[f"{name}.lora_b"], slopes[f"{name}.kernel"]
        np.testing.assert_allclose(slopes[f"{name}.lora_a"], scale * slope @ b.T, atol=2e-4, rtol=1e-4)
        np.testing.assert_allclose(slopes[f"{name}.lora_b"], scale * a.T @ slope, atol=2e-4, rtol=1e-4)
        assert np.abs(slopes[f"{name}.lora_a"]).max() > 1e-2


def one(config: LoraConfig, dtype: str = "float32") -> LoraLinear:
    rngs, dtypes = nnx.Rngs(0), Dtypes(jnp.dtype(dtype), jnp.dtype(dtype))
    return LoraLinear(Linear(100, 40, ("embed", "mlp"), dtypes, rngs, bias=True), config, rngs)


def test_initial_values_and_dtypes():
    layer = one(LoraConfig(rank=50), "bfloat16")
    a = np.asarray(layer.lora_a[...])
    assert a.dtype == layer.lora_b.dtype == np.float32 and layer.kernel.dtype == jnp.bfloat16
    assert 0.0999 < np.abs(a).max() <= 0.1 and abs(a.std() - 0.1 / 3**0.5) < 2e-3  # U(-1/sqrt(in), 1/sqrt(in))
    x = jnp.linspace(-1, 1, 200).reshape(2, 100)
    assert layer(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(layer(x), Linear.__call__(layer, x))  # B = 0
    assert layer.lora_a.get_metadata()["logical_axes"] == ("embed", None)
    assert layer.lora_b.get_metadata()["logical_axes"] == (None, "mlp")


def test_dropout_is_drawn_in_training_only_and_is_unbiased():
    layer = one(LoraConfig(rank=4, dropout=0.25))
    layer.lora_b[...] = jax.random.normal(jax.random.key(0), (4, 40))
    x = jax.random.normal(jax.random.key(1), (7, 100))
    assert np.abs(layer(x) - Linear.__call__(layer, x)).max() > 0.1
    expected = layer(x)
    graphdef, state = nnx.split(layer)

    def drawn(*draw):
        model = nnx.merge(graphdef, state)
        use_dropout(model, Draw(jnp.int32(draw[0]), jnp.int32(draw[1]), draw[2] + jnp.arange(7)))
        return model(x)

    np.testing.assert_array_equal(nnx.merge(graphdef, state)(x), expected)
    first = drawn(0, 1, 2)
    np.testing.assert_array_equal(drawn(0, 1, 2), first)
    for other in ((1, 1, 2), (0, 2, 2), (0, 1, 3), (0, 2, 1)):
        assert np.abs(drawn(*other) - first).max() > 0.1
    many = jax.jit(jax.vmap(lambda step: drawn(0, step, 0)))(jnp.arange(4000))
    np.testing.assert_allclose(many.mean(0), expected, atol=6 * float(many.std()) / 4000**0.5)


def test_dropout_differs_between_prompt_and_completions():
    layer = one(LoraConfig(rank=4, alpha=4.0, dropout=0.5))
    layer.kernel[...] = jnp.zeros((100, 40))
    layer.lora_b[...] = jnp.ones((4, 40))
    use_dropout(layer, Draw(np.int32(0), np.int32(0), np.arange(2)))
    x = jnp.ones((2, 3, 100))
    assert np.abs(layer(x) - layer(x[:, :, None])[:, :, 0]).max() > 0.1


def test_a_target_that_matches_nothing_is_named():
    config = dataclasses.replace(miniature.LORA, lora=LoraConfig(targets=(r"visual\..*\.q", "self_attn", r".*_porj")))
    with pytest.raises(ConfigError) as error:
        nnx.eval_shape(lambda: MultimodalLM(config, nnx.Rngs(0)))
    assert "no projection matches 'self_attn', '.*_porj'" in str(error.value)
    assert "language_model.layers.N.self_attn.q_proj" in str(error.value)
    with pytest.raises(ConfigError, match="empty tuple"):
        nnx.eval_shape(lambda: MultimodalLM(dataclasses.replace(config, lora=LoraConfig(targets=())), nnx.Rngs(0)))
