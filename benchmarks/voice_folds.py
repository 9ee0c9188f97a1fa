"""Captions of real voices that nobody trained on, in five folds by speaker, beside a linear probe of the same features.

  python benchmarks/voice_folds.py --shards=DIR --output=DIR [--face=FILE.csv]

The shards are those of `prepare_data.py --captions=plain_prosody` with features of Whisper-base. The speakers of each
corpus are dealt into folds; for each fold `configs/real_voices.py` trains on the clips of the others and captions its
own. Features are normalised by speaker (z-scores over the clips of a person, no labels: it takes several clips of a new
one) or by the training clips of the fold. The face is a table of one row a clip, normalised likewise; clips without one
have 0 there, the mean. The same command resumes. The table goes to stdout and, with what every clip was taken for, to
OUTPUT.
"""

import itertools
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from mecap_jax.interruption import Interrupted, answer_signals

if __name__ == "__main__":  # before the imports that take seconds
    answer_signals(dict.fromkeys((signal.SIGTERM, signal.SIGINT), Interrupted.STATUS))

import numpy as np
from absl import app, flags, logging

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.speaker_folds import PROBE, Clips, FoldsError, deal, features, probe, read_clips, read_said, table
from mecap_jax.command_line import local_paths, start
from mecap_jax.config import load
from mecap_jax.data.importers import prepare
from mecap_jax.experiment import story
from mecap_jax.experiment.feature_normalisation import SPEAKER, TRAIN
from mecap_jax.experiment.setup import USER_ERRORS
from mecap_jax.json_files import to_json, write_json
from mecap_jax.text_files import error_message
from mecap_jax.training.stopping import StopSignal

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "real_voices.py"
VARIANTS = (SPEAKER, TRAIN, f"{SPEAKER},face", f"{TRAIN},face")

_SHARDS = flags.DEFINE_string("shards", None, "Directory of shards.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Directory of the folds, their runs and what was found.", required=True)
_FEATURE = flags.DEFINE_string("feature", "whisper-base-UTT", "The voice's features in the shards.")
_FACE = flags.DEFINE_string(
    "face", "", "CSV of faces, a name before numbers; the attribute visual_features names rows."
)
_FOLDS = flags.DEFINE_integer("folds", 5, "How many.", lower_bound=2)
_VARIANTS = flags.DEFINE_multi_enum("variant", [SPEAKER], VARIANTS, "How features are normalised; with a face or not.")
_ROWS = flags.DEFINE_list("rows", [], "Rows of comparison of the recipe.")
_CHANGES = flags.DEFINE_multi_string("change", [], "KEY=VALUE over the recipe, for every fold.")
local_paths("shards", "output", "face")


def run_fold(
    clips: Clips, variant: str, tested: np.ndarray, output: Path, should_stop: Callable[[int], bool]
) -> dict[str, list[str | None]]:
    """What each system takes the tested clips for, by its name; trains what is not there yet."""
    found = features(clips, variant, ~tested)
    raw = output / "raw"
    for name, vectors in found.items():
        (raw / "features" / name).mkdir(parents=True, exist_ok=True)
        for row, vector in zip(clips.rows, vectors):
            np.save(raw / "features" / name / f"{row['id']}.npy", vector, allow_pickle=False)
    rows = [row | {"split": "test" if test else "train"} for row, test in zip(clips.rows, tested)]
    (raw / "manifest.jsonl").write_text("".join(to_json(row) + "\n" for row in rows), encoding="utf-8")
    prepare("folder", raw, output / "shards", progress=False)
    shutil.rmtree(raw)
    settings = [f"data.path={output / 'shards'}", f"evaluation.rows={','.join(_ROWS.value)}", *_CHANGES.value]
    config = load(f"{RECIPE}:{variant}", settings)
    story.run(config, output / "run", should_stop)
    said = {PROBE: probe(clips, np.concatenate(list(found.values()), axis=1), tested)}
    stages = (*(name for name in ("sft", "grpo") if getattr(config, name)), *config.evaluation.rows)
    for stage in stages:
        said[stage] = read_said(
            output / "run" / "evaluations" / f"{stage}.predictions.jsonl", clips.column("id")[tested]
        )
    return said


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if not _FACE.value and any(variant.endswith(",face") for variant in _VARIANTS.value):
        raise app.UsageError("--variant with a face needs --face")
    logging.set_verbosity(logging.WARNING)
    try:
        load(f"{RECIPE}:{SPEAKER}", [*_CHANGES.value, f"evaluation.rows={','.join(_ROWS.value)}"])
        with StopSignal() as should_stop:
            _run(Path(_OUTPUT.value), should_stop)
    except (*USER_ERRORS, FoldsError, OSError) as error:
        sys.exit(error_message(error))
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(Interrupted.STATUS)


def _run(output: Path, should_stop: Callable[[int], bool]) -> None:
    clips = read_clips(Path(_SHARDS.value), _FEATURE.value, Path(_FACE.value) if _FACE.value else None)
    speakers = [(row["dataset"], row["speaker"]) for row in clips.rows]
    dealt = deal(speakers, _FOLDS.value)
    numbers = np.array([dealt[speaker] for speaker in speakers])
    for variant in dict.fromkeys(_VARIANTS.value):
        place = output / variant.replace(",", "-")
        rows, said = [], {}
        for fold in range(_FOLDS.value):
            tested = numbers == fold
            for name, words in run_fold(clips, variant, tested, place / f"fold-{fold}", should_stop).items():
                said.setdefault(name, []).extend(words)
            rows += itertools.compress(clips.rows, tested)
        ids = [row["id"] for row in rows]
        write_json(place / "said.json", {name: dict(zip(ids, words, strict=True)) for name, words in said.items()})
        lines = table(rows, said)
        (place / "table.md").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        print(f"{variant}, {_FOLDS.value} folds:", *lines, sep="\n", flush=True)


if __name__ == "__main__":
    start(main)
