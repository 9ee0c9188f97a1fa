"""What frozen encoders of sound and pictures share: transformer layers, configurations, tables of weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mecap_jax.models.checkpoints.table import MOST_LAYERS, TensorRule
from mecap_jax.models.layers import attend_within, gelu, split_heads

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_new": jax.nn.gelu,  # by tanh, as the next one
    "gelu_pytorch_tanh": jax.nn.gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Shape of a transformer layer.

    Attributes:
      width, heads, hidden: of the stream, its attention and its MLP.
      activation: a key of `ACTIVATIONS`.
      epsilon: of the layer norms.
      key_bias: whether keys have a bias; Whisper's have none.
      norm_first: whether norms stand before attention and MLP, or behind their residuals.
    """

    width: int
    heads: int
    hidden: int
    activation: str
    epsilon: float = 1e-5
    key_bias: bool = True
    norm_first: bool = True


class Block(nnx.Module):
    """Bidirectional self-attention and an MLP, each with a residual and a layer norm."""

    def __init__(self, config: BlockConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.heads, self.norm_first = config.heads, config.norm_first
        self.activation = config.activation
        self.q_proj = nnx.Linear(width, width, rngs=rngs)
        self.k_proj = nnx.Linear(width, width, use_bias=config.key_bias, rngs=rngs)
        self.v_proj = nnx.Linear(width, width, rngs=rngs)
        self.out_proj = nnx.Linear(width, width, rngs=rngs)
        self.attention_norm = layer_norm(width, config.epsilon, rngs)
        self.up = nnx.Linear(width, config.hidden, rngs=rngs)
        self.down = nnx.Linear(config.hidden, width, rngs=rngs)
        self.mlp_norm = layer_norm(width, config.epsilon, rngs)

    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        """Maps hidden states to hidden states; `mask` is true at valid positions."""
        if self.norm_first:
            x = x + self._attend(self.attention_norm(x), mask)
            return x + self._mlp(self.mlp_norm(x))
        x = self.attention_norm(x + self._attend(x, mask))
        return self.mlp_norm(x + self._mlp(x))

    def _attend(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        q, k, v = (split_heads(project(x), self.heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attend_within(q, k, v, mask).reshape(x.shape))

    def _mlp(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


def layer_norm(width: int, epsilon: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer norm whose variance is that of the deviations, as published encoders compute it."""
    return nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


def every_state(
    blocks: Iterable[Block], x: Float[Array, "B T D"], mask: Bool[Array, "B T"], last: Callable[[Array], Array]
) -> list[Float[Array, "B T D"]]:
    """What goes into each layer, then what comes out of the last one and passes `last`: one more than layers.

    What of it is not used is not computed, in a jitted function.
    """
    states = [x]
    for block in blocks:
        states.append(block(states[-1], mask))
    return [*states[:-1], last(states[-1])]


def valid_positions(lengths: jax.Array, size: int) -> Bool[Array, "B T"]:
    """Whether each of `size` positions is one of a row's first `lengths`."""
    return jnp.arange(size) < lengths[:, None]


# --- configurations and tables ------------------------------------------------------------------------------------


def read_fields(config: Mapping[str, Any], sizes: Mapping[str, int | None], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sizes that a `config.json` names.

    Args:
      sizes: name -> what it is where it is left out, None where it must be there.
      fixed: what is implemented: name -> the only value, which may be left out.

    Raises:
      ValueError: a size is missing or no positive integer, or what is asked for is not implemented; all are named.
    """
    values = {name: config.get(name, default) for name, default in sizes.items()}
    problems = [
        f"{name} must be a positive integer, got {value!r:.40}"
        for name, value in values.items()
        if type(value) is not int or value < 1
    ]
    problems += [
        f"{name} {value} is out of range"
        for name, value in values.items()
        if type(value) is int and value > (MOST_LAYERS if name.endswith("layers") else 2**24)
    ]
    problems += [
        f"{name} {config[name]!r:.40} is not implemented, only {value!r} is"
        for name, value in fixed.items()
        if config.get(name, value) != value
    ]
    if config.get("quantization_config"):
        problems.append("quantization_config is not implemented")
    if problems:
        raise ValueError("; ".join(problems))
    return values


def read_block(
    config: Mapping[str, Any], width: int, heads: int, hidden: int, activation: Any, epsilon: Any, **kind: bool
) -> BlockConfig:
    """Returns the shape of the layers; raises ValueError where heads, activation or epsilon are not possible."""
    if width % heads:
        raise ValueError(f"a width of {width} does not divide over {heads} heads")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r:.40} is none of {', '.join(ACTIVATIONS)}")
    if type(epsilon) not in (int, float) or not 0 <= epsilon < 1:
        raise ValueError(f"layer_norm_eps must be a number from 0 to 1, got {epsilon!r:.40}")
    return BlockConfig(width, heads, hidden, activation, float(epsilon), **kind)


def linear_rules(key: str, path: str, bias: bool = True) -> list[TensorRule]:
    """The table of one linear layer."""
    rules = [TensorRule(f"{key}.weight", f"{path}.kernel", "transpose")]
    return rules + ([TensorRule(f"{key}.bias", f"{path}.bias")] if bias else [])


def norm_rules(key: str, path: str) -> list[TensorRule]:
    """The table of one layer norm."""
    return [TensorRule(f"{key}.weight", f"{path}.scale"), TensorRule(f"{key}.bias", f"{path}.bias")]


def block_rules(
    prefix: str, attention: str, norms: tuple[str, str], mlp: tuple[str, str], key_bias: bool
) -> list[TensorRule]:
    """The table of the layers, whose published names begin with `prefix` and hold their number as {i}."""
    layer, ours = f"{prefix}layers.{{i}}.", "blocks.{i}."
    return [
        *linear_rules(f"{layer}{attention}.q_proj", f"{ours}q_proj"),
        *linear_rules(f"{layer}{attention}.k_proj", f"{ours}k_proj", key_bias),
        *linear_rules(f"{layer}{attention}.v_proj", f"{ours}v_proj"),
        *linear_rules(f"{layer}{attention}.out_proj", f"{ours}out_proj"),
        *norm_rules(f"{layer}{norms[0]}", f"{ours}attention_norm"),
        *norm_rules(f"{layer}{norms[1]}", f"{ours}mlp_norm"),
        *linear_rules(f"{layer}{mlp[0]}", f"{ours}up"),
        *linear_rules(f"{layer}{mlp[1]}", f"{ours}down"),
    ]
