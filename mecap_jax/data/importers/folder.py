"""Importer for a folder of your own clips, described by a table.

The input directory holds `manifest.jsonl` (one JSON object a line), `manifest.csv` or `manifest.tsv` (a header line).
All paths are relative to the directory.

| key | value | default |
|---|---|---|
| `id` | unique string | stem of the clip's file; its path where several files have the stem |
| `file` | a media file; what is in it decides whether it is `video` or `audio` | |
| `audio` | wav, flac, ogg or mp3 file | |
| `video` | mp4, mov, mkv or webm file; its sound track is the audio where `audio` is absent; or a JPEG picture | |
| `features` | object: name -> `.npy` file, floats `[frames, dim]` or `[dim]` | `features/NAME/<id>.npy`, see below |
| `split` | "train", "validation" ("val", "dev", "valid") or "test" | assigned by speaker, see below |
| `speaker` | string | the id: every clip counts as a speaker of its own |
| `dialogue` | string | |
| `transcript` | string | "" |
| `language` | BCP-47 code of the speech; usual names ("Chinese", "cn") are taken for codes, others refused | told from the transcript's script (Latin counts as "en"), unknown without a transcript |
| `label` or `emotion` | emotion of the whole clip, e.g. "happy", "Anger" | |
| `labels` | object: "text", "audio", "video", "multimodal" -> emotion | |
| `valence` | number in [-2, 2] | |
| `captions` or `caption` | string or list of strings (kind "overall"), or object: kind -> string or list; kinds are "emotion", "style", "speaker", "overall" | |
| `rationale` | string | |
| `attributes` | object: name -> value, e.g. gender, intensity; `caption_language`, the captions' language likewise, is otherwise told from their script ("zh" or "en") | |
| `dataset` | string | "folder" |
| `licence` | string | "" |

`null` and "" mean that a value is absent; where a string is expected, a number is taken as one. Other names for a key:
`file_name`, `filename` and `path` for `file`, `lang` for `language`, `license` for `licence`, `speaker_id` for `speaker`,
`transcription` and `sentence` for `transcript`. Any further column becomes an attribute. In CSV and TSV, an object or a
list is written as JSON.

Rows of files that share a stem and agree in everything else are copies: one is taken (a corpus that was unpacked twice).
A row needs audio, video, features or a transcript. A row with a bad value, a missing file or a path out of the directory
is reported as a bad clip with its line number; `--allow_outside` follows absolute paths and links. When no row has a
split, speakers are ordered by a hash of their names and divided 80 / 10 / 10 (at least one each for validation and test
where there are three or more).

Precomputed features in EmotionTalk's layout need not be named: `features/<model>-UTT/<id>.npy` (one vector a clip) and
`features/<model>-FRA/<id>.npy` (one a frame) are taken under the name of their directory.
"""  # noqa: E501 - a table

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mecap_jax.data import media
from mecap_jax.data.importers import BadClip, Duplicate, ImporterError, ImportSettings, Pending, tables
from mecap_jax.data.importers.feature_files import find_features, read_features
from mecap_jax.data.importers.files import read_clip
from mecap_jax.data.language import caption_language, language_code
from mecap_jax.data.stills import is_jpeg, one_frame_video
from mecap_jax.data.utterance import CAPTION_KINDS, MODALITIES, SPLITS, Utterance, serialize
from mecap_jax.json_files import parse_json, to_json
from mecap_jax.text_files import printable

MANIFESTS = tuple(f"manifest{suffix}" for suffix in tables.SUFFIXES)
_PATHS = ("audio", "video", "file")
_STRINGS = ("id", "split", "speaker", "dialogue", "transcript", "language", "label", "emotion", "rationale", "dataset",
            "licence")  # fmt: skip
_OBJECTS = ("features", "labels", "caption", "captions", "attributes")  # a caption may be one
_KEYS = (*_PATHS, *_STRINGS, *_OBJECTS, "valence")
_OTHER_NAMES = {
    "file_name": "file",
    "filename": "file",
    "path": "file",
    "lang": "language",
    "license": "licence",
    "speaker_id": "speaker",
    "transcription": "transcript",
    "sentence": "transcript",
}
_OTHER_SPLITS = {"val": "validation", "dev": "validation", "valid": "validation"}

