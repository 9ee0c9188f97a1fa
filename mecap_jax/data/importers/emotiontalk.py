"""Importer for EmotionTalk, Chinese dialogues of 19 actors (arXiv 2505.23018), from the four archives' layout:

  {Audio,Text,Video,Multimodal}/json/G00001/G00001_02/G00001_02_01/G00001_02_01_002.json
  Audio/wav/<the same>.wav, Multimodal/mp4/<the same>.mp4

An id is group, dialogue, speaker and utterance. Labels are per modality (`emotion_result`) and disagree in a third of
the clips; the transcript is `content`, the captions are `sourceAttr` of Audio. Where it has none, captions come from
`audio.csv` of the authors' repository (`mm-process/audio.csv` in it), whose column `content` is a Python dictionary.
Any of the four directories may be missing, and so may either kind of media.

Splits are the official ones, by group: G00001 and G00012 validate, G00003 and G00015 test. Validation and test share
the speakers 02 and 13; neither shares one with train. Marks in transcripts ("[over/]", "[laughing]") are removed;
laughing, sobbing, crying and screaming are kept as the attribute `cues`. The format of "Continuous label_result" is not
published: a number in [-2, 2] is taken as the valence, anything else is left out.
"""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mecap_jax.data.importers import ImporterError, ImportSettings, tables
from mecap_jax.data.importers.corpus import Entry, Row, checked_label, entry
from mecap_jax.data.importers.files import walk
from mecap_jax.json_files import read_json_object

LABELS = ("neutral", "happy", "sad", "angry", "surprised", "disgusted", "fearful")
OFFICIAL = {  # multimodal labels
    "train": {"clips": 15413} | dict(zip(LABELS, (5377, 2986, 919, 2950, 1367, 1142, 672), strict=True)),
    "validation": {"clips": 1908} | dict(zip(LABELS, (675, 360, 111, 409, 133, 95, 125), strict=True)),
    "test": {"clips": 1929} | dict(zip(LABELS, (801, 246, 123, 339, 161, 134, 125), strict=True)),
}

_KINDS = {"Text": "text", "Audio": "audio", "Video": "video", "Multimodal": "multimodal"}
_MEDIA = {"audio": ("Audio/wav", ".wav"), "video": ("Multimodal/mp4", ".mp4")}
_TABLES = (
    "audio.csv",
    "mm-process/audio.csv",
    "dataset/mm-process/audio.csv",
    "EmotionTalk/dataset/mm-process/audio.csv",
)
_ID = re.compile(r"(G\d{5})_(\d{2})_(\d{2})_\d{3}")
_GROUPS = {f"G{number:05d}": "train" for number in range(1, 16)}
_GROUPS |= {"G00001": "validation", "G00012": "validation", "G00003": "test", "G00015": "test"}
_CAPTIONS = {"spe_cap": "speaker", "style_cap": "style", "emo_cap": "emotion"}
_CAPTIONS |= {f"caption_{number}": "overall" for number in range(1, 6)}
_MAX_LITERAL = 1 << 14  # characters: eight captions have under a thousand
_CUES = ("laughing", "sobbing", "crying", "screaming")
# Some marks are malformed: "[[/over]", "[/over/]", "[over[/over]", and "[over/你]", in which a word was said.
_MARK = re.compile(rf"\[+/?(over|interrupted|{'|'.join(_CUES)})(?![A-Za-z])/?(?:([^\[\]]*)\])?", re.IGNORECASE)


def rows(input: Path, settings: ImportSettings) -> list[Entry]:
    """Returns one row a clip that a JSON file or the table of captions names.

    Raises:
      ImporterError: none of these files is there, or the table is none.
    """
    files: dict[str, dict[str, Path]] = {}
    table, entries = _read_table(input)
    for kind in _KINDS:
        for path in walk(input / kind / "json", settings.allow_outside):
            if path.suffix.lower() == ".json":
                named = Path(kind, "json", path)
                if (first := files.setdefault(path.stem, {}).setdefault(kind, named)) is not named:
                    entries.append((repr(str(named)), ValueError(f"the clip has a file there already: {str(first)!r}")))
    if not files and not table:
        raise ImporterError(
            f"{input} holds no EmotionTalk: no {'/json, '.join(_KINDS)}/json with JSON files, and no {_TABLES[0]}"
        )
    print("EmotionTalk's validation and test splits share the speakers 02 and 13", file=sys.stderr)
    for id in sorted({*files, *table}):
        entries.append(entry(repr(id), lambda id=id: _row(input, id, files.get(id, {}), table.get(id, {}), settings)))
    return entries


