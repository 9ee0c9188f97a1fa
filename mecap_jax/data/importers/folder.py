"""Importer for a folder of your own clips, described by a `manifest.jsonl`.

The input directory holds `manifest.jsonl`, UTF-8, one JSON object a line. All paths are relative to the directory.

| key | value | default |
|---|---|---|
| `id` | unique string | stem of the audio, else of the video file |
| `audio` | wav, flac, ogg or mp3 file | |
| `video` | mp4, mov, mkv or webm file; its sound track is the audio where `audio` is absent | |
| `features` | object: name -> `.npy` file, floats `[frames, dim]` or `[dim]` | `features/NAME/<id>.npy`, see below |
| `split` | "train", "validation" ("val", "dev") or "test" | assigned by speaker, see below |
| `speaker` | string | the id: every clip counts as a speaker of its own |
| `dialogue` | string | |
| `transcript` | string | "" |
| `language` | BCP-47 code of the speech | "en" |
| `label` or `emotion` | emotion of the whole clip, e.g. "happy", "Anger" | |
| `labels` | object: "text", "audio", "video", "multimodal" -> emotion | |
| `valence` | number in [-2, 2] | |
| `captions` or `caption` | string or list of strings (kind "overall"), or object: kind -> string or list; kinds are "emotion", "style", "speaker", "overall" | |
| `rationale` | string | |
| `attributes` | object: name -> string, e.g. gender, intensity; `caption_language`, the captions' BCP-47 code, is otherwise told from their script ("zh" or "en") | |
| `dataset` | string | "folder" |
| `licence` | string | "" |

A row needs audio, video, features or a transcript. A row with an unknown key, a bad value, a missing file or a path out
of the directory is reported as a bad clip with its line number. When no row has a split, speakers are ordered by a hash
of their names and divided 80 / 10 / 10 (at least one each for validation and test where there are three or more).

Precomputed features in EmotionTalk's layout need not be named: `features/<model>-UTT/<id>.npy` (one vector a clip) and
`features/<model>-FRA/<id>.npy` (one a frame) are taken under the name of their directory.
"""  # noqa: E501 - a table

from __future__ import annotations

import difflib
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mecap_jax.config import SyntheticConfig
from mecap_jax.data.importers import BadClip, ImporterError, read_clip
from mecap_jax.data.importers.feature_files import find_features, read_features
from mecap_jax.data.utterance import CAPTION_KINDS, MODALITIES, SPLITS, Utterance
from mecap_jax.emotions import canonical_label

MANIFEST = "manifest.jsonl"
_KEYS = (
    "id", "audio", "video", "features", "split", "speaker", "dialogue", "transcript", "language", "label", "emotion",
    "labels", "valence", "caption", "captions", "rationale", "attributes", "dataset", "licence",
)  # fmt: skip
_TEXT_KEYS = ("id", "audio", "video", "split", "speaker", "dialogue", "transcript", "language", "label", "emotion",
              "rationale", "dataset", "licence")  # fmt: skip
_SPLIT_ALIASES = {"val": "validation", "dev": "validation"}


def read(input: Path, synthetic: SyntheticConfig | None = None) -> Iterator[Utterance | BadClip]:
    """Yields the utterances of a folder, in the order of its manifest.

    Raises:
      ImporterError: no manifest, or one that is not JSON Lines (names the line).
    """
    rows = _read_rows(input)
    splits = None
    if not any(isinstance(row, dict) and "split" in row for _, row in rows):
        speakers = {_speaker(row) for _, row in rows if isinstance(row, dict)}
        splits = _assign_splits(speakers)
        sizes = ", ".join(f"{sum(s == split for s in splits.values())} {split}" for split in SPLITS)
        print(f"{input / MANIFEST} names no splits: speakers are divided by a hash ({sizes})", file=sys.stderr)
    for number, row in rows:
        try:
            yield _utterance(input, row, splits)
        except ValueError as error:
            name = _id(row) if isinstance(row, dict) else None
            yield BadClip(name if isinstance(name, str) and name else f"line {number}", f"line {number}: {error}")


def count(input: Path) -> int:
    """Returns the number of rows."""
    return len(_read_rows(input))


def _read_rows(directory: Path) -> list[tuple[int, Any]]:
    """Returns (line number, row); a row that is not JSON, among others that are, stays the exception it raised."""
    path = directory / MANIFEST
    if not path.is_file():
        raise ImporterError(f"there is no {MANIFEST} in {directory}")
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            rows.append((number, json.loads(line)))
        except (ValueError, RecursionError) as error:
            rows.append((number, error))
    if not rows:
        raise ImporterError(f"{path} is empty")
    if not any(isinstance(row, dict) for _, row in rows):
        raise ImporterError(f"{path} is not JSON Lines: line {rows[0][0]} is no JSON object ({rows[0][1]!r:.80})")
    return rows


