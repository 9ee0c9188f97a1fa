"""The programs of a step, traced from shapes: nothing is allocated, and the devices need not be attached."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mecap_jax.batch import Completions, PromptBatch
from mecap_jax.config import Bucket, Config
from mecap_jax.data.collate import collate
from mecap_jax.generation.sampler import generate
from mecap_jax.generation.scoring import completion_logprobs
from mecap_jax.generation.weights import as_used, conversions
from mecap_jax.models.lora import Draw
from mecap_jax.models.parameters import split_params
from mecap_jax.rl.objective import Denominators, TrainExample, grpo_loss
from mecap_jax.rl.rollout import encodes_once, make_encode
from mecap_jax.sharding import Division, batch_sharding, divide, replicated
from mecap_jax.train_state import abstract_model, abstract_state, make_gradient, make_optimizer, make_update
from mecap_jax.training.sft import SftBatch, sft_loss


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled function of a step, or several that run one behind the other.

    Attributes:
      traces: trace them.
      calls: how often a step runs it.
      trips: how often the body of its loop runs whose end depends on data; 1 where it has none.
      copies: shapes of weights that are there beside what is kept while it runs or behind it; None: none.
    """

    traces: Sequence[Callable[[], jax.stages.Traced]]
    calls: int
    trips: int = 1
    copies: Any = None


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """A stage on a mesh.

    Attributes:
      programs: by name.
      kept: trees of shapes with shardings that stay on the devices from step to step, by name.
      batch: the tree of one micro-batch's prompts, of which a step holds `division.parts`.
      division: how its prompts or clips are spread over the mesh.
    """

    programs: dict[str, Program]
    kept: dict[str, Any]
    batch: Any
    division: Division


def gigabytes(tree: Any) -> float:
    """GB (1e9 bytes) a device of a tree of ShapeDtypeStructs with shardings."""
    return sum(np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)) / 1e9


def plan_stage(config: Config, stage: str, mesh: Mesh, bucket: Bucket) -> StagePlan:
    """The programs of a step of `stage` ("sft" or "grpo") on prompts of one shape.

    Raises:
      ValueError: the recipe has no such stage.
    """
    if getattr(config, stage) is None:
        raise ValueError(f"--stage: the recipe has no {stage!r}")
    return (_plan_grpo if stage == "grpo" else _plan_sft)(config, mesh, bucket)


def _plan_grpo(config: Config, mesh: Mesh, bucket: Bucket) -> StagePlan:
    grpo, shapes = config.grpo, _Shapes(mesh)
    division = divide(grpo.prompts, mesh, grpo.micro_prompts)
    rows = division.size * division.shards
    learning = _Learning(config, grpo.optimizer, grpo.steps * grpo.updates_per_step, mesh)
    raw = prompt = shapes.prompts(config, bucket, rows)
    used, copies, gather = _sampling(learning.params, config, config.mesh.gather)
    programs = {"gather": Program(gather, 1, copies=copies)} if gather else {}
    if encodes_once(learning.trainable) and raw.has_raw_media:
        encode = make_encode(learning.graphdef, mesh)
        prompt = jax.tree.map(lambda x: shapes.rows(x.shape, x.dtype), jax.eval_shape(encode, used, raw))
        programs["encode"] = Program([functools.partial(encode.trace, used, raw)], division.parts, copies=copies)
    group, length = grpo.group_size, grpo.max_new_tokens
    completions = shapes.completions(rows, group, length)
    scores = shapes.rows((rows, group, length), jnp.float32)
    references = shapes.completions(rows, grpo.loss.references, length) if grpo.loss.reference_likelihood else None
    example = TrainExample(
        prompt,
        shapes.rows((rows,), jnp.bool_),
        completions,
        scores,
        scores if grpo.loss.beta else None,
        shapes.rows((rows, group), jnp.float32),
        references,
    )
    shared = (Denominators(*[shapes.whole((), jnp.float32)] * 3), shapes.whole((), jnp.float32))
    sample = functools.partial(
        generate.trace,
        learning.graphdef,
        used,
        prompt,
        shapes.whole((2,), jnp.uint32),
        shapes.rows((rows,), jnp.int32),
        valid=shapes.rows((rows,), jnp.bool_),
        group_size=group,
        max_new_tokens=length,
        temperature=grpo.temperature,
        top_k=grpo.top_k,
        top_p=grpo.top_p,
        min_p=grpo.min_p,
        end_ids=(0,),
    )
    score = functools.partial(
        completion_logprobs.trace,
        learning.graphdef,
        used,
        prompt,
        completions,
        temperature=grpo.temperature,
    )
    loss = functools.partial(grpo_loss, config=grpo)
    programs["sample"] = Program([sample], division.parts, trips=length, copies=copies)
    kept = learning.kept()
    if grpo.loss.beta:
        moves = grpo.reference_sync_steps  # then it is kept as the policy is
        kept["reference"] = learning.trainable if moves else _sampling(learning.trainable, config, False)[0]
        _, own, gather = _sampling(kept["reference"], config, config.mesh.gather)
        if gather:
            programs["gather_reference"] = Program(gather, 1, copies=own)
        programs["reference"] = Program([score], division.parts, copies=copies)
    programs |= learning.programs(
        loss, example, shared, shapes, rows, division.parts, grpo.updates, grpo.updates_per_step
    )
    return StagePlan(programs, kept, raw, division)


