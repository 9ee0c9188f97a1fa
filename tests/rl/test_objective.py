"""One pass scores completions as they were sampled and references as supervised training does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mecap_jax.batch import Completions
from mecap_jax.config import LossConfig
from mecap_jax.generation.scoring import score_completions
from mecap_jax.rl.objective import TrainExample, denominators, objective
from tests import miniature

GROUP, REFERENCES, LENGTH = 2, 3, 5
HOT = 1.7


@functools.partial(jax.jit, static_argnames="temperature")
def _scores(params, tokens, temperature):
    return score_completions(nnx.merge(miniature.model()[0], params), miniature.prompts(), tokens, temperature)


def test_references_are_scored_at_temperature_one_whatever_the_sampling_temperature():
    graphdef, params = miniature.model()
    rng = np.random.default_rng(0)
    tokens = rng.integers(4, miniature.CONFIG.decoder.vocab_size, (3, GROUP + REFERENCES, LENGTH))
    mask = np.arange(LENGTH) < rng.integers(1, LENGTH + 1, (3, GROUP + REFERENCES))[..., None]
    tokens, mask = jnp.asarray(tokens, jnp.int32), jnp.asarray(mask)
    sampled, taught = (Completions(tokens[:, part], mask[:, part]) for part in (slice(GROUP), slice(GROUP, None)))
    hot, plain = (_scores(params, tokens, temperature) for temperature in (HOT, 1.0))
    old = hot.logprobs[:, :GROUP] - 0.01
    example = TrainExample(miniature.prompts(), jnp.ones(3, bool), sampled, old, None, jnp.ones((3, GROUP)), taught)
    loss = LossConfig(beta=0.0, reference_likelihood=0.5)

    @jax.jit
    def run(params):
        model = nnx.merge(graphdef, params)
        return objective(model, example, denominators(example, loss), 0.0, loss, HOT, LENGTH)

    total, sums = run(params)
    nll = -np.sum(np.where(taught.mask, plain.logprobs[:, GROUP:], 0.0))
    np.testing.assert_allclose(sums.reference_nll, nll, rtol=1e-5)
    # The policy's own tokens stand 0.01 above the old ones at the sampling temperature, so every ratio is exp(0.01).
    np.testing.assert_allclose(sums.logprob_difference / sampled.mask.sum(), 0.01, rtol=1e-3)
    np.testing.assert_allclose(total, -np.exp(0.01) + 0.5 * nll / taught.mask.sum(), rtol=1e-5)
