"""Importer for DFEW, clips of films with seven emotions (Jiang et al. 2020).

Reads the folds `EmoLabel_DataSplit/{train,test}(single-labeled)/set_N.csv`, or else `single_{train,test}set_N.csv`
anywhere, as ERV reads them: the first column is the name of a clip (a number), the second its label (1 to 7). The fold
is `--fold`; ERV tests on the fifth. Videos are found by their number anywhere in the directory ("00012.mp4" or
"12.mp4"), because the archives' parts are unpacked in different ways; the releases that hold pictures instead of videos
are not read. There is no validation split, and every clip counts as a speaker of its own.
"""

from __future__ import annotations

from pathlib import Path

from mecap_jax.data.importers import ImporterError, ImportSettings, tables
from mecap_jax.data.importers.corpus import Entry, entry, find_by_stem, require

LABELS = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")  # 1 to 7
SPLITS = ("train", "test")


def rows(input: Path, settings: ImportSettings) -> list[Entry]:
    """Returns one row a line of the fold's two tables.

    Raises:
      ImporterError: no tables of that fold, or a clip is there twice.
    """
    paths = [next(iter(sorted(input.rglob(f"single_{split}set_{settings.fold}.csv"))), None) for split in SPLITS]
    official = [f"EmoLabel_DataSplit/{split}(single-labeled)/set_{settings.fold}.csv" for split in SPLITS]
    if None in paths or any((input / name).is_file() for name in official):
        paths = require(input, *official)
    found = find_by_stem(input, (".mp4", ".avi"), settings.allow_outside)
    clips: dict[int, Path] = {}
    for stem, path in found.items():
        if stem.isascii() and stem.isdigit() and clips.setdefault(int(stem), path) is not path:
            raise ImporterError(f"{input} holds clip {int(stem)} twice: {clips[int(stem)]} and {path}")

    def row(line: dict | ValueError, split: str) -> dict:
        if isinstance(line, ValueError):
            raise line
        name, label = [*line.values(), "", ""][:2]
        if not (name.isascii() and name.isdigit()):
            raise ValueError(f"the name of a clip must be a number, got {name!r:.80}")
        if label not in map(str, range(1, 8)):
            raise ValueError(f"a label must be 1 to 7, got {label!r:.80}")
        if int(name) not in clips:
            raise ValueError(f"no such clip: {name!r}")
        clip, label = str(clips[int(name)]), LABELS[int(label) - 1]
        return {"id": f"dfew_{int(name):05d}", "dataset": "dfew", "split": split, "video": clip, "label": label}

    return [
        entry(f"{path.parent.name}/{path.name}, line {number}", lambda line=line, split=split: row(line, split))
        for split, path in zip(SPLITS, paths, strict=True)
        for number, line in tables.read_table(path)
    ]