def _sampling(params: Any, config: Config, gather: bool) -> tuple[Any, list[Any], list[Callable]]:
    """Parameters as completions are sampled with them; those of them that are copies; and what traces the programs that
    make these (see `generation.weights`)."""
    leaves, tree = jax.tree.flatten(params)
    wanted = [as_used(x, config.model.dtype, gather) for x in leaves]
    used = [jax.ShapeDtypeStruct(x.shape, dtype, sharding=place) for x, (dtype, place) in zip(leaves, wanted)]
    parts = conversions(leaves, config.model.dtype, gather)
    traces = [functools.partial(convert.trace, [leaves[i] for i in indices]) for indices, convert in parts]
    copies = [used[i] for indices, _ in parts for i in indices]
    return jax.tree.unflatten(tree, used) if traces else params, copies, traces


def _plan_sft(config: Config, mesh: Mesh, bucket: Bucket) -> StagePlan:
    sft, shapes = config.sft, _Shapes(mesh)
    division = divide(sft.batch_clips, mesh, sft.micro_clips)
    rows = division.size * division.shards
    targets = shapes.completions(rows, sft.references, sft.max_target_tokens)
    batch = SftBatch(shapes.prompts(config, bucket, rows), targets, shapes.rows((rows,), jnp.int32))
    learning = _Learning(config, sft.optimizer, sft.steps, mesh)
    loss = functools.partial(sft_loss, normalization=sft.normalization)
    divisor = shapes.whole((), jnp.float32)
    programs = learning.programs(loss, batch, divisor, shapes, rows, division.parts, 1, 1)
    return StagePlan(programs, learning.kept(), batch, division)


class _Shapes:
    """Makes the shapes of batches on a mesh."""

    def __init__(self, mesh: Mesh):
        self._by_row, self._whole = batch_sharding(mesh), replicated(mesh)

    def rows(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._by_row)

    def whole(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._whole)

    def completions(self, rows: int, group: int, length: int) -> Completions:
        shape = (rows, group, length)
        return Completions(self.rows(shape, jnp.int32), self.rows(shape, jnp.bool_))

    def prompts(self, config: Config, bucket: Bucket, rows: int) -> PromptBatch:
        empty = collate([], bucket, config.model, 0, encoded=config.data.tower_cache)
        return jax.tree.map(lambda x: self.rows((rows, *x.shape[1:]), x.dtype), empty)


class _Learning:
    """What SFT and reinforcement learning have in common: a model, an optimiser, gradients that add up."""

    def __init__(self, config: Config, optimizer: Any, steps: int, mesh: Mesh):
        self.graphdef, self.params = abstract_model(config.model, mesh)
        self.trainable, self._frozen = split_params(self.params, config.trainable)
        self._optimizer = make_optimizer(optimizer, steps)
        self._state = abstract_state(self.trainable, self._optimizer, mesh)

    def kept(self) -> dict[str, Any]:
        return {"parameters": self.params, "optimiser": self._state.opt_state, "gradient": self.trainable}

    def programs(
        self, loss: Any, batch: Any, shared: Any, shapes: _Shapes, rows: int, parts: int, passes: int, updates: int
    ) -> dict[str, Program]:
        """Gradient and update; `passes` over a step's micro-batches, `updates` of the parameters."""
        draw = Draw(shapes.whole((), jnp.uint32), shapes.whole((), jnp.int32), shapes.rows((rows,), jnp.int32))
        accumulated = self.trainable if parts > 1 else None
        gradient = functools.partial(
            make_gradient(self.graphdef, self.trainable, loss).trace,
            self.trainable,
            accumulated,
            self._frozen,
            batch,
            shared,
            draw,
        )
        update = functools.partial(make_update(self._optimizer, self._state).trace, self._state, self.trainable)
        return {"gradient": Program([gradient], parts * passes), "update": Program([update], updates)}


def parameter_counts(config: Config, mesh: Mesh) -> tuple[int, int]:
    """How many parameters there are, and how many of them train."""
    _, params = abstract_model(config.model, mesh)
    trainable, _ = split_params(params, config.trainable)
    everything, training = (sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree)) for tree in (params, trainable))
    return everything, training
