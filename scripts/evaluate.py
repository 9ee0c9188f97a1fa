"""Evaluates a checkpoint: all metrics with confidence intervals, and what was said of every clip.

  python scripts/evaluate.py --checkpoint=runs/grpo/checkpoints/grpo --data=SHARDS --split=test --output=FILE.json
  python scripts/evaluate.py --checkpoint=DIR --data=SHARDS --output=FILE.json    # a directory of published files
  python scripts/evaluate.py --checkpoint=DIR --data=SHARDS --wheels=WHEELS.json --output=FILE.json    # any words
  python scripts/evaluate.py --report=runs/grpo    # a run's report anew, from the captions that it keeps

`predictions.jsonl` stands beside FILE.json, as soon as there are captions. It runs on the devices that are there,
whatever the run was trained on; several machines join as in `train.py`.
"""

import functools
import signal
import sys
from pathlib import Path

from mecap_jax.interruption import answer_signals

if __name__ == "__main__":  # before the imports that take seconds
    answer_signals({signal.SIGINT: 130})

import jax
from absl import app, flags, logging

from mecap_jax.command_line import local_paths, run
from mecap_jax.data.utterance import SPLITS
from mecap_jax.distributed import joined
from mecap_jax.evaluation.predictions import write_predictions
from mecap_jax.evaluation.tables import format_value, metric_cell, ordered
from mecap_jax.experiment.scoring import evaluate_checkpoint
from mecap_jax.experiment.setup import USER_ERRORS
from mecap_jax.experiment.story import report_again
from mecap_jax.experiment.workdir import check_output
from mecap_jax.json_files import write_json
from mecap_jax.text_files import error_message
from mecap_jax.training.logging import RunLogger

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "RUN/checkpoints/STAGE, or a directory of published files.")
_DATA = flags.DEFINE_string("data", "", "Directory of shards; empty: the data of the run.")
_SPLIT = flags.DEFINE_enum("split", "test", SPLITS, "Whose clips are captioned.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")
_WHEELS = flags.DEFINE_string("wheels", None, "File of emotion wheels, by which answers in any words are compared.")
_REPORT = flags.DEFINE_string("report", None, "A run's workdir: writes its report again, without captioning.")
local_paths("checkpoint", "data", "output", "wheels", "report")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if bool(_REPORT.value) == bool(_CHECKPOINT.value and _OUTPUT.value):
        raise app.UsageError("name --checkpoint and --output, or --report alone")
    if _REPORT.value and _WHEELS.value:
        raise app.UsageError("--wheels is of --checkpoint; a run's report takes those of its config key 'task.wheels'")
    logging.set_verbosity(logging.WARNING)
    with joined():
        try:
            with RunLogger(None, enabled=jax.process_index() == 0) as logger:
                if _REPORT.value:
                    report_again(Path(_REPORT.value), logger)
                else:
                    _evaluate(logger)
        except (*USER_ERRORS, OSError, ValueError) as error:
            sys.exit(error_message(error))


def _evaluate(logger: RunLogger) -> None:
    data, output = Path(_DATA.value) if _DATA.value else None, Path(_OUTPUT.value)
    check_output(output)
    said = output.with_name("predictions.jsonl")
    keep = functools.partial(write_predictions, said) if jax.process_index() == 0 else None
    result, predictions = evaluate_checkpoint(
        Path(_CHECKPOINT.value), data, _SPLIT.value, logger, wheels=_WHEELS.value or "", keep=keep
    )
    if jax.process_index() != 0:
        return
    write_predictions(said, predictions)
    write_json(output, result)
    for key in ordered(result["eval"]):
        print(f"{metric_cell(key):40} {format_value(key, result['eval'][key], result['confidence'].get(key))}")


if __name__ == "__main__":
    run(main)
