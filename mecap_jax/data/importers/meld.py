"""Importer for MELD, utterances of the series "Friends" (arXiv 1810.02508), as MELD.Raw unpacks.

Reads `{train,dev,test}_sent_emo.csv` and the directories `train_splits`, `dev_splits_complete` and
`output_repeated_splits_test` with `dia0_utt0.mp4`, each at the top or in `train`, `dev` and `test`. Names such as
`final_videos_testdia0_utt0.mp4` in the last one are other cuts, and are not read. Splits are the official ones; the six
main characters speak in all of them. One clip of train (dia125_utt3) is known to be damaged, and will be left out.
"""

from __future__ import annotations

from pathlib import Path

from mecap_jax.data.importers import ImporterError, ImportSettings, tables
from mecap_jax.data.importers.corpus import Entry, checked_label, entry

LABELS = ("neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear")
OFFICIAL = {"train": {"clips": 9989}, "validation": {"clips": 1109}, "test": {"clips": 2610}}
_PARTS = {"train": ("train", "train_splits"), "validation": ("dev", "dev_splits_complete"),
          "test": ("test", "output_repeated_splits_test")}  # fmt: skip


def rows(input: Path, settings: ImportSettings) -> list[Entry]:
    """Returns one row a line of the three tables.

    Raises:
      ImporterError: names the tables and directories that are missing.
    """
    places, missing = {}, []
    for split, (part, folder) in _PARTS.items():
        for name in (f"{part}_sent_emo.csv", folder):
            place = next((path for path in (Path(name), Path(part, name)) if (input / path).exists()), None)
            places.setdefault(split, []).append(place)
            missing += [name] if place is None else []
    if missing:
        raise ImporterError(f"{input} lacks {', '.join(missing)}")

    def row(line: dict | ValueError, split: str, folder: Path) -> dict:
        if isinstance(line, ValueError):
            raise line
        dialogue, utterance = (line.get(key, "") for key in ("Dialogue_ID", "Utterance_ID"))
        if not all(number.isascii() and number.isdigit() for number in (dialogue, utterance)):
            raise ValueError(f"'Dialogue_ID' and 'Utterance_ID' must be numbers, got {dialogue!r} and {utterance!r}")
        clip = f"dia{int(dialogue)}_utt{int(utterance)}"
        return {
            "id": f"meld_{_PARTS[split][0]}_{clip}",
            "dataset": "meld",
            "split": split,
            "speaker": line.get("Speaker"),
            "dialogue": f"{_PARTS[split][0]}_{int(dialogue)}",
            "video": str(folder / f"{clip}.mp4"),
            "transcript": line.get("Utterance"),
            "label": checked_label(line.get("Emotion"), LABELS, settings),
            "attributes": {"sentiment": line.get("Sentiment")},
        }

    return [
        entry(f"{table.name}, line {number}", lambda line=line, split=split, folder=folder: row(line, split, folder))
        for split, (table, folder) in places.items()
        for number, line in tables.read_table(input / table)
    ]
