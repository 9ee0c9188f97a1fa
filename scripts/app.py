"""A local page to try a captioner and to look into runs and data: `python scripts/app.py --checkpoint=DIR [--runs=DIR]`

It needs the extra "app" (Gradio), listens on this machine alone unless --host says otherwise, and asks nobody outside.
What lies outside of the directories that the flags name is not shown.
"""

import signal
import sys
import threading
from pathlib import Path

from mecap_jax.interruption import answer_signals

if __name__ == "__main__":  # before the imports that take seconds
    answer_signals({signal.SIGINT: 130})

from absl import app, flags, logging

from mecap_jax.app.server import LOOPBACK, check_port, serving
from mecap_jax.app.site import Site
from mecap_jax.captioner import DTYPES
from mecap_jax.command_line import local_paths, run
from mecap_jax.config import ConfigError
from mecap_jax.experiment.setup import USER_ERRORS
from mecap_jax.text_files import error_message

_CHECKPOINT = flags.DEFINE_multi_string(
    "checkpoint",
    None,
    "A directory in the Hugging Face layout, or RUN/checkpoints/STAGE; may be given several times.",
    required=True,
)
_RUNS = flags.DEFINE_string("runs", "", "Directory of runs, to look into their rollouts and to compare their stages.")
_DATA = flags.DEFINE_string("data", "", "Directory of shards, or of clips with a manifest, or of several of these.")
_FEATURES = flags.DEFINE_string("features", "", "Directory that holds features/<model>-UTT|-FRA/<id>.npy.")
_DTYPE = flags.DEFINE_enum("dtype", None, DTYPES, "Of weights and matrix products; as stored where not given.")
_HOST = flags.DEFINE_string("host", LOOPBACK, "Address to listen on; whoever reaches it may use the page.")
_PORT = flags.DEFINE_integer("port", 7860, "Port to listen on.", lower_bound=1, upper_bound=65_535)
local_paths("checkpoint", "runs", "data", "features")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    for number in (signal.SIGTERM, signal.SIGHUP):  # uploads are deleted whoever ends the page
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        check_port(_HOST.value, _PORT.value)
        runs, data = (_directory(flag) for flag in (_RUNS, _DATA))
        features = Path(_FEATURES.value) if _FEATURES.value else None
        checkpoints = _named(_CHECKPOINT.value)
        site, first = Site(checkpoints, runs, data, _DTYPE.value, features), next(iter(checkpoints))
        site.models[first]  # what cannot be opened is said here, not on the page
        site.warm_up(first)
        with serving(site, _HOST.value, _PORT.value) as address:
            print(f"open {address} (Ctrl-C ends it)", flush=True)
            threading.Event().wait()
    except USER_ERRORS as error:
        sys.exit(error_message(error))


def _named(checkpoints: list[str]) -> dict[str, Path]:
    """Checkpoints by the end of their paths (RUN/checkpoints/STAGE), or, where two end alike, by all of it."""
    ends = [str(Path(*Path(name).parts[-3:])) for name in checkpoints]
    return {end if ends.count(end) == 1 else name: Path(name) for end, name in zip(ends, checkpoints)}


def _directory(flag) -> Path | None:
    if flag.value and not Path(flag.value).is_dir():
        raise ConfigError(f"--{flag.name}: no such directory: {flag.value}")
    return Path(flag.value) if flag.value else None


if __name__ == "__main__":
    run(main)
