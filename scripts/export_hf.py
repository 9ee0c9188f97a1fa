"""Exports a checkpoint to a directory that `transformers` loads.

python scripts/export_hf.py --checkpoint=runs/grpo/checkpoints/grpo --output=DIR
"""

import signal
import sys
from pathlib import Path

from mecap_jax.interruption import answer_signals

if __name__ == "__main__":  # before the imports that take seconds
    answer_signals({signal.SIGINT: 130})

from absl import app, flags, logging

from mecap_jax.command_line import local_paths, run
from mecap_jax.experiment.export import DTYPES, export_stage
from mecap_jax.experiment.setup import USER_ERRORS
from mecap_jax.text_files import error_message

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A stage of a run: RUN/checkpoints/STAGE.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Directory to write; must not hold anything.", required=True)
_DTYPE = flags.DEFINE_enum("dtype", None, DTYPES, "Of the tensors; by default the backbone's, or the model's own.")
_ADAPTER_ONLY = flags.DEFINE_bool("adapter_only", False, "Write the adapters by themselves, in PEFT's layout.")
_WHOLE_OMNI = flags.DEFINE_bool("whole_omni", False, "Qwen2.5-Omni in the layout of a whole model, as vLLM reads it.")
_MAX_SHARD_GB = flags.DEFINE_float("max_shard_gb", 5.0, "Largest file of weights, in 10^9 bytes.", lower_bound=1e-3)
local_paths("checkpoint", "output")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    output = Path(_OUTPUT.value)
    try:
        export_stage(
            Path(_CHECKPOINT.value),
            output,
            dtype=_DTYPE.value,
            adapter_only=_ADAPTER_ONLY.value,
            whole_omni=_WHOLE_OMNI.value,
            max_shard_bytes=int(_MAX_SHARD_GB.value * 1e9),
        )
    except USER_ERRORS as error:
        sys.exit(error_message(error))
    files = [path for path in output.iterdir() if path.is_file()]
    print(f"{output}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:,.1f} MB")


if __name__ == "__main__":
    run(main)
