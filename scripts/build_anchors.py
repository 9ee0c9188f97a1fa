"""Precomputes the emotion anchors of a sentence encoder.

  python scripts/build_anchors.py --data=SHARDS --output=anchors.safetensors
  python scripts/build_anchors.py --encoder=DIR --templates --output=anchors.safetensors

Anchors come from the train captions in the shards or, with --templates, from fixed phrases. With --templates and
--data the shards give the labels and the mean of the texts.
"""

import signal
import sys
from pathlib import Path

from mecap_jax.interruption import answer_signals

if __name__ == "__main__":  # before the imports that take seconds
    answer_signals({signal.SIGINT: 130})

from absl import app, flags

from mecap_jax.command_line import local_paths, run
from mecap_jax.data.shards import ShardReader
from mecap_jax.data.utterance import CAPTION_KINDS, SPLITS
from mecap_jax.emotions import EMOTIONS
from mecap_jax.experiment.setup import USER_ERRORS
from mecap_jax.experiment.workdir import check_output
from mecap_jax.models.sentence_encoder import load_sentence_encoder
from mecap_jax.rewards.anchors import Anchors, build_anchors, captions_by_label
from mecap_jax.rewards.templates import template_sentences
from mecap_jax.text_files import error_message

_ENCODER = flags.DEFINE_string(
    "encoder", "", "sentence encoder, a directory in the sentence-transformers layout; empty: all-MiniLM-L6-v2"
)
_OUTPUT = flags.DEFINE_string("output", None, "anchors file to write (safetensors)", required=True)
_DATA = flags.DEFINE_string("data", "", "directory of shards")
_SPLIT = flags.DEFINE_enum("split", "train", SPLITS, "split whose captions are read")
_TARGET = flags.DEFINE_enum("target", "overall", CAPTION_KINDS, "kind of captions")
_TEMPLATES = flags.DEFINE_bool("templates", False, "anchors from template phrases")
local_paths("encoder", "output", "data")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    if not _DATA.value and not _TEMPLATES.value:
        raise app.UsageError("--data is needed for anchors from captions; --templates does without")
    try:
        check_output(Path(_OUTPUT.value))
        anchors = _anchors()
    except USER_ERRORS as error:
        sys.exit(error_message(error))
    anchors.save(_OUTPUT.value)
    counts = ", ".join(f"{label} {count}" for label, count in zip(anchors.labels, anchors.counts))
    print(f"{_OUTPUT.value}: {anchors.kind} anchors of {anchors.encoder} ({counts})")


def _anchors() -> Anchors:
    captions, source = {}, ""
    if _DATA.value:
        reader = ShardReader(_DATA.value)
        captions = captions_by_label(reader.index, _SPLIT.value, _TARGET.value)
        identity = f"{Path(_DATA.value).resolve().name} (index sha256 {reader.manifest['index']['sha256']})"
        source = f"captions of kind {_TARGET.value!r} in split {_SPLIT.value!r} of {identity}"
        if not captions:
            raise app.UsageError(f"no labelled clip with a caption: {source}")
    encoder = load_sentence_encoder(_ENCODER.value)
    if _TEMPLATES.value:
        return build_anchors(
            encoder,
            template_sentences(tuple(captions) or EMOTIONS),
            kind="templates",
            source=f"template phrases; text mean: {source or 'the phrases'}",
            texts=[text for group in captions.values() for text in group],
        )
    return build_anchors(encoder, captions, kind="captions", source=source)


if __name__ == "__main__":
    run(main)
