"""Captions for media files: `python scripts/caption.py --checkpoint=DIR CLIP...`

A CLIP is a wav, flac, ogg, opus, mp3, aac, m4a, mp4, mkv, webm or avi file, a directory of such files, or with
--features the id of precomputed features. Captions go to stdout as they are made; the exit status is 1 where a clip
could not be captioned.
"""

import signal
import sys
from collections import Counter
from pathlib import Path

from mecap_jax.interruption import answer_signals

if __name__ == "__main__":  # before the imports that take seconds
    answer_signals({signal.SIGINT: 130})

import jax
from absl import app, flags, logging

from mecap_jax.captioner import DTYPES, Captioner
from mecap_jax.captioning import as_differences, as_error, as_json, as_lines, as_note, caption_clips, find_requests
from mecap_jax.command_line import local_paths, run
from mecap_jax.data.stretches import LONG
from mecap_jax.experiment.setup import USER_ERRORS
from mecap_jax.text_files import decode_text, error_message, split_lines
from mecap_jax.training.logging import RunLogger

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A directory in the Hugging Face layout, or RUN/checkpoints/STAGE.", required=True
)
_ADAPTER = flags.DEFINE_string("adapter", "", "A directory in PEFT's layout whose adapter is merged into the weights.")
_DTYPE = flags.DEFINE_enum("dtype", None, DTYPES, "Of weights and matrix products; as stored where not given.")
_LIST = flags.DEFINE_string("list", "", "File with more clips, one a line (-: stdin); what is said follows a tab.")
_FEATURES = flags.DEFINE_string("features", "", "Directory that holds features/<model>-UTT|-FRA/<id>.npy.")
_INSTRUCTION = flags.DEFINE_string("instruction", "", "The request in the prompt; empty: the one that was trained.")
_BATCH = flags.DEFINE_integer("batch", 8, "Clips at once.", lower_bound=1)
_SAMPLES = flags.DEFINE_integer("samples", 1, "Captions of each clip.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float(
    "temperature", None, "Randomness; 0 takes the likeliest words. 0, or 1 with several samples.", lower_bound=0
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", None, "Longest caption; as trained where not given.", lower_bound=1
)
_LONG = flags.DEFINE_enum(
    "long",
    "trim",
    LONG,
    "Clips longer than those of training: caption the loudest stretch, windows that cover the clip, or refuse them.",
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the samples.")
_JSON = flags.DEFINE_bool("json", False, "JSON Lines with log-probabilities, errors included.")
local_paths("checkpoint", "adapter", "list", "features")


def main(argv: list[str]) -> int:
    if len(argv) == 1 and not _LIST.value:
        raise app.UsageError("name the clips to caption, or a --list of them")
    logging.set_verbosity(logging.WARNING)
    temperature = float(_SAMPLES.value > 1) if _TEMPERATURE.value is None else _TEMPERATURE.value
    try:
        lines = _read_list(_LIST.value) if _LIST.value else ()
        with RunLogger(None) as logger:
            captioner = Captioner.from_pretrained(_CHECKPOINT.value, dtype=_DTYPE.value, adapter=_ADAPTER.value or None)
            requests = find_requests(argv[1:], lines, ids=captioner.data.modalities == ("features",))
            answers = caption_clips(
                captioner,
                requests,
                instruction=_INSTRUCTION.value,
                features=Path(_FEATURES.value) if _FEATURES.value else None,
                batch=_BATCH.value,
                samples=_SAMPLES.value,
                temperature=temperature,
                max_new_tokens=_MAX_NEW_TOKENS.value,
                seed=_SEED.value,
                long=_LONG.value,
            )
            return _print(answers, len(requests), logger)
    except USER_ERRORS as error:
        sys.exit(error_message(error))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sys.exit(f"error: the device's memory is not enough for --batch={_BATCH.value}: {str(error).splitlines()[0]}")


def _read_list(name: str) -> list[str]:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return split_lines(decode_text(data))
    except OSError as error:
        sys.exit(f"error: --list={name}: {error}")


def _print(answers, total: int, logger: RunLogger) -> int:
    """Prints answers as they come; the exit status."""
    stdout, failed = sys.stdout, 0  # a live bar puts something else in its place
    differs = Counter()

    def put(line: str) -> None:
        if stdout.isatty() and sys.stderr.isatty():
            logger.say(line)  # above the bar
        else:
            print(line, file=stdout, flush=True)

    with logger.progress("captions", total) as progress:
        for done, answer in enumerate(answers, start=1):
            for line in (as_json if _JSON.value else as_lines)(answer):
                put(line)
            if answer.error:
                failed = 1
                logger.say(as_error(answer))
            if answer.note and not _JSON.value:
                logger.say(as_note(answer))
            differs.update(answer.differs)
            progress(done, {})
    for line in as_differences(differs, total):
        logger.say(line)
    return failed


if __name__ == "__main__":
    run(main)
