"""Features of clips by a frozen encoder: `python scripts/extract_features.py --encoder=DIR --input=DIR`

The encoder is a Hugging Face directory of Whisper, wav2vec 2.0, HuBERT (of sound), CLIP or SigLIP (of pictures). Clips
come from raw files (`--source` says of which corpus, as in prepare_data.py) or from shards (`--data`). Features go to
INPUT/features/<name>-FRA|-UTT/<id>.npy, where prepare_data.py finds them; what is there of the same media is not made
again. The exit status is 1 where a clip has none.
"""

import functools
import signal
import sys
from pathlib import Path

from mecap_jax.interruption import answer_signals

if __name__ == "__main__":  # before the imports that take seconds
    answer_signals({signal.SIGINT: 130})

from absl import app, flags, logging

from mecap_jax.command_line import local_paths, run
from mecap_jax.data.importers import IMPORTERS, Pending, open_source
from mecap_jax.data.importers.feature_files import DIRECTORY
from mecap_jax.data.shards import ShardReader
from mecap_jax.data.utterance import Utterance, UtteranceError
from mecap_jax.experiment.feature_extraction import (
    FRAMES,
    UTTERANCE,
    Extraction,
    check_name,
    extract,
    lock_file,
    open_output,
    refuse_links,
    summarise,
)
from mecap_jax.experiment.frozen_encoder import ALL, LAST_FOUR, POOLED, EncoderError, load_encoder
from mecap_jax.experiment.setup import USER_ERRORS
from mecap_jax.locking import locked
from mecap_jax.text_files import error_message, printable
from mecap_jax.training.logging import RunLogger

_ENCODER = flags.DEFINE_string("encoder", None, "Hugging Face directory of the encoder.", required=True)
_INPUT = flags.DEFINE_string("input", "", "Directory of raw files.")
_SOURCE = flags.DEFINE_enum("source", "folder", [x for x in IMPORTERS if x != "synthetic"], "What the input is.")
_ALLOW_OUTSIDE = flags.DEFINE_bool(
    "allow_outside", False, "Follow absolute paths and links out of the input or output."
)
_DATA = flags.DEFINE_string("data", "", "Directory of shards, instead of raw files.")
_OUTPUT = flags.DEFINE_string("output", "", "Where the directories of features go; by default INPUT/features.")
_NAME = flags.DEFINE_string("name", "", "Of the features; by default the name of the encoder's directory.")
_LAYER = flags.DEFINE_string(
    "layer", "", f"A layer's number (0: its input, -1: the last), {LAST_FOUR} (the sum of four; default for sound), "
    f"{ALL} (side by side, for model.features.layers) or {POOLED} (one vector a picture; default for pictures)."
)  # fmt: skip
_KINDS = flags.DEFINE_multi_enum("kind", [FRAMES, UTTERANCE], [FRAMES, UTTERANCE], "Every state, or their mean.")
_FPS = flags.DEFINE_float("fps", 2.0, "Pictures a second; 0: --max_frames of every clip.", lower_bound=0)
_MAX_FRAMES = flags.DEFINE_integer("max_frames", 64, "Most pictures of a clip.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 8, "Pieces at once.", lower_bound=1)
local_paths("encoder", "input", "data", "output")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if bool(_INPUT.value) == bool(_DATA.value):
        raise app.UsageError("name --input or --data")
    if _DATA.value and not _OUTPUT.value:
        raise app.UsageError("--data: shards stay as they are, so name an --output")
    logging.set_verbosity(logging.WARNING)
    try:
        return _extract()
    except (*USER_ERRORS, EncoderError, OSError) as error:
        sys.exit(error_message(error))


def _extract() -> int:
    encoder = load_encoder(_ENCODER.value)
    default = LAST_FOUR if encoder.modality == "audio" else POOLED
    extraction = Extraction(
        layer=_layer(_LAYER.value or default),
        kinds=tuple(dict.fromkeys(_KINDS.value)),
        fps=_FPS.value,
        max_frames=_MAX_FRAMES.value,
        batch=_BATCH.value,
    )
    encoder.check(extraction.layer)
    clips = _clips()
    output = Path(_OUTPUT.value) if _OUTPUT.value else Path(_INPUT.value) / DIRECTORY
    name, found = _NAME.value or encoder.name, []
    check_name(name)
    if not _ALLOW_OUTSIDE.value:
        refuse_links(output if _OUTPUT.value else Path(_INPUT.value), output, name)
    with locked(lock_file(output, name), f"{output / name}"), RunLogger(None) as logger:
        directories = open_output(output, name, encoder, extraction)
        with logger.progress(f"features by {printable(encoder.name)}", len(clips)) as progress:
            for clip in extract(clips, encoder, extraction, directories):
                found.append(clip)
                if clip.problem:
                    logger.say(f"{printable(clip.id)}: {printable(clip.problem)}")
                progress(len(found), {})
        places = " and ".join(printable(str(path)) for path in directories.values())
        logger.say(f"{places}: {summarise(found)}")
    return int(any(clip.problem for clip in found))


def _layer(text: str) -> int | str:
    return int(text) if text.removeprefix("-").isdecimal() else text


def _clips() -> list[Pending]:
    if _INPUT.value:
        return open_source(_SOURCE.value, Path(_INPUT.value), _ALLOW_OUTSIDE.value)
    reader = ShardReader(Path(_DATA.value))

    def read(number: int) -> Utterance:
        try:
            return reader[number]
        except UtteranceError as error:
            sys.exit(f"error: {reader.directory}: {error}")

    return [functools.partial(read, number) for number in range(len(reader))]


if __name__ == "__main__":
    run(main)
