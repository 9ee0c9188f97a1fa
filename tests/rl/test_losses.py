"""The objective against NumPy written from the papers, against finite differences, and at its edges."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mecap_jax.config import LossConfig
from mecap_jax.rl.losses import denominator, kl_divergence, policy_loss, token_weights

MAX_TOKENS = 6
NAMES = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo")
VARIANTS = [
    LossConfig(name=name, importance=level, clip_low=0.2, clip_high=0.3, clip_dual=dual)
    for name, level, dual in itertools.product(NAMES, ("token", "sequence"), (0.0, 3.0))
    if not (name == "gspo" and level == "token")  # GSPO is the sequence level
    and not (name in ("cispo", "sapo") and dual)  # CISPO clips the weight and not the objective, SAPO has a gate
]


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    lengths = np.array([[6, 3, 1], [4, 0, 2]])  # one completion is masked out altogether
    mask = np.arange(MAX_TOKENS) < lengths[..., None]
    old = rng.normal(-2, 1, (2, 3, MAX_TOKENS))
    new = old + rng.normal(0, 0.4, old.shape)
    advantages = rng.normal(0, 1, (2, 3))
    return dict(
        logprobs=new.astype(np.float32),
        old_logprobs=old.astype(np.float32),
        advantages=advantages.astype(np.float32),
        mask=mask,
    )


def _reference(batch, config):
    """The loss of a batch, token by token in float64."""
    total, weight = 0.0, 0.0
    level = "sequence" if config.name == "gspo" else config.importance
    for b, g in np.ndindex(2, 3):
        tokens = np.flatnonzero(batch["mask"][b, g])
        advantage = float(batch["advantages"][b, g])
        new = batch["logprobs"][b, g].astype(np.float64)
        difference = new - batch["old_logprobs"][b, g]
        losses = []
        for t in tokens:
            ratio = np.exp(difference[tokens].mean() if level == "sequence" else difference[t])
            clipped = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
            if config.name == "cispo":
                loss = -min(ratio, 1 + config.clip_high) * advantage * new[t]
            elif config.name == "sapo":  # eq. 5 and 6 of arXiv 2511.20347
                temperature = config.sapo_positive if advantage > 0 else config.sapo_negative
                loss = -4 / temperature / (1 + np.exp(-temperature * (ratio - 1))) * advantage
            else:
                loss = -min(ratio * advantage, clipped * advantage)
                if config.clip_dual and advantage < 0:
                    loss = min(loss, -config.clip_dual * advantage)
            losses.append(loss)
        if config.name in ("grpo", "gspo", "sapo") and losses:
            total, weight = total + np.mean(losses), weight + 1
        elif config.name == "dr_grpo":
            total, weight = total + np.sum(losses) / MAX_TOKENS, weight + 1
        elif config.name in ("dapo", "cispo"):
            total, weight = total + np.sum(losses), weight + len(losses)
    return total / weight


def _loss(batch, config):
    per_token = policy_loss(**{k: jnp.asarray(v) for k, v in batch.items()}, config=config).per_token
    mask = jnp.asarray(batch["mask"])
    return _weighted_sum(per_token, mask, config.name) / denominator(mask, config.name)


def _weighted_sum(per_token, mask, name):
    return jnp.sum(per_token * token_weights(mask, name, MAX_TOKENS))


@pytest.mark.parametrize("config", VARIANTS, ids=lambda c: f"{c.name}-{c.importance}-{c.clip_dual:g}")
def test_equals_numpy(batch, config):
    np.testing.assert_allclose(_loss(batch, config), _reference(batch, config), rtol=1e-5)


@pytest.mark.parametrize("config", VARIANTS, ids=lambda c: f"{c.name}-{c.importance}-{c.clip_dual:g}")
def test_gradient_equals_finite_differences(batch, config):
    """In float64, where the clip is not crossed within a step; CISPO's weight is a constant of the gradient."""
    with jax.enable_x64(True):
        wide = {k: jnp.asarray(v, jnp.float64) if v.dtype != bool else jnp.asarray(v) for k, v in batch.items()}

        def loss(logprobs):
            inputs = wide | {"logprobs": logprobs}
            if config.name == "cispo":  # hold the weight: score the perturbed tokens under the unperturbed ratio
                inputs["old_logprobs"] = wide["old_logprobs"] + logprobs - wide["logprobs"]
            per_token = policy_loss(**inputs, config=config).per_token
            return _weighted_sum(per_token, wide["mask"], config.name)

        def plain(logprobs):
            per_token = policy_loss(**(wide | {"logprobs": logprobs}), config=config).per_token
            return _weighted_sum(per_token, wide["mask"], config.name)

        gradient = np.asarray(jax.grad(plain)(wide["logprobs"]))
        step = 1e-6
        for index in np.ndindex(*gradient.shape):
            bump = jnp.zeros_like(wide["logprobs"]).at[index].set(step)
            slope = (loss(wide["logprobs"] + bump) - loss(wide["logprobs"] - bump)) / (2 * step)
            np.testing.assert_allclose(gradient[index], slope, atol=1e-7)


