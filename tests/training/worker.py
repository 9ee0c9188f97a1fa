"""One of several processes that take the same steps together: `python -m tests.training.worker KINDS INDEX COUNT PORT
DEVICES DIRECTORY`, with so many devices each. The first one writes parameters and metrics, a file a kind."""

import functools
import os
import sys

from tests.xla_flags import xla_flags

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = xla_flags(devices=int(sys.argv[5]))

import jax


def main(kinds: str, index: int, count: int, port: str, directory: str) -> None:
    if count > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    import numpy as np
    from jax.experimental import multihost_utils

    from tests.training import harness

    asking = functools.partial(harness.grpo_step, curious=True)
    for kind in kinds.split(","):
        make = {"sft": harness.sft_step, "grpo": harness.grpo_step, "asking": asking}[kind]
        # Parameters are divided over devices of both processes: every gather crosses the boundary.
        _, state, step = make(harness.mesh(data=jax.device_count() // 2, fsdp=2), micro=1, optimizer=harness.DESCENT)
        rows = []
        for number in range(2):
            state, metrics, groups = step(state, number)
            rows.append({name: value for name, value in metrics.items() if not name.startswith("timing_s")})
            # Both hear of all groups, in order; the clip that could not be decoded has none.
            expected = [f"clip-{i}" for i in range(harness.BATCH) if i != 3] if kind != "sft" else []
            assert [group["utterance_id"] for group in groups] == expected
        params = multihost_utils.process_allgather(state.params, tiled=True)
        if index == 0:
            np.savez(f"{directory}/{kind}.npz", **harness.flat(params, rows))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[6])
