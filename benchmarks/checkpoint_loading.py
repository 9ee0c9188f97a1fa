"""How long a random checkpoint takes to load, against reading its bytes, and how much memory the host needs for it.

  python benchmarks/checkpoint_loading.py --preset=qwen2_5_omni_3b --directory=/tmp/checkpoint --output=FILE.json

Writes the checkpoint (9.4 GB for Qwen2.5-Omni-3B) where the directory has none. Reading and loading alternate, each in
a process of its own, from files that are (a) dropped from and (b) held in the page cache.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from absl import app, flags

from mecap_jax.json_files import to_json, write_json
from mecap_jax.model_config import ModelConfig

_PRESET = flags.DEFINE_string("preset", "qwen2_5_omni_3b", "Name of the preset.")
_DIRECTORY = flags.DEFINE_string("directory", None, "Where the checkpoint is or goes.", required=True)
_OUTPUT = flags.DEFINE_string("output", "", "JSON file with the results.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Pairs of measurements.")
_MEASURE = flags.DEFINE_enum("measure", "", ["", "read", "load"], "Measure one thing in this process (internal).")


class _Noise:
    """Stands for a parameter; its values exist while they are written."""

    pool = None

    def __init__(self, like):
        self.shape, self.dtype, self.size = like.shape, np.dtype(like.dtype), int(np.prod(like.shape))

    def __array__(self, dtype=None, copy=None):
        if _Noise.pool is None:
            normal = np.random.default_rng(0).normal(scale=0.02, size=2**22)
            _Noise.pool = normal.astype(ml_dtypes.bfloat16)
        return np.resize(_Noise.pool, self.shape).astype(self.dtype)


def _abstract(model: ModelConfig):
    import jax
    from flax import nnx

    from mecap_jax.models.multimodal_lm import MultimodalLM

    _, state = nnx.split(nnx.eval_shape(lambda: MultimodalLM(model, nnx.Rngs(0))))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nnx.to_pure_dict(state))


def write(directory: Path, model: ModelConfig) -> None:
    """Writes a checkpoint of random numbers, a shard at a time."""
    import jax

    from mecap_jax.models.checkpoints.config_writer import format_config
    from mecap_jax.models.checkpoints.hub import save_weights

    directory.mkdir(parents=True, exist_ok=True)
    save_weights(directory, model, jax.tree.map(_Noise, _abstract(model)))
    write_json(directory / "config.json", format_config(model, {}))


def read(directory: Path) -> None:
    """Reads every byte of the files into memory."""
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            data = memoryview(np.empty(path.stat().st_size, np.uint8))
            done = 0
            while done < len(data):
                done += file.readinto(data[done : done + 2**30])


def load(directory: Path, model: ModelConfig) -> dict[str, float]:
    """Loads the parameters; returns sizes in GB."""
    import jax

    from mecap_jax.models.checkpoints.hub import load_weights

    shapes = _abstract(model)
    before = time.perf_counter()
    params = jax.block_until_ready(load_weights(directory, model, shapes))
    seconds = time.perf_counter() - before
    destination = sum(x.nbytes for x in jax.tree.leaves(params)) / 1e9
    largest = max(path.stat().st_size for path in directory.glob("*.safetensors")) / 1e9
    return {"seconds": seconds, "destination_gb": destination, "largest_shard_gb": largest}


def measure(directory: Path, model: ModelConfig, what: str) -> dict[str, float]:
    """Runs one measurement and adds the peak of the resident memory, mapped pages included."""
    if what == "load":
        import jax

        jax.block_until_ready(jax.numpy.zeros(1))  # the back end starts outside of what is timed
    base = _peak_gb()
    before = time.perf_counter()
    result = load(directory, model) if what == "load" else read(directory) or {}
    result.setdefault("seconds", time.perf_counter() - before)
    return {**result, "base_gb": base, "peak_gb": _peak_gb()}


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _forget(directory: Path) -> None:
    """Drops the files from the page cache."""
    for path in directory.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(argv: list[str]) -> None:
    directory, model = Path(_DIRECTORY.value), getattr(ModelConfig, _PRESET.value)()
    if _MEASURE.value:
        print(to_json(measure(directory, model, _MEASURE.value)))
        return
    if not (directory / "config.json").exists():
        write(directory, model)
    results = {"preset": _PRESET.value, "cold": [], "warm": []}
    for state in ("cold", "warm"):
        for _ in range(_REPEATS.value):
            pair = {}
            for what in ("read", "load"):
                if state == "cold":
                    _forget(directory)
                command = [sys.executable, __file__, f"--preset={_PRESET.value}", f"--directory={directory}"]
                output = subprocess.run([*command, f"--measure={what}"], check=True, capture_output=True, text=True)
                pair[what] = json.loads(output.stdout.splitlines()[-1])
            pair["ratio"] = pair["load"]["seconds"] / pair["read"]["seconds"]
            load_ = pair["load"]
            pair["memory_over_destination_in_shards"] = (
                load_["peak_gb"] - load_["base_gb"] - load_["destination_gb"]
            ) / load_["largest_shard_gb"]
            results[state].append(pair)
            print(state, to_json(pair), flush=True)
    if _OUTPUT.value:
        write_json(Path(_OUTPUT.value), results)


if __name__ == "__main__":
    app.run(main)
