"""One of several processes that encode clips together: `python -m tests.experiment.tower_worker INDEX COUNT PORT
WORKDIR CACHE`, over a run that was set up."""

import os
import sys
from pathlib import Path

from tests.xla_flags import xla_flags

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = xla_flags(devices=2)

import jax


def main(index: int, count: int, port: str, workdir: Path, cache: Path) -> None:
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    from mecap_jax.experiment import tower_cache
    from mecap_jax.experiment import workdir as workdir_module
    from mecap_jax.experiment.setup import reopen
    from mecap_jax.experiment.weights import open_model
    from mecap_jax.training.logging import RunLogger

    workdir_module.CACHE = cache
    bench = reopen(workdir, None, RunLogger(None))
    bench = tower_cache.with_tower_cache(bench, open_model(bench.config, bench.mesh), lambda step: False)
    (batch,) = bench.dataset.evaluation_batches(bench.dataset.clips("test")[:8], 8)
    assert batch.valid.all() and (batch.prompt.media_index >= 0).any()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), Path(sys.argv[5]))
