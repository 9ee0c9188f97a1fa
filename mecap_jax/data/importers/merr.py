"""Importer for MERR, explained emotions of MER2023's clips (Emotion-LLaMA, arXiv 2406.11161).

Reads `MERR_fine_grained.json`, an object: name -> `smp_reason_caption` (the rationale), `pseu_emotion` and `text` (what
is said), or else `MERR_coarse_grained.json`: name -> `caption` (the rationale), whose labels stand in
`MERR_coarse_grained.txt` beside it, the third word of "name ... label". The videos come from MER2023 and are found by
name anywhere in the directory. There are no official splits: clips are divided by a hash, 80 / 10 / 10, since nobody
knows who speaks.
"""

from __future__ import annotations

from pathlib import Path

from mecap_jax.data.importers import ImporterError, ImportSettings
from mecap_jax.data.importers.corpus import Entry, checked_label, entry, find_by_stem
from mecap_jax.json_files import read_json_object
from mecap_jax.text_files import read_lines

LABELS = ("neutral", "angry", "happy", "sad", "worried", "surprise", "fear", "contempt", "doubt")
_LARGEST = 1 << 28  # bytes
_FINE, _COARSE = "MERR_fine_grained.json", "MERR_coarse_grained.json"


def rows(input: Path, settings: ImportSettings) -> list[Entry]:
    """Returns one row a rationale.

    Raises:
      ImporterError: neither file is there, it is no JSON, or a clip is there twice.
    """
    path = next((input / name for name in (_FINE, _COARSE) if (input / name).is_file()), None)
    if path is None:
        raise ImporterError(f"{input} lacks {_FINE} (or {_COARSE})")
    try:
        described = read_json_object(path, _LARGEST, unique=True)
    except ValueError as error:
        raise ImporterError(str(error)) from error
    listed = path.with_suffix(".txt")
    words = [line.split() for line in read_lines(listed)] if listed.is_file() else []
    labels = {parts[0]: parts[2] for parts in words if len(parts) > 2}
    clips = find_by_stem(input, (".mp4", ".avi"), settings.allow_outside)

    def row(name: str) -> dict:
        known = described[name]
        if not isinstance(known, dict):
            raise ValueError(f"expected an object, got {known!r:.80}")
        rationale = known.get("smp_reason_caption", known.get("caption"))
        if not isinstance(rationale, str) or not rationale.strip():
            raise ValueError("it holds no rationale")
        if name not in clips:
            raise ValueError(f"no such clip: {name!r}")
        return {
            "id": f"merr_{name}",
            "dataset": "merr",
            "video": str(clips[name]),
            "transcript": known.get("text"),
            "language": "zh",  # of MER2023's films and shows
            "label": checked_label(known.get("pseu_emotion", labels.get(name)), LABELS, settings),
            "rationale": rationale.strip(),
        }

    return [entry(f"{path.name}, {name!r}", lambda name=name: row(name)) for name in described]
