"""Memory of a device for a published backbone: what a run keeps, and what its programs need on top.

  python benchmarks/memory.py --config=configs/grpo.py:qwen2_5_omni_3b,lora --devices=1 [--output=FILE.json]

Nothing is allocated: parameters and batches are shapes, and the real programs (sampling, reference, gradient, update)
are compiled for so many simulated devices over which the parameters are divided (`mesh.fsdp`). What is kept is counted
in the recipe's dtypes. Temporaries are those of programs in float32: XLA's CPU back end would hold bfloat16 weights a
second time in float32. They are an upper bound for an accelerator: activations in bfloat16 take half, and the CPU back
end schedules what is rematerialised early, so that it saves nothing there. `--kept` counts without compiling.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from mecap_jax.batch import Completions
from mecap_jax.config import load
from mecap_jax.data.collate import collate
from mecap_jax.data.fitting import bucket_for
from mecap_jax.generation.sampler import generate
from mecap_jax.generation.scoring import completion_logprobs
from mecap_jax.json_files import to_json, write_json
from mecap_jax.models.lora import Draw
from mecap_jax.models.parameters import merge_params, split_params
from mecap_jax.rl.objective import Denominators, TrainExample, grpo_loss
from mecap_jax.sharding import batch_sharding, make_mesh, replicated
from mecap_jax.train_state import abstract_model, abstract_state, make_gradient, make_optimizer, make_update

_CONFIG = flags.DEFINE_string("config", None, "Recipe with a family.", required=True)
_DEVICES = flags.DEFINE_integer("devices", 1, "Devices over which the parameters are divided.")
_PROMPTS = flags.DEFINE_integer("prompts", 0, "Prompts in a micro-batch; 0 takes one a device.")
_SECONDS = flags.DEFINE_float("seconds", 10.0, "Length of the clips.")
_KEPT = flags.DEFINE_bool("kept", False, "Only count what is kept.")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file.")


def gigabytes(tree) -> float:
    """GB a device of a tree of ShapeDtypeStructs with shardings."""
    total = sum(np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
    return float(total) / 1e9


def main(argv: list[str]) -> None:
    devices = _DEVICES.value
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    config = load(_CONFIG.value, [f"mesh.fsdp={devices}"])
    mesh, grpo, model = make_mesh(config.mesh), config.grpo, config.model
    bucket = bucket_for(_SECONDS.value, config.data, model)
    rows = _PROMPTS.value or devices
    by_row, whole = batch_sharding(mesh), replicated(mesh)

    def struct(shape, dtype, sharding=by_row):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    empty = collate([], bucket, model, 0)
    prompt = jax.tree.map(lambda x: struct((rows, *x.shape[1:]), x.dtype), empty)
    group, length = grpo.group_size, grpo.max_new_tokens
    completions = Completions(struct((rows, group, length), jnp.int32), struct((rows, group, length), jnp.bool_))
    optimizer = make_optimizer(grpo.optimizer, grpo.steps)
    _, params = abstract_model(model, mesh)
    trainable, _ = split_params(params, config.trainable)
    scores = struct((rows, group, length), jnp.float32)
    example = TrainExample(
        prompt, struct((rows,), jnp.bool_), completions, scores, scores, struct((rows, group), jnp.float32), None
    )
    scalar = struct((), jnp.float32, whole)
    draw = Draw(struct((), jnp.uint32, whole), struct((), jnp.uint32, whole), struct((rows,), jnp.int32))
    kept = {
        "parameters": gigabytes(params),
        "optimiser": gigabytes(abstract_state(trainable, optimizer, mesh).opt_state),
        "reference": gigabytes(trainable),
        "gradient": gigabytes(trainable),
    }
    graphdef, params = abstract_model(dataclasses.replace(model, param_dtype="float32", dtype="float32"), mesh)
    trainable, frozen = split_params(params, config.trainable)
    state = abstract_state(trainable, optimizer, mesh)
    programs = {
        "sample": lambda: generate.lower(
            graphdef, params, prompt, struct((2,), jnp.uint32, whole), struct((rows,), jnp.int32), group_size=group,
            max_new_tokens=length, temperature=1.0, top_p=1.0, end_ids=(0,),
        ),
        "reference": lambda: completion_logprobs.lower(graphdef, params, prompt, completions, temperature=1.0),
        "gradient": lambda: make_gradient(graphdef, trainable, functools.partial(grpo_loss, config=grpo)).lower(
            trainable, None, frozen, example, (Denominators(scalar, scalar, scalar), scalar), draw
        ),
        "update": lambda: make_update(optimizer, state).lower(state, trainable),
    }  # fmt: skip
    temporaries = {}
    for name, lower in () if _KEPT.value else programs.items():
        began = time.perf_counter()
        temporaries[name] = lower().compile().memory_analysis().temp_size_in_bytes / 1e9
        print(f"{name}: {temporaries[name]:.1f} GB of temporaries, {time.perf_counter() - began:.0f} s", flush=True)
    result = {
        "config": _CONFIG.value,
        "devices": devices,
        "prompts_per_device": rows / devices,
        "bucket": bucket.__dict__,
        "trainable_parameters": sum(int(np.prod(x.shape)) for x in jax.tree.leaves(trainable)),
        "parameters": sum(int(np.prod(x.shape)) for x in jax.tree.leaves(merge_params(trainable, frozen))),
        "kept_gb": kept,
        "temporaries_gb": temporaries,
        "total_gb": sum(kept.values()) + max(temporaries.values(), default=0.0),
    }
    print(to_json(result))
    if _OUTPUT.value:
        write_json(Path(_OUTPUT.value), result)


if __name__ == "__main__":
    app.run(main)
