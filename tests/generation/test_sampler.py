"""The sampler's tokens and log-probabilities are those of the model."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mecap_jax.batch import Completions
from mecap_jax.generation import sampling
from mecap_jax.generation.cache import init_cache
from mecap_jax.generation.sampler import generate
from mecap_jax.generation.sampling import Filters, sample_token
from mecap_jax.generation.scoring import completion_logprobs
from tests import miniature
from tests.miniature import END

LENGTH = 9


def _generate(
    prompt, *, temperature=1.3, group=4, ends=(END, 3), seed=(0, 0), rows=None, config=miniature.CONFIG, **options
):
    graphdef, params = miniature.model(0, config)
    rows = jnp.arange(prompt.tokens.shape[0]) if rows is None else rows
    return generate(
        graphdef,
        params,
        prompt,
        jnp.array(seed, jnp.uint32),
        rows,
        group_size=group,
        max_new_tokens=LENGTH,
        temperature=temperature,
        end_ids=ends,
        **options,
    )


@pytest.fixture(scope="module")
def generation():
    # Many end ids, so that some completions end early and some do not.
    return _generate(miniature.prompts(), ends=tuple(range(2, 10)))


def test_sampled_logprobs_equal_scored_logprobs(generation):
    graphdef, params = miniature.model()
    completions = Completions(generation.tokens, generation.mask())
    scored = completion_logprobs(graphdef, params, miniature.prompts(), completions, temperature=1.3)
    chex.assert_trees_all_close(generation.logprobs, scored, atol=1e-5)


@pytest.mark.parametrize("config", [miniature.GPT2, miniature.BART], ids=["gpt2", "bart"])
def test_what_has_learned_positions_samples_what_it_scores(config):
    """Padding takes no position; and what was never learned is refused in words, not looked up."""
    graphdef, params = miniature.model(0, config)
    prompt = miniature.pad_right(miniature.prompts(), 5)
    sampled = _generate(prompt, config=config)
    completions = Completions(sampled.tokens, sampled.mask())
    scored = completion_logprobs(graphdef, params, prompt, completions, temperature=1.3)
    chex.assert_trees_all_close(sampled.logprobs, scored, atol=1e-5)
    padded = completion_logprobs(graphdef, params, miniature.prompts(), completions, temperature=1.3)
    chex.assert_trees_all_close(padded, scored, atol=1e-5)
    with pytest.raises(ValueError, match="positions, padding included, and the decoder has learned 80"):
        _generate(miniature.pad_right(miniature.prompts(), 60), config=config)


def test_lengths_count_up_to_the_first_end(generation):
    assert generation.finished.any() and not generation.finished.all()
    for tokens, length, finished in zip(
        *(np.asarray(x).reshape(12, *x.shape[2:]) for x in (generation.tokens, generation.length, generation.finished))
    ):
        ends = [i for i, token in enumerate(tokens) if 2 <= token < 10]
        assert length == (ends[0] + 1 if ends else LENGTH) and finished == bool(ends)
        assert (tokens[length:] == 2).all()


def test_a_token_rearranges_neither_prefix_nor_cache():
    """They are kept as they are multiplied; copying them in another order would cost as much as reading them."""
    graphdef, params = miniature.model()

    def inputs(params):
        model = nnx.merge(graphdef, params)
        _, prefix = model.prefill(miniature.prompts())
        return model.embed_tokens(jnp.ones((3, 4, 1), jnp.int32)), prefix, init_cache(prefix, 4, LENGTH)

    token, prefix, cache = jax.eval_shape(inputs, params)
    model = nnx.merge(graphdef, params)
    jaxpr = jax.make_jaxpr(lambda *inputs: model.language_model.extend(*inputs, 0))(token, prefix, cache)
    moved = [e.invars[0].aval.size for e in jaxpr.eqns if e.primitive.name == "transpose"]
    assert moved and max(moved) < min(cache[0].keys.size, prefix.layers[0].keys.size)


def test_greedy_decoding_equals_full_forward_passes():
    """Prefill and cached decoding equal a fresh forward pass over everything so far, at every step."""
    graphdef, params = miniature.model()
    prompt = miniature.prompts()
    greedy = _generate(prompt, temperature=0.0, group=1, ends=(63,))

    @jax.jit
    def forward(tokens):
        model = nnx.merge(graphdef, params)
        return model.language_model.logits(model.completion_states(prompt, tokens))

    tokens = jnp.zeros((3, 1, LENGTH), jnp.int32)
    for t in range(LENGTH):
        logits = forward(tokens)  # causal: what stands behind t does not matter
        tokens = tokens.at[..., t].set(jnp.argmax(logits[:, :, t], axis=-1))
    for b in range(3):
        n = int(greedy.length[b, 0])
        np.testing.assert_array_equal(greedy.tokens[b, 0, :n], tokens[b, 0, :n])


def test_rows_do_not_depend_on_their_batch():
    prompt = miniature.prompts()
    together = _generate(prompt, rows=jnp.array([7, 8, 9]))
    alone = _generate(miniature.row(prompt, 1), rows=jnp.array([8]))
    np.testing.assert_array_equal(together.tokens[1:2], alone.tokens)


def test_rows_that_do_not_count_are_empty_and_change_nothing():
    prompt, rows = miniature.prompts(), jnp.arange(3)
    whole, part = _generate(prompt, rows=rows), _generate(prompt, rows=rows, valid=jnp.array([True, False, True]))
    np.testing.assert_array_equal(part.tokens[::2], whole.tokens[::2])
    np.testing.assert_array_equal(part.length[::2], whole.length[::2])
    assert (part.tokens[1] == END).all() and not part.logprobs[1].any() and (whole.length[1] > 1).any()


def test_the_group_is_diverse_and_the_seed_decides():
    prompt = miniature.prompts()
    first, again, later, other = (_generate(prompt, seed=seed) for seed in ((0, 1), (0, 1), (0, 2), (1, 1)))
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert (first.tokens != later.tokens).any() and (first.tokens != other.tokens).any()
    assert len({tuple(map(int, c)) for c in first.tokens[0]}) > 1


def test_frequencies_follow_the_softmax():
    """20,000 draws from three logits at temperature 2; 4 standard errors."""
    logits = jnp.array([1.0, 0.0, -2.0])
    draws = 20_000
    tokens, logprobs = sample_token(
        jax.random.split(jax.random.key(0), draws), jnp.broadcast_to(logits, (draws, 1, 3)), 2.0
    )
    expected = jax.nn.softmax(logits / 2)
    for token in range(3):
        p = float(expected[token])
        assert abs(float((tokens == token).mean()) - p) < 4 * (p * (1 - p) / draws) ** 0.5
        chex.assert_trees_all_close(logprobs[tokens == token], jnp.log(p), atol=1e-5)


@pytest.mark.parametrize(("top_p", "allowed"), [(0.5, {1}), (0.75, {1, 2}), (0.95, {0, 1, 2}), (1.0, {0, 1, 2, 3})])
def test_nucleus_keeps_the_smallest_set_that_reaches_top_p(top_p, allowed):
    logits = jnp.log(jnp.array([0.2, 0.55, 0.22, 0.03]))
    tokens, _ = sample_token(
        jax.random.split(jax.random.key(0), 3000), jnp.broadcast_to(logits, (3000, 1, 4)), 1.0, Filters(top_p=top_p)
    )
    assert set(np.unique(tokens)) == allowed


def _allowed(logits, top_k, top_p, min_p):
    """The same in NumPy, one row at a time, by probabilities: which of its tokens may be drawn."""
    order = np.argsort(-logits, kind="stable")
    if top_k:
        order = order[:top_k]
    p = np.exp(logits[order] - logits[order].max())
    p /= p.sum()
    kept = {int(token) for token, before in zip(order, np.cumsum(p) - p) if top_p >= 1 or before < top_p}
    return {token for token in kept if logits[token] >= logits.max() + (np.log(min_p) if min_p else -np.inf)}


@pytest.mark.parametrize(
    "filters",
    [
        Filters(top_k=1),
        Filters(top_k=7),
        Filters(top_p=0.9),
        Filters(min_p=0.05),
        Filters(20, 0.8, 0.03),
        Filters(top_k=1000),  # more than there are
    ],
)
@pytest.mark.parametrize("flat", [0.0, 0.02], ids=["peaked", "flat"])
def test_only_tokens_behind_all_filters_are_drawn(filters, flat):
    """Rows of a vocabulary of 400; in the flat case all tokens of one are about as likely."""
    logits = np.random.default_rng(0).normal(size=(3, 2, 400)).astype(np.float32) * 3
    logits[1] *= flat or 1
    draws = 400
    keys = jax.random.split(jax.random.key(1), draws)
    one = jax.jit(lambda key: sample_token(jax.random.split(key, 3), jnp.asarray(logits), 1.0, filters))
    tokens, logprobs = jax.lax.map(one, keys)
    whole = jax.nn.log_softmax(jnp.asarray(logits))
    for b, g in np.ndindex(3, 2):
        allowed = _allowed(logits[b, g], *filters)
        drawn = np.asarray(tokens[:, b, g])
        assert set(drawn.tolist()) <= allowed
        if len(allowed) <= 8:
            likely = {t for t in allowed if np.exp(whole[b, g, t]) / sum(np.exp(whole[b, g, list(allowed)])) > 0.05}
            assert likely <= set(drawn.tolist())
        # What training scores: nothing is renormalised.
        np.testing.assert_allclose(logprobs[:, b, g], whole[b, g, drawn], atol=1e-5)


@pytest.mark.parametrize("scale", [0.01, 0.3, 3.0, 30.0])
def test_the_nucleus_is_exact(scale):
    """However many tokens it has, it is what sorting gives."""
    logits = jax.random.normal(jax.random.key(2), (2, 3, 1000)) * scale - 5
    for top_p in (0.1, 0.5, 0.95):
        kept = np.asarray(sampling._nucleus(logits, top_p))
        for b, g in np.ndindex(2, 3):
            expected = _allowed(np.asarray(logits[b, g], np.float64), 0, top_p, 0.0)
            assert len(set(np.flatnonzero(kept[b, g]).tolist()) ^ expected) <= 1  # a sum within rounding of top_p


def test_what_is_as_likely_as_the_last_of_a_nucleus_belongs_to_it():
    logits = jnp.array([[[2.0, 1.0, 1.0, 1.0, -jnp.inf, -3.0]]])
    assert sampling._nucleus(logits, 0.6).tolist() == [[[True, True, True, True, False, False]]]
    assert sampling._nucleus(logits, 0.4).tolist() == [[[True, False, False, False, False, False]]]


def test_a_prompt_may_end_differently_within_its_group():
    """Media and beginning are shared; each completion goes on behind an end of its own, of its own length."""
    prompt, group, longest = miniature.prompts(), 2, 5
    lengths = np.array([[1, 4], [3, 3], [5, 2]])
    tokens = np.random.default_rng(0).integers(4, 64, (3, group, longest)).astype(np.int32)
    mask = np.arange(longest) >= longest - lengths[..., None]
    shared = _generate(prompt, temperature=0.0, group=group, suffix=Completions(tokens, mask))
    for g in range(group):
        parts = [tokens[b, g, longest - n :] for b, n in enumerate(lengths[:, g])]
        whole = _generate(_longer(prompt, parts, longest), temperature=0.0, group=1)
        np.testing.assert_array_equal(shared.tokens[:, g], whole.tokens[:, 0])
        chex.assert_trees_all_close(shared.logprobs[:, g], whole.logprobs[:, 0], atol=1e-5)


def _longer(prompt, parts, room):
    """The prompts with text behind them."""
    pad = ((0, 0), (0, room))
    tokens, index = np.pad(prompt.tokens, pad), np.pad(prompt.media_index, pad, constant_values=-1)
    positions = np.pad(prompt.positions, ((0, 0), (0, 0), (0, room)))
    for b, part in enumerate(parts):
        place = slice(int(prompt.length[b]), int(prompt.length[b]) + len(part))
        tokens[b, place], index[b, place] = part, -1
        positions[b, :, place] = int(prompt.next_position[b]) + np.arange(len(part))
    more = np.array([len(part) for part in parts], np.int32)
    return prompt._replace(
        tokens=tokens,
        media_index=index,
        positions=positions,
        length=prompt.length + more,
        next_position=prompt.next_position + more,
    )