def parse_captions(text: str) -> dict[str, list[str]]:
    """Returns captions by kind from a Python dictionary of strings; nothing in it is run.

    Raises:
      ValueError: longer than any captions are, or no such dictionary.
    """
    try:
        if len(text) > _MAX_LITERAL:
            raise ValueError(f"it has {len(text)} characters, at most {_MAX_LITERAL}")
        with warnings.catch_warnings(action="ignore"):
            value = ast.literal_eval(text)
        if not isinstance(value, dict):
            raise ValueError(f"it is a {type(value).__name__}")
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        reason = str(error).split("(<unknown>")[0].strip() or type(error).__name__
        raise ValueError(f"captions are no Python dictionary: {reason:.120}") from None
    return _by_kind(value)


def clean_transcript(text: str) -> tuple[str, list[str]]:
    """Returns a transcript without marks, and which cues of emotion they named."""
    marks = {match[1].casefold() for match in _MARK.finditer(text)}
    said = _MARK.sub(lambda match: match[2] or "", text)
    return " ".join(said.split()), [cue for cue in _CUES if cue in marks]


def _read_table(input: Path) -> tuple[dict[str, dict[str, Any]], list[Entry]]:
    """Returns label and captions by id, and the lines that hold none."""
    path = next((input / name for name in _TABLES if (input / name).is_file()), None)
    found: dict[str, dict[str, Any]] = {}
    wrong: list[Entry] = []
    for number, line in tables.read_table(path) if path else []:
        try:
            if isinstance(line, ValueError):
                raise line
            id = Path(line.get("file_name", "")).stem
            captions = parse_captions(line["content"]) if "content" in line else {}
            if id in found:
                raise ValueError(f"{id!r} is there twice")
            found[id] = {"emotion": line.get("emotion"), "captions": captions}
        except ValueError as error:
            wrong.append((f"{path.name}, line {number}", error))
    return found, wrong


def _row(input: Path, id: str, files: Mapping[str, Path], line: Mapping[str, Any], settings: ImportSettings) -> Row:
    problems = []
    known = _ID.fullmatch(id)
    if known is None or known[1] not in _GROUPS:
        problems.append(f"{id!r} is not the name of a clip in G00001 to G00015, such as G00001_02_01_002")
    read, labels = {}, {}
    for kind, path in files.items():
        try:
            read[kind] = read_json_object(input / path)
            if "emotion_result" in read[kind]:
                labels[_KINDS[kind]] = checked_label(read[kind]["emotion_result"], LABELS, settings)
        except (OSError, ValueError) as error:
            problems.append(f"{str(path)!r}: {error}")
    try:
        if line.get("emotion") and "audio" not in labels:
            labels["audio"] = checked_label(line["emotion"], LABELS, settings)
    except ValueError as error:
        problems.append(f"{_TABLES[0]}: {error}")
    captions = read.get("Audio", {}).get("sourceAttr", {})
    if not isinstance(captions, dict):
        problems.append(f"'sourceAttr' must be an object, got {captions!r:.80}")
        captions = {}
    content = read.get("Text", {}).get("content") or read.get("Audio", {}).get("content") or ""
    if not isinstance(content, str):
        problems.append(f"'content' must be a string, got {content!r:.80}")
    if problems:
        raise ValueError("; ".join(problems))
    transcript, cues = clean_transcript(content)
    group, dialogue, speaker = known.groups()
    place = f"{group}/{group}_{dialogue}/{group}_{dialogue}_{speaker}/{id}"
    return {
        "id": id,
        "dataset": "emotiontalk",
        "split": _GROUPS[group],
        "speaker": f"emotiontalk_{speaker}",
        "dialogue": f"{group}_{dialogue}",
        "transcript": transcript,
        "language": "zh",
        "labels": labels,
        "valence": _valence(read.get("Multimodal", {}).get("Continuous label_result")),
        "captions": _by_kind(captions) or line.get("captions", {}),
        "attributes": {"cues": ", ".join(cues)},
        "licence": "CC-BY-NC-SA-4.0",
        **{
            field: f"{folder}/{place}{ending}"
            for field, (folder, ending) in _MEDIA.items()
            if (input / folder).is_dir()
        },
    }


def _by_kind(captions: Mapping[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, kind in _CAPTIONS.items():
        if isinstance(text := captions.get(key), str) and text.strip():
            found.setdefault(kind, []).append(text.strip())
    return found


def _valence(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if -2 <= number <= 2 else None