def _utterance(directory: Path, row: Any, splits: Mapping[str, str] | None) -> Utterance:
    if isinstance(row, Exception):
        raise ValueError(f"not JSON: {row}")
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {row!r:.80}")
    json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but no text
    for key in row:
        if key not in _KEYS:
            close = difflib.get_close_matches(key, _KEYS, n=1)
            raise ValueError(f"unknown key {key!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    for key in _TEXT_KEYS:
        if not isinstance(row.get(key, ""), str):
            raise ValueError(f"{key!r} must be a string, got {row[key]!r:.80}")
    media = {key: read_clip(directory, row[key]) for key in ("audio", "video") if key in row}
    features = find_features(directory, _id(row))
    features |= {name: read_features(directory, path) for name, path in _object(row, "features").items()}
    if not media and not features and not row.get("transcript"):
        raise ValueError("neither audio, video, features nor a transcript")
    return Utterance(
        id=_id(row),
        dataset=row.get("dataset", "folder"),
        split=_split(row, splits),
        speaker=_speaker(row),
        features=features,
        labels=_labels(row),
        valence=_valence(row),
        captions=_captions(row),
        attributes=_object(row, "attributes"),
        **{key: row[key] for key in ("dialogue", "transcript", "language", "rationale", "licence") if key in row},
        **media,
    )


def _id(row: Mapping[str, Any]) -> str:
    return row["id"] if "id" in row else Path(str(row.get("audio") or row.get("video") or "")).stem


def _speaker(row: Mapping[str, Any]) -> str:
    return str(row["speaker"]) if "speaker" in row else str(_id(row))


def _split(row: Mapping[str, Any], splits: Mapping[str, str] | None) -> str:
    if splits is not None:
        return splits[_speaker(row)]
    if "split" not in row:
        raise ValueError("no split, where other rows have one")
    split = _SPLIT_ALIASES.get(row["split"], row["split"])
    if split not in SPLITS:
        raise ValueError(f"split {row['split']!r} is none of {', '.join(SPLITS)}")
    return split


def _assign_splits(speakers: set[str]) -> dict[str, str]:
    ordered = sorted(speakers, key=lambda speaker: hashlib.sha256(speaker.encode("utf-8", "surrogatepass")).digest())
    held_out = max(round(0.1 * len(ordered)), 1) if len(ordered) >= 3 else 0
    cut = len(ordered) - 2 * held_out
    names = ["train"] * cut + ["validation"] * held_out + ["test"] * held_out
    return dict(zip(ordered, names, strict=True))


def _object(row: Mapping[str, Any], key: str) -> dict[str, str]:
    value = row.get(key, {})
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ValueError(f"{key!r} must be an object of strings, got {value!r:.80}")
    return value


def _labels(row: Mapping[str, Any]) -> dict[str, str]:
    labels = dict(_object(row, "labels"))
    for modality in labels:
        if modality not in MODALITIES:
            raise ValueError(f"'labels' has {modality!r}; known: {', '.join(MODALITIES)}")
    for key in ("label", "emotion"):
        if key in row and labels.setdefault("multimodal", row[key]) != row[key]:
            raise ValueError(f"{key!r} is {row[key]!r}, but the multimodal label is {labels['multimodal']!r}")
    return {modality: canonical_label(label) for modality, label in labels.items()}


def _valence(row: Mapping[str, Any]) -> float | None:
    value = row.get("valence")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -2 <= value <= 2:
        raise ValueError(f"'valence' must be a number in [-2, 2], got {value!r:.80}")
    return float(value)


def _captions(row: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    if "caption" in row and "captions" in row:
        raise ValueError("both 'caption' and 'captions'")
    value = row.get("captions", row.get("caption", {}))
    captions = {}
    for kind, references in (value if isinstance(value, dict) else {"overall": value}).items():
        references = [references] if isinstance(references, str) else references
        if kind not in CAPTION_KINDS:
            raise ValueError(f"caption kind {kind!r} is none of {', '.join(CAPTION_KINDS)}")
        if not isinstance(references, list) or not all(isinstance(r, str) and r.strip() for r in references):
            raise ValueError(f"captions must be non-empty strings, got {references!r:.80}")
        captions[kind] = tuple(references)
    return captions
