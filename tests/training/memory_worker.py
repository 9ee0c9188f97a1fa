"""Takes the next step of a stage whose state is large, then stops: `python -m tests.training.memory_worker DIR`.

Prints the most memory that the process held up to the end of its first step.
"""

import resource
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from mecap_jax.config import CheckpointConfig, OptimizerConfig
from mecap_jax.interruption import Interrupted
from mecap_jax.sharding import replicated
from mecap_jax.train_state import abstract_state, init_state, make_optimizer, make_update
from mecap_jax.training.checkpointing import StageCheckpoints
from mecap_jax.training.logging import RunLogger
from mecap_jax.training.loop import run_stage
from tests.training import harness

MATRICES, SIZE = 16, 1 << 21  # 128 MiB of parameters, 384 MiB of state


def main(directory: Path) -> None:
    mesh, optimizer = harness.mesh(), make_optimizer(OptimizerConfig(schedule="constant"), 4)
    shape = jax.ShapeDtypeStruct((SIZE // 1024, 1024), jnp.float32, sharding=replicated(mesh))
    abstract = abstract_state({str(i): shape for i in range(MATRICES)}, optimizer, mesh)
    update = make_update(optimizer, abstract)

    def initial():
        return init_state(
            jax.tree.map(lambda x: jnp.ones(x.shape, device=x.sharding), abstract.params), optimizer, mesh
        )

    def step(state, number, draw):
        state, _ = update(state, jax.tree.map(jnp.ones_like, state.params))
        jax.block_until_ready(state)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, "MiB", flush=True)
        return state, {}, ()

    with StageCheckpoints(directory / "checkpoints", CheckpointConfig(every=0), {}) as checkpoints:
        try:
            options = {"steps": 4, "checkpoints": checkpoints, "logger": RunLogger(None, enabled=False)}
            run_stage(
                "large", abstract, initial, step, harness.batches(4), max_nonfinite=1, should_stop=bool, **options
            )
        except Interrupted:
            pass


if __name__ == "__main__":
    main(Path(sys.argv[1]))