def test_clipped_tokens_have_no_gradient_and_are_counted():
    """A ratio above 1 + eps with positive advantage, below 1 - eps with negative: nothing left to gain."""
    logprobs = jnp.log(jnp.array([[[1.5, 1.0, 0.5], [1.5, 1.0, 0.5]]]))
    inputs = dict(
        old_logprobs=jnp.zeros((1, 2, 3)), advantages=jnp.array([[1.0, -1.0]]), mask=jnp.ones((1, 2, 3), bool)
    )
    config = LossConfig(clip_low=0.2, clip_high=0.2)
    gradient = jax.grad(lambda x: policy_loss(x, **inputs, config=config).per_token.sum())(logprobs)
    chex.assert_trees_all_close(gradient, jnp.array([[[0.0, -1.0, -0.5], [1.5, 1.0, 0.0]]]), atol=1e-6)
    result = policy_loss(logprobs, **inputs, config=config)
    assert result.clipped_high.tolist() == [[[True, False, False], [False] * 3]]
    assert result.clipped_low.tolist() == [[[False] * 3, [False, False, True]]]


def test_cispo_weights_tokens_by_the_ratio_and_bounds_it_from_above_only():
    """TRL 1.16: -min(ratio, bound).detach() * advantage * logprob; a token that became unlikely weighs little."""
    logprobs = jnp.log(jnp.array([[[0.1, 0.7, 1.0, 1.5]]]))
    inputs = dict(old_logprobs=jnp.zeros((1, 1, 4)), advantages=jnp.array([[2.0]]), mask=jnp.ones((1, 1, 4), bool))
    config = LossConfig(name="cispo")
    gradient = jax.grad(lambda x: policy_loss(x, **inputs, config=config).per_token.sum())(logprobs)
    chex.assert_trees_all_close(gradient, -2.0 * jnp.array([[[0.1, 0.7, 1.0, 1.2]]]), rtol=1e-6)
    result = policy_loss(logprobs, **inputs, config=config)
    assert result.clipped_high.tolist() == [[[False, False, False, True]]] and not result.clipped_low.any()


