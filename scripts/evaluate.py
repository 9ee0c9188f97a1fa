"""Evaluates a checkpoint: all metrics with confidence intervals.

  python scripts/evaluate.py --checkpoint=runs/grpo/checkpoints/grpo --data=SHARDS --split=test --output=FILE.json

It runs on the devices that are there, whatever the run was trained on; several machines join as in `train.py`.
"""

import sys
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging

from mecap_jax.data.utterance import SPLITS
from mecap_jax.distributed import joined
from mecap_jax.evaluation.tables import format_value, metric_cell, ordered
from mecap_jax.experiment.scoring import evaluate_checkpoint
from mecap_jax.experiment.setup import USER_ERRORS
from mecap_jax.json_files import write_json
from mecap_jax.training.logging import RunLogger

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A stage of a run: RUN/checkpoints/STAGE.", required=True)
_DATA = flags.DEFINE_string("data", "", "Directory of shards; empty: the data of the run.")
_SPLIT = flags.DEFINE_enum("split", "test", SPLITS, "Whose clips are captioned.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.", required=True)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    with joined():
        try:
            with RunLogger(None, enabled=jax.process_index() == 0) as logger:
                data = Path(_DATA.value) if _DATA.value else None
                result = evaluate_checkpoint(Path(_CHECKPOINT.value), data, _SPLIT.value, logger)
        except USER_ERRORS as error:
            sys.exit(f"error: {error}")
        if jax.process_index() == 0:
            _write(result)


def _write(result: dict[str, Any]) -> None:
    output = Path(_OUTPUT.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, result)
    for key in ordered(result["eval"]):
        print(f"{metric_cell(key):40} {format_value(key, result['eval'][key], result['confidence'].get(key))}")


if __name__ == "__main__":
    app.run(main)
