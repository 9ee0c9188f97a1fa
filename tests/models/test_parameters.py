"""Which parameters train, by pattern."""

import jax
import numpy as np
import pytest

from mecap_jax.config import ConfigError
from mecap_jax.models.checkpoints.table import flatten
from mecap_jax.models.parameters import merge_params, split_params
from tests import miniature

PARAMS = {
    "visual": {"blocks": {0: {"q": {"kernel": 1, "lora_a": 2, "lora_b": 3}}, 1: {"q": {"kernel": 4}}}},
    "norm": {"scale": 5},
}


@pytest.mark.parametrize(
    "patterns, expected",
    [
        ((".*",), {1, 2, 3, 4, 5}),
        ((), {2, 3}),
        ((r"norm\.scale",), {2, 3, 5}),
        ((r"visual\.blocks\.1\..*", r".*\.scale"), {2, 3, 4, 5}),
    ],
)
def test_what_matches_trains_and_adapters_always_do(patterns, expected):
    trainable, frozen = split_params(PARAMS, patterns)
    assert set(flatten(trainable).values()) == expected
    assert set(flatten(frozen).values()) == {1, 2, 3, 4, 5} - expected
    assert merge_params(trainable, frozen) == PARAMS


def test_both_parts_hold_the_arrays_themselves():
    _, params = miniature.model()
    trainable, frozen = split_params(params, (r".*layers.*kernel",))
    merged = merge_params(trainable, frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    assert all(a is b for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(params)))


def test_a_pattern_must_match_a_whole_path():
    with pytest.raises(ConfigError, match=r"'trainable': no parameter matches 'visual', 'scale'"):
        split_params(PARAMS, ("visual", r".*\.kernel", "scale"))


def test_something_must_train():
    with pytest.raises(ConfigError, match="nothing trains"):
        split_params({"norm": {"scale": np.zeros(1)}}, ())
