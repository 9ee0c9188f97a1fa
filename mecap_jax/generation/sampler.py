"""Group sampling: media encoded once, the prompt prefilled once, G completions decoded against it in one loop."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mecap_jax.batch import Array, Completions, PromptBatch
from mecap_jax.generation.cache import init_cache
from mecap_jax.generation.sampling import Filters, sample_token
from mecap_jax.models.multimodal_lm import MultimodalLM


class Generation(NamedTuple):
    """G sampled completions for each of B prompts, padded with the first end-of-text id.

    Attributes:
      tokens: int32 [B, G, T], the end-of-text token included.
      length: int32 [B, G], tokens up to and including the first end-of-text token.
      finished: bool [B, G], False where the completion was cut off at T.
      logprobs: float32 [B, G, T], log-probability of each token at the sampling temperature; 0 in padding.
    """

    tokens: Array
    length: Array
    finished: Array
    logprobs: Array

    def mask(self) -> Array:
        """bool [B, G, T], True up to and including the first end-of-text token."""
        return jnp.arange(self.tokens.shape[-1]) < self.length[..., None]


@functools.partial(
    jax.jit,
    static_argnames=("graphdef", "group_size", "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "end_ids"),
)
def generate(
    graphdef: nnx.GraphDef[MultimodalLM],
    params,
    prompt: PromptBatch,
    seed: Array,
    rows: Array,
    *,
    valid: Array | None = None,
    suffix: Completions | None = None,
    group_size: int,
    max_new_tokens: int,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    end_ids: tuple[int, ...],
) -> Generation:
    """Samples `group_size` completions a prompt; the loop ends when all are finished.

    Args:
      graphdef, params: the model, split.
      prompt: B prompts.
      seed: uint32 [2], two numbers that decide all draws (the run's seed and the step, say).
      rows: int32 [B], a number for each prompt. A prompt's draws depend on `seed` and its number only, not on which
        other prompts share its batch or on how many devices there are.
      valid: bool [B], False for prompts whose completions do not count: they are empty, and nothing waits for them.
        None: all count.
      suffix: [B, G, Q], the end of the prompt where it differs within the group, padded on the left; at least one token
        of each counts. None: the prompts are whole.
      top_k, top_p, min_p: which tokens may be drawn, see `sampling.Filters`.
      end_ids: token ids that end a completion.
    """
    model = nnx.merge(graphdef, params).forward_only()
    decoder = model.language_model
    last, prefix = model.prefill(prompt)
    batch = prompt.tokens.shape[0]
    cache, first, begin, skipped = None, decoder.logits(last)[:, None], 0, None
    if suffix is not None:
        begin, skipped = suffix.tokens.shape[2], jnp.sum(~suffix.mask, axis=2)
        cache = init_cache(prefix, group_size, begin + max_new_tokens)
        hidden, cache = decoder.extend(model.embed_tokens(suffix.tokens), prefix, cache, 0, skipped)
        first = decoder.logits(hidden[:, :, -1])
    shape = (batch, group_size, max_new_tokens)
    ends = jnp.array(end_ids)
    key = jax.random.fold_in(jax.random.key(seed[0]), seed[1])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)

    filters = Filters(top_k, top_p, min_p)

    class Carry(NamedTuple):
        drawn: Array
        token: Array
        done: Array
        tokens: Array
        logprobs: Array
        cache: list

    def unfinished(carry: Carry):
        return (carry.drawn < max_new_tokens) & ~jnp.all(carry.done)

    def draw(carry: Carry, logits: Array) -> Carry:
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, carry.drawn)
        token, logprob = sample_token(step_keys, logits, temperature, filters)
        token = jnp.where(carry.done, end_ids[0], token)
        logprob = jnp.where(carry.done, 0.0, logprob)
        tokens = jax.lax.dynamic_update_slice_in_dim(carry.tokens, token[..., None], carry.drawn, axis=2)
        logprobs = jax.lax.dynamic_update_slice_in_dim(carry.logprobs, logprob[..., None], carry.drawn, axis=2)
        return Carry(carry.drawn + 1, token, carry.done | jnp.isin(token, ends), tokens, logprobs, carry.cache)

    def advance(carry: Carry) -> Carry:
        token_states = model.embed_tokens(carry.token)[:, :, None]
        hidden, cache = decoder.extend(token_states, prefix, carry.cache, begin + carry.drawn - 1, skipped)
        return draw(carry._replace(cache=cache), decoder.logits(hidden[:, :, 0]))

    # What was drawn last is not run through the model: nothing follows it.
    start = Carry(
        drawn=jnp.int32(0),
        token=jnp.zeros(shape[:2], jnp.int32),
        done=jnp.zeros(shape[:2], bool) if valid is None else jnp.broadcast_to(~valid[:, None], shape[:2]),
        tokens=jnp.full(shape, end_ids[0], jnp.int32),
        logprobs=jnp.zeros(shape, jnp.float32),
        cache=init_cache(prefix, group_size, max_new_tokens) if cache is None else cache,
    )
    first = jnp.broadcast_to(first, (batch, group_size, decoder.config.vocab_size))
    carry = jax.lax.while_loop(unfinished, advance, draw(start, first))
    ended = jnp.isin(carry.tokens, ends)
    finished = jnp.any(ended & (jnp.arange(max_new_tokens) < carry.drawn), axis=-1)
    length = jnp.where(finished, jnp.argmax(ended, axis=-1) + 1, max_new_tokens).astype(jnp.int32)
    return Generation(carry.tokens, length, finished, carry.logprobs)