Row = dict[str, Any]


def clips(input: Path, settings: ImportSettings) -> list[Pending]:
    """Returns the clips of a folder, in the order of its manifest.

    Raises:
      ImporterError: no manifest, more than one, or one that is no table (names the line).
    """
    path = _find_manifest(input)
    table = tables.read_table(path)
    _report_further_columns(path, [name for _, raw in table if isinstance(raw, dict) for name in raw])
    return clips_of(input, [(f"line {number}", row) for number, row in table], settings, str(path))


def clips_of(
    input: Path, table: Sequence[tuple[str, Row | ValueError]], settings: ImportSettings, name: str
) -> list[Pending]:
    """Returns what the rows of a table named `name` describe, in order.

    Args:
      table: (where a row stands, the row with the keys above or what is wrong with it).
    """
    rows = [_tidy(row) for _, row in table]
    good = [row for row in rows if isinstance(row, dict)]
    by_path = _choose_ids(good)
    splits = None
    if not any("split" in row for row in good):
        splits = _assign_splits({_speaker(row) for row in good})
        sizes = ", ".join(f"{sum(s == split for s in splits.values())} {split}" for split in SPLITS)
        print(f"{printable(name)} names no splits: speakers are divided by a hash ({sizes})", file=sys.stderr)
    found: list[Pending] = []
    for (place, raw), row in zip(table, rows, strict=True):
        named = next((known["id"] for known in (row, raw) if isinstance(known, dict) and known.get("id")), "")
        id = str(named) or place.strip("'")
        try:
            if isinstance(row, ValueError):
                raise row
            found.append(_Clip(id, place, input, row, _told(row, splits, settings), settings.allow_outside))
        except ValueError as error:
            found.append(BadClip(id, f"{place}: {error}"))
    return _without_copies(found, by_path)


def files_beside(input: Path, settings: ImportSettings) -> list[Path]:
    """The media that the manifest names outside the input directory, where they may stand there."""
    rows = [row for _, raw in tables.read_table(_find_manifest(input)) if isinstance(row := _tidy(raw), dict)]
    named = {input / row[key] for row in rows for key in _PATHS if key in row} if settings.allow_outside else set()
    return sorted(path for path in named if not path.absolute().is_relative_to(input.absolute()) and path.is_file())


def _find_manifest(directory: Path) -> Path:
    found = [directory / name for name in MANIFESTS if (directory / name).is_file()]
    if not found:
        raise ImporterError(f"{directory} holds no {MANIFESTS[0]} (nor {', '.join(MANIFESTS[1:])})")
    if len(found) > 1:
        raise ImporterError(f"{directory} holds more than one manifest: {', '.join(path.name for path in found)}")
    return found[0]


# --- a row as a table holds it -> a row with our keys -----------------------------------------------------------


def _tidy(raw: Row | ValueError) -> Row | ValueError:
    """Returns the row without what is absent, under our keys, its strings strings; columns beyond are attributes."""
    if isinstance(raw, ValueError):
        return raw
    try:
        values = {name: value for key, value in _present(raw).items() if (name := key.strip())}
        for other, key in _OTHER_NAMES.items():
            if other in values and key not in values:
                values[key] = values.pop(other)
        row = {key: values[key] for key in _KEYS if key in values}
        for key in _OBJECTS:
            if isinstance(row.get(key), str) and row[key].startswith(("{", "[")):
                row[key] = _nested(row[key])
        for key in (*_PATHS, *_STRINGS):
            if isinstance(row.get(key), int | float):
                row[key] = _string(row[key])
            if not isinstance(row.get(key, ""), str):
                raise ValueError(f"{key!r} must be a string, got {row[key]!r:.80}")
        further = {key: _string(value) for key, value in values.items() if key not in _KEYS}
        if further or "attributes" in row:
            given = row.get("attributes", {})
            if not isinstance(given, dict):
                raise ValueError(f"'attributes' must be an object, got {given!r:.80}")
            row["attributes"] = further | {name: _string(value) for name, value in given.items()}
        for holder, key in ((row, "language"), (row.get("attributes", {}), "caption_language")):
            if key in holder:
                holder[key] = language_code(holder[key])
        return row
    except ValueError as error:
        return error
    except RecursionError:
        return ValueError("nested too deeply")


