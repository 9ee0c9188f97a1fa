"""Trains an emotion captioner: SFT, Emo-GRPO or both, with evaluation and report.

  python scripts/train.py --config=configs/grpo.py --workdir=runs/grpo [--config.grpo.group_size=4]

--profile=10:12 traces three steps of each stage, for TensorBoard and Perfetto.

The same command resumes an interrupted run. SIGTERM and Ctrl-C save and stop; the exit status is 75 then.

A run on several machines is this command on each of them, with a workdir that all share. On TPU pods and under SLURM
they find each other; elsewhere --coordinator_address=HOST:PORT, --num_processes and --process_id say where they meet.
"""

import gc
import signal
import sys
from logging import getLogger
from pathlib import Path

from mecap_jax.interruption import Interrupted, answer_signals

if __name__ == "__main__":  # before the imports that take seconds
    answer_signals(dict.fromkeys((signal.SIGTERM, signal.SIGINT), Interrupted.STATUS))
    gc.set_threshold(10_000)  # each collection looks through millions of objects that stay: imports and traces

from absl import app, flags, logging

from mecap_jax.command_line import local_paths, refuse, split_overrides, start, storage_problem
from mecap_jax.config import ConfigError, load
from mecap_jax.config.reference import help_of_keys
from mecap_jax.distributed import joined
from mecap_jax.text_files import error_message

_CONFIG = flags.DEFINE_string(
    "config", None, "Recipe: path/to/recipe.py[:argument], or a name that comes along: grpo.", required=True
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Directory of the run; runs/RECIPE where not given.")
_PROFILE = flags.DEFINE_string(
    "profile", "", "FIRST:LAST, or one step: trace these steps of every stage into WORKDIR/profile."
)
local_paths("workdir")


def traced_steps(value: str) -> tuple[int, int] | None:
    """First and last step of a trace, counted from 1.

    Raises:
      ConfigError: it is neither FIRST:LAST nor a number.
    """
    if not value:
        return None
    first, _, last = value.partition(":")
    if not first.isdecimal() or not (last or first).isdecimal() or not 1 <= int(first) <= int(last or first):
        raise ConfigError(f"--profile: expected FIRST:LAST, two steps counted from 1, or one step; got {value!r}")
    return int(first), int(last or first)


def main(argv: list[str], overrides: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    try:
        config, traced = load(_CONFIG.value, overrides), traced_steps(_PROFILE.value)
    except ConfigError as error:
        refuse(str(error))
    logging.set_verbosity(logging.WARNING)
    workdir = Path(_WORKDIR.value or Path("runs") / config.name)

    # Only now: nothing above needs a device, and a wrong configuration should not wait for one.
    from mecap_jax.experiment import story
    from mecap_jax.experiment.setup import USER_ERRORS
    from mecap_jax.training.stopping import StopSignal

    try:
        with StopSignal() as should_stop, joined():  # in this order: processes may wait long for each other
            try:
                story.run(config, workdir, should_stop, traced)
            except USER_ERRORS as error:
                sys.exit(error_message(error))
            except Exception as error:
                if (problem := storage_problem(error)) is None:
                    raise
                # Threads that were saving report to an event loop that is gone.
                getLogger("concurrent.futures").disabled = True
                where = "" if str(workdir) in problem else f"{workdir}: "
                whole = "; what was saved is whole, and the same command goes on from there" if workdir.is_dir() else ""
                sys.exit(f"error: {where}{problem}{whole}")
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(Interrupted.STATUS)


if __name__ == "__main__":
    __doc__ += help_of_keys(sys.argv)
    arguments, config_overrides = split_overrides(sys.argv)
    start(lambda argv: main(argv, config_overrides), arguments)
