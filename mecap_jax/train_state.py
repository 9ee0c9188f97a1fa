"""What training changes: parameters, optimiser state and counters, and the one function that changes them.

Models are split once (`split_model`): from then on the static part is a `GraphDef` and the parameters are a plain
nested dict, which jit, Orbax and optax take as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax import nnx
from jax.sharding import Mesh

from mecap_jax.config import OptimizerConfig
from mecap_jax.model_config import ModelConfig
from mecap_jax.models.lora import Draw, use_dropout
from mecap_jax.models.multimodal_lm import MultimodalLM
from mecap_jax.models.parameters import merge_params
from mecap_jax.sharding import ShardingRules, batch_sharding, replicated


class TrainState(NamedTuple):
    """The state of a training stage.

    Attributes:
      params: nested dict of the parameters that train (see `models.parameters`); the frozen ones are not part of it.
      opt_state: optax state.
      step: int32 [], updates taken; with several on one rollout, more than the loop's steps.
      skipped: int32 [], consecutive updates that were skipped because their gradient was not finite.
      reference: the part of the reference policy that trains, where it moves after the policy; None where it does not.
    """

    params: Any
    opt_state: Any
    step: jax.Array
    skipped: jax.Array
    reference: Any = None


def abstract_model(config: ModelConfig, mesh: Mesh) -> tuple[nnx.GraphDef, Any]:
    """The model without its weights: graph definition, and a dict of ShapeDtypeStructs that carry shardings."""
    graphdef, state = _abstract(config, mesh)

    def place(variable):
        axes = variable.get_metadata()["logical_axes"]
        spec = ShardingRules().spec(axes, variable.shape, mesh)
        sharding = jax.sharding.NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(variable.shape, variable.dtype, sharding=sharding)

    placed = jax.tree.map(place, state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return graphdef, nnx.to_pure_dict(placed)


def init_params(
    config: ModelConfig, seed: int, mesh: Mesh, select: Callable[[Any], Any] = lambda params: params
) -> tuple[nnx.GraphDef, Any]:
    """Randomly initialised parameters, created on their devices.

    `select` takes a part of the nested dict; the rest is not even drawn.
    """
    graphdef, abstract = abstract_model(config, mesh)
    shardings = shardings_of(select(abstract))

    @functools.partial(jax.jit, out_shardings=shardings)
    def create():
        return select(nnx.to_pure_dict(nnx.state(_model(config, seed, mesh), nnx.Param)))

    return graphdef, create()


@functools.lru_cache(maxsize=16)
def _abstract(config: ModelConfig, mesh: Mesh) -> tuple[nnx.GraphDef, nnx.State]:
    """Tracing the initialisation takes a third of a second, and every stage asks for it."""
    return nnx.split(nnx.eval_shape(lambda: _model(config, 0, mesh)))


def _model(config: ModelConfig, seed: int, mesh: Mesh) -> MultimodalLM:
    return MultimodalLM(config, nnx.Rngs(seed), batch_sharding(mesh))


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) or Muon (kellerjordan.github.io/posts/muon) behind a clip of the global norm.

    Weight decay is on matrices only.
    """
    schedule = learning_rate_schedule(config, steps)
    optimizer = optax.adamw(
        schedule,
        b1=config.beta1,
        b2=config.beta2,
        weight_decay=config.weight_decay,
        mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
    )
    if config.name == "muon":
        muon = optax.contrib.muon(schedule, weight_decay=config.weight_decay, consistent_rms=_ADAM_RMS)
        optimizer = optax.partition({"layers": muon, "rest": optimizer}, _muon_labels)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate by the number of updates before."""
    rate, end = config.learning_rate, config.learning_rate * config.end_factor
    decay_steps = max(1, steps - config.warmup_steps)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(rate, decay_steps, config.end_factor)
    elif config.schedule == "linear":
        after = optax.linear_schedule(rate, end, decay_steps)
    else:
        after = optax.constant_schedule(rate)
    warmup = optax.linear_schedule(0.0, rate, config.warmup_steps)
    # The first update of a warm-up would have rate 0 and waste a batch: count from one.
    return optax.join_schedules([lambda step: warmup(step + 1), after], [config.warmup_steps])


def last_learning_rate(schedule: optax.Schedule, state: TrainState) -> float:
    """The rate of the newest update that was made; one that was skipped does not count."""
    updates = int(optax.tree.get_all_with_path(state.opt_state, "count")[0][1])
    return float(schedule(max(updates - 1, 0)))


# Muon's updates are scaled to the size that AdamW's have, so that both take the same learning rates (arXiv 2502.16982).
_ADAM_RMS = 0.2


def _muon_labels(params: Any) -> Any:
    """Muon takes the matrices of layers. Embeddings and output weights have a row a token, most without a gradient in a
    step; they stay with AdamW, as Muon's author has it, tied or not, and so do learned positions."""

    def label(path, x):
        table = any(name in str(key) for key in path for name in ("embed_tokens", "embed_positions", "lm_head"))
        return "layers" if x.ndim == 2 and not table else "rest"

    return jax.tree_util.tree_map_with_path(label, params)


