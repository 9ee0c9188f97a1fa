"""Turns raw files into shards: `python scripts/prepare_data.py --source=NAME --input=DIR --output=DIR`."""

import dataclasses
import shlex
import signal
import sys

from mecap_jax.interruption import answer_signals

if __name__ == "__main__":  # before the imports that take seconds
    answer_signals({signal.SIGINT: 130})

from absl import app, flags

from mecap_jax.command_line import local_paths, run
from mecap_jax.config import ConfigError, SyntheticConfig
from mecap_jax.data.importers import CAPTIONS, FOLD, IMPORTERS, ImporterError, check_counts, prepare
from mecap_jax.data.media import MAX_SECONDS
from mecap_jax.data.shards import ShardError
from mecap_jax.text_files import error_message

_SOURCE = flags.DEFINE_enum("source", None, list(IMPORTERS), "What the input is.", required=True)
_INPUT = flags.DEFINE_string("input", None, "Directory of raw files; the synthetic corpus has none.")
_OUTPUT = flags.DEFINE_string("output", None, "Directory of shards to make.", required=True)
_MAX_BAD_FRACTION = flags.DEFINE_float(
    "max_bad_fraction", 0.02, "Fail when more than this share of the clips is bad.", lower_bound=0, upper_bound=1
)
_MAX_SECONDS = flags.DEFINE_float("max_seconds", MAX_SECONDS, "Longer clips are bad.", lower_bound=0)
_ALLOW_OUTSIDE = flags.DEFINE_bool("allow_outside", False, "Follow absolute paths and links out of the input.")
_LABEL_MAP = flags.DEFINE_string("label_map", None, "JSON or CSV file: raw label -> the label that stands for it.")
_CAPTIONS = flags.DEFINE_enum(
    "captions", "own", list(CAPTIONS), "Whether clips without captions get some, made from labels, or also from voices."
)
_FOLD = flags.DEFINE_integer("fold", FOLD, "Official fold of MAFW and DFEW; ERV tests on the fifth.", 1, 5)
_VERIFY = flags.DEFINE_bool("verify", False, "Compare the counts with the corpus's official ones; fail if they differ.")
_RUNNER = flags.DEFINE_string(
    "runner", None, "Runner of Apache Beam that reads the clips, such as DirectRunner; by default they are read here."
)
_BEAM_OPTIONS = flags.DEFINE_multi_string("beam_option", [], "An option of that runner: direct_num_workers=4.")

_DEFINE = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    list: flags.DEFINE_list,
}
_SYNTHETIC = {}
for _name, _default in dataclasses.asdict(SyntheticConfig()).items():
    _default = list(_default) if isinstance(_default, tuple) else _default
    _SYNTHETIC[_name] = _DEFINE[type(_default)](f"synthetic.{_name}", _default, f"SyntheticConfig.{_name}.")
local_paths("input", "output", "label_map")


def main(argv: list[str]) -> int | None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    values = {name: flag.value for name, flag in _SYNTHETIC.items()}
    synthetic = SyntheticConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    try:
        manifest = prepare(
            _SOURCE.value,
            _INPUT.value,
            _OUTPUT.value,
            synthetic,
            command=shlex.join(["python", *sys.argv]),
            max_seconds=_MAX_SECONDS.value,
            max_bad_fraction=_MAX_BAD_FRACTION.value,
            allow_outside=_ALLOW_OUTSIDE.value,
            label_map=_LABEL_MAP.value,
            captions=_CAPTIONS.value,
            fold=_FOLD.value,
            runner=_RUNNER.value,
            beam_options=_BEAM_OPTIONS.value,
        )
        if _VERIFY.value:
            if problems := check_counts(_SOURCE.value, manifest):
                raise ImporterError("\n".join([f"{_OUTPUT.value} is not the whole corpus:", *problems]))
            print("the counts are the official ones", file=sys.stderr)
    except (ConfigError, ImporterError, ShardError, OSError) as error:
        sys.exit(error_message(error))
    except KeyboardInterrupt:
        print("error: interrupted, nothing was written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    run(main)
