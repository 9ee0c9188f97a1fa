"""Importer for MAFW, clips of films and shows with eleven emotions (Liu et al. 2022).

Reads `data/clips/00001.mp4` (clips are found by name anywhere in the directory) and the folds of the single-label set,
`Train & Test Set/single/no_caption/set_N/{train,test}.txt`, a clip and its label a line. The fold is `--fold`; ERV
tests on the fifth. There is no validation split, and nobody knows who speaks: every clip counts as a speaker of its
own. The bilingual descriptions and the compound labels are not read, because their files' layout is not documented.
"""

from __future__ import annotations

from pathlib import Path

from mecap_jax.data.importers import ImporterError, ImportSettings
from mecap_jax.data.importers.corpus import Entry, checked_label, entry, find_by_stem
from mecap_jax.text_files import read_lines

LABELS = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise", "contempt", "anxiety",
          "helplessness", "disappointment")  # fmt: skip
SPLITS = ("train", "test")


def rows(input: Path, settings: ImportSettings) -> list[Entry]:
    """Returns one row a line of the fold's two lists.

    Raises:
      ImporterError: no lists of that fold, or a clip is there twice.
    """
    lists = f"single/no_caption/set_{settings.fold}"
    found = [path for path in input.glob(f"*/{lists}") if path.is_dir()]
    missing = [f"{split}.txt" for split in SPLITS if len(found) != 1 or not (found[0] / f"{split}.txt").is_file()]
    if missing:
        raise ImporterError(f"{input} lacks {', '.join(f'Train & Test Set/{lists}/{name}' for name in missing)}")
    clips = find_by_stem(input, (".mp4", ".avi"), settings.allow_outside)

    def row(line: str, split: str) -> dict:
        name, _, label = line.strip().partition(" ")
        if (stem := Path(name).stem) not in clips:
            raise ValueError(f"no such clip: {name!r}")
        label = checked_label(label, LABELS, settings)
        return {"id": f"mafw_{stem}", "dataset": "mafw", "split": split, "video": str(clips[stem]), "label": label}

    return [
        entry(f"{split}.txt, line {number}", lambda line=line, split=split: row(line, split))
        for split in SPLITS
        for number, line in enumerate(read_lines(found[0] / f"{split}.txt"), start=1)
        if line.strip()
    ]