def init_state(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state before the first step; optimiser moments are sharded like their parameters."""
    state = abstract_state(params, optimizer, mesh)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings_of(state.opt_state))(params)
    # Two arrays, not one twice: the state is donated to every step, and a buffer can be donated only once.
    step, skipped = (jax.device_put(jnp.int32(0), replicated(mesh)) for _ in range(2))
    return TrainState(params, opt_state, step, skipped)


def abstract_state(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of a state, from (abstract) parameters; what a checkpoint is restored into."""
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))

    def place(moment: Any, param: Any) -> Any:
        if isinstance(moment, optax.MaskedNode):  # a parameter that another part of the optimiser takes care of
            return moment
        return jax.ShapeDtypeStruct(moment.shape, moment.dtype, sharding=param.sharding)

    opt_state = optax.tree.map_params(
        optimizer,
        place,
        jax.eval_shape(optimizer.init, placed),
        placed,
        transform_non_params=lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )
    return TrainState(placed, opt_state, scalar, scalar)


def shardings_of(tree: Any) -> Any:
    """The sharding of every (abstract) array."""
    return jax.tree.map(lambda x: x.sharding, tree)


def make_zeros(params: Any) -> Callable[[], Any]:
    """Returns the compiled start of an accumulated gradient: zeros, sharded as `params` are.

    The shardings are spelt out because accumulation donates: an alias needs the same layout on both sides.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    return jax.jit(
        lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), out_shardings=shardings_of(params)
    )


# (model, batch, what all micro-batches share) -> (this micro-batch's share of the loss, what is observed of it).
Loss = Callable[[MultimodalLM, Any, Any], tuple[jax.Array, Any]]


def make_gradient(graphdef: nnx.GraphDef, params: Any, loss: Loss):
    """Returns the compiled (params, accumulated, frozen, batch, shared, draw) -> (accumulated + gradient, observed).

    The gradient is of `params`, which train, and sharded as they are. `accumulated` is consumed; None starts from the
    first gradient. `draw` decides the dropout of adapters.
    """

    def gradient(params: Any, accumulated: Any, frozen: Any, batch: Any, shared: Any, draw: Draw) -> tuple[Any, Any]:
        def value(params):
            model = nnx.merge(graphdef, merge_params(params, frozen))
            use_dropout(model, draw)
            return loss(model, batch, shared)

        gradients, observed = jax.grad(value, has_aux=True)(params)
        if accumulated is not None:
            gradients = jax.tree.map(jnp.add, accumulated, gradients)
        return gradients, observed

    return jax.jit(gradient, donate_argnums=1, out_shardings=(shardings_of(params), None))


class Updater:
    """Optimiser steps on a loss: the gradients of micro-batches add up, and are applied once. It holds no state."""

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        state: TrainState,
        frozen: Any,
        optimizer: optax.GradientTransformation,
        loss: Loss,
        seed: int,
    ):
        """`state`, without a reference policy, shows shapes and shardings; `frozen` parameters do not train."""
        self._frozen, self._seed = frozen, np.uint32(seed)
        self._gradient = make_gradient(graphdef, state.params, loss)
        self._apply = make_update(optimizer, state)
        self._zeros = make_zeros(state.params)

    def __call__(
        self, state: TrainState, batches: Sequence[tuple[Any, jax.Array]], shared: Any, accumulate: bool
    ) -> tuple[TrainState, list[Any], jax.Array]:
        """One step over (micro-batch, its rows' numbers); the given state is consumed.

        Without `accumulate`, which is for steps of one micro-batch, there is no second copy of the gradient.

        Returns the new state, what was observed of each micro-batch, and the global norm of the gradient.
        """
        gradients = self._zeros() if accumulate else None
        observed = []
        for batch, rows in batches:
            draw = Draw(self._seed, state.step, rows)
            gradients, seen = self._gradient(state.params, gradients, self._frozen, batch, shared, draw)
            observed.append(seen)
        state, norm = self._apply(state, gradients)
        return state, observed, norm


def make_update(
    optimizer: optax.GradientTransformation, state: TrainState
) -> Callable[[TrainState, Any], tuple[TrainState, jax.Array]]:
    """Returns the compiled optimiser step: (state, gradients) -> (new state, global norm of the gradients).

    The state, which comes without a reference policy, is consumed. A gradient that is not finite changes nothing but
    the counters. The new state is sharded as `state` is: left to itself, a compiler may divide a norm's scale that was
    whole, and every program of the next step would be compiled again.
    """

    def update(state: TrainState, gradients: Any) -> tuple[TrainState, jax.Array]:
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(norm)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        def choose(new, old):
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        skipped = jnp.where(finite, 0, state.skipped + 1)
        new = TrainState(choose(params, state.params), choose(opt_state, state.opt_state), state.step + 1, skipped)
        return new, norm

    return jax.jit(update, donate_argnums=0, out_shardings=(shardings_of(state), None))
