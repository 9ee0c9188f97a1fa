"""Attention by the fused kernels that JAX has for accelerators: cuDNN's on GPUs, splash attention on TPUs.

This project has run neither on its device yet. Tests lower both, and compare splash attention with the plain form
in Pallas' interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from mecap_jax.sharding import BATCH_AXES

_LANES = 128  # splash attention takes whole multiples of it
_BLOCKS = (512, 256, 128)  # sizes of a block, of which the largest that divides a length is taken


def cudnn_prompt(
    q: Float[Array, "B P N H"], k: Float[Array, "B P K H"], v: Float[Array, "B P K H"]
) -> Float[Array, "B P N H"]:
    """Causal attention with grouped queries in bfloat16 or float16, on NVIDIA GPUs."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def splash_prompt(
    q: Float[Array, "B P N H"],
    k: Float[Array, "B P K H"],
    v: Float[Array, "B P K H"],
    mesh: Mesh | None,
    *,
    interpret: bool = False,
) -> Float[Array, "B P N H"]:
    """Causal attention with grouped queries, on TPUs."""
    length = q.shape[1]
    q, k, v = (_to_lanes(x) for x in (q, k, v))
    exist = jnp.ones(k.shape[:2], bool)
    return _splash(q, k, v, exist, masks.CausalMask((q.shape[1],) * 2), mesh, interpret)[:, :length]


def splash_group(
    prompt: Any,
    prompt_mask: Bool[Array, "B P"],
    q: Float[Array, "B G T N H"],
    own: Any,
    mesh: Mesh | None,
    *,
    interpret: bool = False,
) -> Float[Array, "B G T N H"]:
    """Attention of completions over their prompt and, causally, over themselves, on TPUs.

    Keys and values (`attention.KeyValue`) of the prompt and of all completions stand one behind the other.
    """
    batch, group, length, *_ = q.shape
    flat = _to_lanes(q.reshape(batch, group * length, *q.shape[3:]))
    own_keys, own_values = (_to_lanes(x.reshape(batch, group * length, *x.shape[3:])) for x in own)
    prompt_keys, prompt_values = map(_to_lanes, prompt)
    before, rows = prompt_keys.shape[1], flat.shape[1]
    i = np.arange(rows)
    visible = np.concatenate(
        [np.ones((rows, before), bool), (i[:, None] // length == i // length) & (i[:, None] >= i)], axis=1
    )
    exist = jnp.pad(prompt_mask, ((0, 0), (0, before - prompt_mask.shape[1])))
    exist = jnp.concatenate([exist, jnp.ones((batch, rows), bool)], axis=1)
    keys, values = (jnp.concatenate(x, axis=1) for x in ((prompt_keys, own_keys), (prompt_values, own_values)))
    out = _splash(flat, keys, values, exist, masks.NumpyMask(visible), mesh, interpret)
    return out[:, : group * length].reshape(q.shape)


def _splash(q, k, v, exist: Bool[Array, "B S"], mask: masks.Mask, mesh: Mesh | None, interpret: bool):
    """`mask` says what a query may see of the keys that `exist`."""
    rows, columns = (next(n for n in _BLOCKS if x.shape[1] % n == 0) for x in (q, k))
    sizes = kernel.BlockSizes(
        block_q=rows, block_kv=columns, block_kv_compute=columns, block_q_dkv=rows, block_kv_dkv=columns,
        block_kv_dkv_compute=columns, block_q_dq=rows, block_kv_dq=columns,
    )  # fmt: skip

    def attend(q, k, v, exist):
        heads = masks.MultiHeadMask([mask] * q.shape[2])
        one_row = kernel.make_splash_mha(
            heads,
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name="attention",
            interpret=interpret,
        )
        segments = kernel.SegmentIds(jnp.ones(q.shape[:2], jnp.int32), exist.astype(jnp.int32))
        q, k, v = (x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
        return jax.vmap(one_row)(q, k, v, segments).swapaxes(1, 2)

    return _by_shards(attend, k.shape[2], mesh)(q, k, v, exist)


def _by_shards(attend: Callable, key_heads: int, mesh: Mesh | None) -> Callable:
    """A kernel cannot be divided by the compiler: each device takes its rows and, where they divide, its heads."""
    if mesh is None or mesh.size == 1:
        return attend
    heads = "tensor" if key_heads % mesh.shape["tensor"] == 0 else None
    rows = PartitionSpec(BATCH_AXES)
    by_heads = PartitionSpec(BATCH_AXES, None, heads, None)
    return jax.shard_map(
        attend, mesh=mesh, in_specs=(by_heads, by_heads, by_heads, rows), out_specs=by_heads, check_vma=False
    )


def _to_lanes(x: Float[Array, "B T N H"]) -> Float[Array, "B padded N H"]:
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % _LANES), (0, 0), (0, 0)))
