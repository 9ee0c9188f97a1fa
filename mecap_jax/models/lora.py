"""Low-rank adapters beside the projections of a network: W x becomes W x + alpha / rank * B A x (arXiv 2106.09685).

An adapted projection keeps its kernel and bias where they were and gains two parameters, `lora_a` and `lora_b`. B
starts at zero, so a freshly adapted network computes what the network without adapters does; and since adapters are
drawn after everything else, the rest of its weights are the same numbers, too.
"""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from mecap_jax.config import ConfigError
from mecap_jax.model_config import LoraConfig
from mecap_jax.models.layers import Linear

ADAPTER_LEAVES = ("lora_a", "lora_b")
# Sampling draws from the same seed by step and row: no step has this number, so masks never repeat its noise.
_DROPOUT = np.uint32(0xD80D80D8)


class Draw(NamedTuple):
    """What decides the dropout of one gradient: integers, so that a resumed run repeats it, and any mesh.

    Attributes:
      seed: of the stage.
      step: of the stage.
      rows: int32 [B], each row's number within the step.
    """

    seed: Any
    step: Any
    rows: Any


class LoraLinear(Linear):
    """A projection with an adapter; takes over kernel and bias of the projection that it replaces.

    A and B are stored in float32 whatever the kernel's dtype is, as PEFT does: bfloat16 would round most updates of a
    small matrix away. Their products run in the compute dtype, as PEFT's do under autocast.
    """

    def __init__(self, base: Linear, config: LoraConfig, rngs: nnx.Rngs):
        self.kernel, self.bias, self.dtype, self.wide = base.kernel, base.bias, base.dtype, base.wide
        in_axis, out_axis = base.kernel.get_metadata()["logical_axes"]
        in_dim, out_dim = base.kernel.shape
        # U(-1/sqrt(in), 1/sqrt(in)): what PEFT's kaiming_uniform_(a=sqrt(5)) comes to.
        init = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        a = init(rngs.params(), (in_dim, config.rank), jnp.float32)
        self.lora_a = nnx.Param(a, logical_axes=(in_axis, None))
        self.lora_b = nnx.Param(jnp.zeros((config.rank, out_dim), jnp.float32), logical_axes=(None, out_axis))
        self.scale, self.dropout = config.alpha / config.rank, config.dropout
        self.dropout_keys = nnx.data(None)

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        y = super().__call__(x)
        if self.dropout and self.dropout_keys is not None:
            x = _drop(x, self.dropout_keys, self.dropout)
        x = x.astype(self.dtype) @ self.lora_a[...].astype(self.dtype)
        return y + self.product(x, self.lora_b[...]) * self.scale


def _drop(x: Float[Array, "*batch in"], keys: Key[Array, " B"], share: float) -> Float[Array, "*batch in"]:
    rows = x.reshape(len(keys), -1, x.shape[-1])  # a tower has a row's chunks of sound side by side in the first axis

    def kept(key):
        # Prompts and their completions go through one projection in turn: the number of axes tells the two apart.
        return jax.random.bernoulli(jax.random.fold_in(key, x.ndim), 1 - share, rows.shape[1:])

    return jnp.where(jax.vmap(kept)(keys), rows / (1 - share), 0).reshape(x.shape)


def add_adapters(model: nnx.Module, config: LoraConfig, rngs: nnx.Rngs) -> None:
    """Replaces, in place, every projection whose whole dotted path a target matches.

    Raises:
      ConfigError: a target matches no projection.
    """
    linears = {_dotted(path): path for path, module in nnx.iter_modules(model) if isinstance(module, Linear)}
    idle = [target for target in config.targets if not any(re.fullmatch(target, name) for name in linears)]
    if idle or not config.targets:
        raise ConfigError(
            f"config key 'model.lora.targets': no projection matches {', '.join(map(repr, idle)) or 'an empty tuple'}; "
            f"projections are {', '.join(sorted({re.sub(r'[.][0-9]+[.]', '.N.', name) for name in linears}))}"
        )
    for name, path in linears.items():
        if any(re.fullmatch(target, name) for target in config.targets):
            parent = functools.reduce(_child, path[:-1], model)
            setattr(parent, path[-1], LoraLinear(_child(parent, path[-1]), config, rngs))


def use_dropout(model: nnx.Module, draw: Draw) -> None:
    """Switches on, in place, the dropout of adapters that have one.

    For training only, on a model that was merged for one gradient: sampling, reference policy and evaluation merge
    their own, which has none. Every row has masks of its own, whatever rows share its micro-batch or its device.
    """
    adapted = [module for _, module in nnx.iter_modules(model) if isinstance(module, LoraLinear) and module.dropout]
    if adapted:
        key = functools.reduce(jax.random.fold_in, (_DROPOUT, draw.step), jax.random.key(draw.seed))
        for module, module_key in zip(adapted, jax.random.split(key, len(adapted))):
            module.dropout_keys = jax.vmap(jax.random.fold_in, (None, 0))(module_key, draw.rows)


def merge_lora(params: Any, config: LoraConfig) -> Any:
    """Parameters of the adapter-free model that computes the same: kernel + alpha / rank * A B.

    The sum is taken in float32 and rounded once, to the kernel's dtype.
    """
    if not isinstance(params, dict):
        return params
    merged = {name: merge_lora(child, config) for name, child in params.items() if name not in ADAPTER_LEAVES}
    if "lora_a" in params:
        product = jnp.matmul(params["lora_a"], params["lora_b"], precision=jax.lax.Precision.HIGHEST)
        kernel = params["kernel"]
        merged["kernel"] = (kernel.astype(jnp.float32) + config.alpha / config.rank * product).astype(kernel.dtype)
    return merged


def _dotted(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path))


def _child(module: Any, name: str | int) -> Any:
    return module[name] if isinstance(name, int) else getattr(module, name)