def test_on_policy_gradient_is_the_advantage():
    """At ratio 1 every variant's gradient is -advantage times the token's weight."""
    logprobs = jnp.full((1, 2, 3), -1.3)
    mask = jnp.array([[[True, True, True], [True, False, False]]])
    advantages = jnp.array([[0.7, -0.4]])
    for name in NAMES:
        config = LossConfig(name=name)

        def loss(x, config=config):
            per_token = policy_loss(x, logprobs, advantages, mask, config).per_token
            return _weighted_sum(per_token, mask, config.name)

        expected = -advantages[..., None] * token_weights(mask, name, MAX_TOKENS)
        chex.assert_trees_all_close(jax.grad(loss)(logprobs), expected, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_do_not_change_the_loss(batch, name):
    """Shares of micro-batches, each divided by the whole batch's denominator, add up."""
    config = LossConfig(name=name)
    whole = _loss(batch, config)
    total = sum(denominator(jnp.asarray(batch["mask"][b : b + 1]), name) for b in range(2))
    parts = 0.0
    for b in range(2):
        part = {k: jnp.asarray(v[b : b + 1]) for k, v in batch.items()}
        per_token = policy_loss(**part, config=config).per_token
        parts += _weighted_sum(per_token, part["mask"], name) / total
    np.testing.assert_allclose(parts, whole, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_fill_a_batch_up_do_not_count(batch, name):
    """How many there are depends on the devices; the loss must not."""
    mask = jnp.asarray(batch["mask"])
    filled = jnp.concatenate([mask, jnp.zeros((3, *mask.shape[1:]), bool)])
    valid = jnp.arange(len(filled)) < len(mask)
    assert denominator(filled, name, valid) == denominator(mask, name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("difference", [-1e4, -20.0, 20.0, 1e4])
def test_extreme_ratios_stay_finite(name, difference):
    logprobs = jnp.zeros((1, 1, 2)) + difference
    inputs = (jnp.zeros((1, 1, 2)), jnp.array([[-1.0]]), jnp.ones((1, 1, 2), bool))

    def loss(x):
        return policy_loss(x, *inputs, LossConfig(name=name)).per_token.sum()

    value, gradient = jax.value_and_grad(loss)(logprobs)
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()


@pytest.mark.parametrize("name", NAMES)
def test_garbage_behind_the_mask_is_invisible(batch, name):
    config = LossConfig(name=name, importance="sequence")
    dirty = {k: v.copy() for k, v in batch.items()}
    dirty["logprobs"][~batch["mask"]] = np.nan
    dirty["old_logprobs"][~batch["mask"]] = -np.inf
    np.testing.assert_allclose(_loss(dirty, config), _loss(batch, config), rtol=1e-6)

    def loss(x):
        inputs = {k: jnp.asarray(v) for k, v in dirty.items()} | {"logprobs": x}
        return _weighted_sum(policy_loss(**inputs, config=config).per_token, inputs["mask"], name)

    assert jnp.isfinite(jax.grad(loss)(jnp.asarray(dirty["logprobs"]))).all()


# --- KL ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_kl_equals_its_formula_and_vanishes_at_the_reference(kind):
    d = np.linspace(-3, 3, 13)
    formula = {"k2": d**2 / 2, "k3": np.exp(-d) - 1 + d}[kind]
    mask = jnp.ones((1, 1, 13), bool)
    actual = kl_divergence(jnp.asarray(d, jnp.float32)[None, None], jnp.zeros((1, 1, 13)), mask, kind)
    np.testing.assert_allclose(actual[0, 0], formula, atol=1e-5)
    same = jnp.asarray(d, jnp.float32)[None, None]
    assert (kl_divergence(same, same, mask, kind) == 0).all()


def test_k3_is_never_negative_even_for_tiny_and_huge_ratios():
    d = jnp.concatenate([jnp.logspace(-12, 3, 200), -jnp.logspace(-12, 3, 200)])[None, None]
    values = kl_divergence(d, jnp.zeros_like(d), jnp.ones(d.shape, bool), "k3")
    assert (values >= 0).all() and jnp.isfinite(values).all()


def test_k2_and_k3_agree_with_the_true_divergence_in_expectation():
    """k3 is unbiased, k2 nearly so for close policies: 200,000 draws from a 5-way categorical."""
    rng = np.random.default_rng(0)
    policy, reference = np.array([0.1, 0.2, 0.3, 0.25, 0.15]), np.array([0.12, 0.18, 0.33, 0.2, 0.17])
    true = (policy * np.log(policy / reference)).sum()
    draws = rng.choice(5, 200_000, p=policy)
    logprobs, reference_logprobs = (jnp.asarray(np.log(p)[draws], jnp.float32)[None, None] for p in (policy, reference))
    for kind, tolerance in (("k2", 0.15), ("k3", 0.05)):
        estimate = kl_divergence(logprobs, reference_logprobs, jnp.ones(logprobs.shape, bool), kind).mean()
        np.testing.assert_allclose(estimate, true, rtol=tolerance)


def test_the_expected_gradient_is_that_of_a_divergence():
    """Exactly, over all five outcomes: k2 pulls as KL(policy || reference) does, k3 as KL(reference || policy), and the
    corrected k3 as KL(policy || reference), also where another policy sampled."""
    with jax.enable_x64(True):
        logits, reference = jnp.array([0.3, -1.2, 0.8, 0.1, -0.4]), jax.nn.log_softmax(jnp.arange(5.0))
        every = jnp.ones((1, 1, 5), bool)

        def expectation(logits, kind, sampler=None):
            logprobs = jax.nn.log_softmax(logits)
            sampler = jax.lax.stop_gradient(logprobs) if sampler is None else sampler
            arrays = (x[None, None] for x in (logprobs, reference))
            estimate = kl_divergence(*arrays, every, kind, sampler[None, None])[0, 0]
            return jnp.sum(jnp.exp(sampler) * estimate)

        def divergence(logits, kind):
            pair = (jax.nn.log_softmax(logits), reference)
            first, second = pair[::-1] if kind == "k3" else pair
            return jnp.sum(jnp.exp(first) * (first - second))

        for kind in ("k2", "k3", "k3_corrected"):
            actual, expected = (jax.grad(f)(logits, kind) for f in (expectation, divergence))
            chex.assert_trees_all_close(actual, expected, atol=1e-12)
        other = jax.nn.log_softmax(jnp.array([0.1, -0.4, 0.2, 0.9, 0.0]))
        actual = jax.grad(expectation)(logits, "k3_corrected", other)
        chex.assert_trees_all_close(actual, jax.grad(divergence)(logits, "k2"), atol=1e-12)
        chex.assert_trees_all_close(expectation(logits, "k3_corrected", other), divergence(logits, "k2"), atol=1e-12)


def test_unknown_names_are_named():
    one = jnp.ones((1, 1, 1))
    with pytest.raises(ValueError, match="k1"):
        kl_divergence(one, one, one > 0, "k1")
    with pytest.raises(ValueError, match="ppo"):
        token_weights(one > 0, "ppo", 1)
