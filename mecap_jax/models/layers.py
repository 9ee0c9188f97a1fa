"""Building blocks that the towers and the decoder share: projections, norms and attention.

Parameters carry the names of their logical axes as metadata (`logical_axes`), from which the trainer derives
shardings. Products run in the module's `dtype`; norms and softmax in float32.

`flax.nnx` has layers of these names, which serve the text encoders (`bert`). Here they would not do: its RMSNorm scales
before it rounds, where the published models round first (a quarter of all bfloat16 values differ); its Embed casts the
whole table before it looks a token up; its Linear and Conv draw random numbers for biases of zeros.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

Activation = Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]]
Initializer = jax.nn.initializers.Initializer
MASKED = -1e30  # finite, so that a row without any visible key gives a uniform softmax instead of NaN


@dataclasses.dataclass(frozen=True)
class Dtypes:
    """dtype of stored parameters and of matrix products."""

    param: jnp.dtype
    compute: jnp.dtype


@jax.custom_vjp
def wide_product(x: Float[Array, "*batch in"], kernel: Float[Array, "in out"]) -> Float[Array, "*batch out"]:
    """`x @ kernel`, accumulated and kept in float32; its gradient takes products in the operands' dtype.

    Left to itself, a backward pass would multiply the float32 cotangent with a float32 copy of the kernel.
    """
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)


def _wide_product_backward(operands, cotangent):
    return jax.vjp(jnp.matmul, *operands)[1](cotangent.astype(operands[0].dtype))


wide_product.defvjp(lambda x, kernel: (wide_product(x, kernel), (x, kernel)), _wide_product_backward)


class Linear(nnx.Module):
    """`x @ kernel + bias`, kernel stored as [in, out]; with `wide` the result is float32 whatever the dtype."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        axes: tuple[str | None, str],
        dtypes: Dtypes,
        rngs: nnx.Rngs,
        *,
        bias: bool,
        wide: bool = False,
    ):
        init = jax.nn.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (in_dim, out_dim), dtypes.param), logical_axes=axes)
        self.bias = nnx.Param(jnp.zeros((out_dim,), dtypes.param), logical_axes=axes[1:]) if bias else None
        self.dtype, self.wide = dtypes.compute, wide

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        y = self.product(x, self.kernel[...])
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)

    def product(self, x: Float[Array, "*batch in"], kernel: Float[Array, "in out"]) -> Float[Array, "*batch out"]:
        """`x @ kernel` in the dtypes of this projection."""
        return (wide_product if self.wide else jnp.matmul)(x.astype(self.dtype), kernel.astype(self.dtype))


class Embedding(nnx.Module):
    """A table of token embeddings; `attend` multiplies by its transpose (tied output weights), into float32."""

    def __init__(self, size: int, dim: int, dtypes: Dtypes, rngs: nnx.Rngs):
        init = jax.nn.initializers.normal(dim**-0.5)
        self.embedding = nnx.Param(init(rngs.params(), (size, dim), dtypes.param), logical_axes=("vocab", "embed"))
        self.dtype = dtypes.compute

    def __call__(self, ids):
        return jnp.take(self.embedding[...], ids, axis=0).astype(self.dtype)

    def attend(self, x):
        return wide_product(x.astype(self.dtype), self.embedding[...].astype(self.dtype).T)


class RMSNorm(nnx.Module):
    """Root-mean-square norm, statistics in float32."""

    def __init__(self, dim: int, dtypes: Dtypes, epsilon: float = 1e-6):
        self.scale = nnx.Param(jnp.ones((dim,), dtypes.param), logical_axes=(None,))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        return self.scale[...].astype(x.dtype) * y.astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer norm with scale and bias, statistics in float32."""

    def __init__(self, dim: int, dtypes: Dtypes, epsilon: float = 1e-5):
        self.scale = nnx.Param(jnp.ones((dim,), dtypes.param), logical_axes=(None,))
        self.bias = nnx.Param(jnp.zeros((dim,), dtypes.param), logical_axes=(None,))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class GatedMlp(nnx.Module):
    """SwiGLU: `down(silu(gate(x)) * up(x))`."""

    def __init__(self, dim: int, hidden: int, dtypes: Dtypes, rngs: nnx.Rngs, *, bias: bool):
        self.gate_proj = Linear(dim, hidden, ("embed", "mlp"), dtypes, rngs, bias=bias)
        self.up_proj = Linear(dim, hidden, ("embed", "mlp"), dtypes, rngs, bias=bias)
        self.down_proj = Linear(hidden, dim, ("mlp", "embed"), dtypes, rngs, bias=bias)

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        gate, up = (checkpoint_name(project(x), "mlp") for project in (self.gate_proj, self.up_proj))
        # The backward pass has two hidden layers to keep, not five: what is between them is quickly computed again.
        return jax.checkpoint(lambda gate, up: self.down_proj(jax.nn.silu(gate) * up))(gate, up)


class Mlp(nnx.Module):
    """`down(activation(up(x)))`, with biases."""

    def __init__(self, dim: int, hidden: int, activation: Activation, dtypes: Dtypes, rngs: nnx.Rngs):
        self.up_proj = Linear(dim, hidden, ("embed", "mlp"), dtypes, rngs, bias=True)
        self.down_proj = Linear(hidden, dim, ("mlp", "embed"), dtypes, rngs, bias=True)
        self.activation = activation

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        hidden = checkpoint_name(self.up_proj(x), "mlp")
        return jax.checkpoint(lambda hidden: self.down_proj(self.activation(hidden)))(hidden)


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Exact GELU by erf: jax.nn.gelu takes erfc, which costs XLA's CPU backend twice as much."""
    return 0.5 * x * (1 + jax.lax.erf(x * np.float32(0.5**0.5)))


def split_heads(x: Float[Array, "*batch dim"], heads: int) -> Float[Array, "*batch heads head"]:
    """Splits the last axis into `heads` heads."""
    return x.reshape(*x.shape[:-1], heads, -1)


def attend_within(
    q: Float[Array, "*batch queries heads head"],
    k: Float[Array, "*batch length heads head"],
    v: Float[Array, "*batch length heads head"],
    key_mask: Bool[Array, "*batch length"],
) -> Float[Array, "*batch queries heads head"]:
    """Bidirectional attention of every query to the valid positions of its own segment; any leading axes."""
    q, k, v = (x.swapaxes(-3, -2) for x in (q * q.shape[-1] ** -0.5, k, v))
    logits = jnp.einsum("...qh,...kh->...qk", q, k, preferred_element_type=jnp.float32)
    logits += jnp.where(key_mask, 0.0, MASKED)[..., None, None, :]
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    values = weigh(weights, v) / weights.sum(axis=-1, keepdims=True)
    return values.astype(v.dtype).swapaxes(-3, -2)


def weigh(
    weights: Float[Array, "*batch queries keys"], values: Float[Array, "*batch keys head"]
) -> Float[Array, "*batch queries head"]:
    """Sums of values in float32, from products in the values' dtype: what divides them is float32, too."""
    return jnp.matmul(weights.astype(values.dtype), values, preferred_element_type=jnp.float32)


def rotate(
    x: Float[Array, "*#batch heads head"], cos: Float[Array, "*#batch half"], sin: Float[Array, "*#batch half"]
) -> Float[Array, "*#batch heads head"]:
    """Rotary position embedding (arXiv 2104.09864): rotates pairs (x[i], x[i + head/2]) in float32."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