def _present(value: Any) -> Any:
    """Returns a JSON value without the parts that are null, "", or empty because of these."""
    if isinstance(value, dict):
        parts = {key: _present(part) for key, part in value.items()}
        return {key: part for key, part in parts.items() if part not in (None, "", {}, [])}
    if isinstance(value, list):
        return [part for part in map(_present, value) if part not in (None, "", {}, [])]
    return value


def _nested(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return text


def _string(value: Any) -> str:
    """Returns a value of a table as a string: 3 and 3.0 are "3", what is nested is JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return to_json(value)


def _report_further_columns(path: Path, names: Iterable[str]) -> None:
    """Says which columns become attributes: one of them may be a key that was mistyped."""
    listed = []
    for name in dict.fromkeys(name.strip() for name in names):
        if name and name not in _KEYS and name not in _OTHER_NAMES:
            close = difflib.get_close_matches(name[:100], _KEYS, n=1, cutoff=0.8)
            listed.append(f"{printable(name):.100}" + (f" (did you mean {close[0]!r}?)" if close else ""))
    if listed:
        shown = ", ".join(listed[:20]) + (", ..." if len(listed) > 20 else "")
        print(f"{printable(str(path))}: kept as attributes: {shown}", file=sys.stderr)


def _choose_ids(rows: list[Row]) -> set[str]:
    """Gives an id to every row that has a file and none: its stem, or its path where several files share the stem.

    Returns the ids that are paths.
    """
    nameless = [(row, [Path(row[key]) for key in _PATHS if key in row]) for row in rows if "id" not in row]
    clips = {tuple(paths) for _, paths in nameless if paths}  # a clip may be named twice, and have sound of its own
    stems = Counter(stem for paths in clips for stem in {path.stem for path in paths})
    places = Counter(place for paths in clips for place in {path.parent / path.stem for path in paths})
    by_path = set()
    for row, paths in nameless:
        if paths:
            path, place = paths[0], paths[0].parent / paths[0].stem
            shared = stems[path.stem] > 1
            row["id"] = printable(path.stem if not shared else str(place if places[place] == 1 else path))
            by_path |= {row["id"]} if shared else set()
    return by_path


def _without_copies(clips: list[Pending], by_path: set[str]) -> list[Pending]:
    """Replaces clips that are copies: all that is known of them but their place is what is known of one before.

    Those whose media could be the same, by what the table says of them and by the sizes of their files, are read.
    """
    alike: dict[tuple, list[int]] = {}
    for i, clip in enumerate(clips):
        if isinstance(clip, _Clip) and clip.id in by_path:
            alike.setdefault((to_json(clip.anonymous()), clip.sizes()), []).append(i)
    taken: dict[bytes, str] = {}
    for i in sorted(i for group in alike.values() if len(group) > 1 for i in group):
        clip, utterance = clips[i], clips[i]()
        if isinstance(utterance, Utterance):
            content = hashlib.sha256(serialize(dataclasses.replace(utterance, **clip.anonymous()))).digest()
            if (first := taken.setdefault(content, clip.id)) != clip.id:
                clips[i] = Duplicate(clip.id, first)
    return clips


def _speaker(row: Row) -> str:
    return row.get("speaker") or row.get("id", "")


def _assign_splits(speakers: set[str]) -> dict[str, str]:
    ordered = sorted(speakers, key=lambda speaker: hashlib.sha256(speaker.encode("utf-8", "surrogatepass")).digest())
    held_out = max(round(0.1 * len(ordered)), 1) if len(ordered) >= 3 else 0
    cut = len(ordered) - 2 * held_out
    names = ["train"] * cut + ["validation"] * held_out + ["test"] * held_out
    return dict(zip(ordered, names, strict=True))


# --- a row -> an utterance --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Clip:
    """A row, as a function that reads its files.

    Attributes:
      id: of the clip, or what stands for it.
      place: where the row stands.
      row: the row with our keys.
      told: fields of the utterance that the table tells.
    """

    id: str
    place: str
    directory: Path
    row: Row
    told: dict[str, Any]
    allow_outside: bool

    def __call__(self) -> Utterance | BadClip:
        try:
            return self._read()
        except (OSError, ValueError) as error:
            return BadClip(self.id, f"{self.place}: {error}")

    def anonymous(self) -> dict[str, Any]:
        """What is told but the place; a split that was drawn for a clip is not known of it."""
        split = self.told["split"] if "split" in self.row else SPLITS[0]
        return self.told | {"id": "-", "speaker": self.row.get("speaker", ""), "split": split}

    def sizes(self) -> tuple[tuple[str, int], ...]:
        """Bytes of each file that can be read."""
        paths = {key: self.directory / self.row[key] for key in _PATHS if key in self.row}
        return tuple((key, os.path.getsize(path)) for key, path in paths.items() if os.path.isfile(path))

    def _read(self) -> Utterance:
        directory, row, outside = self.directory, self.row, self.allow_outside
        found = {key: _read_media(directory, row[key], outside) for key in ("audio", "video") if key in row}
        if "file" in row:
            data = _read_media(directory, row["file"], outside)
            _, pictures = media.streams(data)
            if found.setdefault("video" if pictures else "audio", data) is not data:
                raise ValueError(f"both 'file' and {'video' if pictures else 'audio'!r}")
        features = find_features(directory, row.get("id", ""), outside)
        named = _strings(row, "features")
        features |= {name: read_features(directory, path, outside) for name, path in named.items()}
        if not found and not features and "transcript" not in row:
            raise ValueError("neither audio, video, features nor a transcript")
        return Utterance(**self.told, **found, features=features)


def _told(row: Row, splits: Mapping[str, str] | None, settings: ImportSettings) -> dict[str, Any]:
    """Returns the fields of an utterance that follow from its row alone."""
    as_they_are = ("dialogue", "transcript", "rationale", "attributes", "licence")
    return {
        "id": row.get("id", ""),
        "dataset": row.get("dataset", "folder"),
        "split": _split(row, splits),
        "speaker": _speaker(row),
        "language": row.get("language") or caption_language([row.get("transcript", "")]),
        "labels": _labels(row, settings),
        "valence": _valence(row),
        "captions": _captions(row),
    } | {key: row[key] for key in as_they_are if key in row}


def _read_media(directory: Path, name: str, allow_outside: bool) -> bytes:
    data = read_clip(directory, name, allow_outside)
    return one_frame_video(data) if is_jpeg(data) else data


def _split(row: Row, splits: Mapping[str, str] | None) -> str:
    if splits is not None:
        return splits[_speaker(row)]
    if "split" not in row:
        raise ValueError("no split, where other rows have one")
    name = row["split"].strip().casefold()
    if (split := _OTHER_SPLITS.get(name, name)) not in SPLITS:
        raise ValueError(f"split {row['split']!r} is none of {', '.join(SPLITS)}")
    return split


def _strings(row: Row, key: str) -> dict[str, str]:
    value = row.get(key, {})
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ValueError(f"{key!r} must be an object of strings, got {value!r:.80}")
    return value


def _labels(row: Row, settings: ImportSettings) -> dict[str, str]:
    labels = row.get("labels", {})
    if not isinstance(labels, dict) or any(isinstance(label, dict | list) for label in labels.values()):
        raise ValueError(f"'labels' must be an object of strings, got {labels!r:.80}")
    if unknown := set(labels) - set(MODALITIES):
        raise ValueError(f"'labels' has {min(unknown)!r}; known: {', '.join(MODALITIES)}")
    labels = {modality: settings.label(_string(label)) for modality, label in labels.items()}
    for key in ("label", "emotion"):
        label = settings.label(row[key]) if key in row else None
        if label is not None and labels.setdefault("multimodal", label) != label:
            raise ValueError(f"{key!r} is {row[key]!r}, but the multimodal label is {labels['multimodal']!r}")
    return {modality: label for modality, label in labels.items() if label is not None}


def _valence(row: Row) -> float | None:
    value = row.get("valence")
    if value is None:
        return None
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or not -2 <= number <= 2:
        raise ValueError(f"'valence' must be a number in [-2, 2], got {value!r:.80}")
    return number


def _captions(row: Row) -> dict[str, tuple[str, ...]]:
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
