"""Importer for rationales as R1-Omni and ERV keep them for cold start and RL (arXiv 2503.05379, 2510.23506).

Every `*.json` at the top of the directory is a list of objects with `video`, the path of a clip, and `conversations`, a
question and what is answered: `{"from": "gpt", "value": "<think>...</think>\\n<answer>anxious</answer>"}`, or the label
alone. The thought becomes the rationale, the answer the label, whatever its set. A path that leads nowhere is looked
for by its last part anywhere in the directory, since the published lists hold the authors' own paths. Clips that
several lists name alike count once. There are no official splits: clips are divided by a hash, 80 / 10 / 10.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from mecap_jax.data.importers import ImporterError, ImportSettings
from mecap_jax.data.importers.corpus import Entry, entry, find_by_stem
from mecap_jax.json_files import parse_json

_LARGEST = 1 << 28  # bytes
_LONGEST_LABEL = 40  # characters
_ANSWER = re.compile(r"\s*<think>([^<]*)</think>\s*<answer>([^<]*)</answer>\s*")


def rows(input: Path, settings: ImportSettings) -> list[Entry]:
    """Returns one row an object of the lists.

    Raises:
      ImporterError: no lists, names all that are none; or a clip is there twice.
    """
    lists, problems = {}, []
    for path in sorted(input.glob("*.json")):
        try:
            if path.stat().st_size > _LARGEST:
                raise ValueError(f"it has more than {_LARGEST} bytes")
            if not isinstance(found := parse_json(path.read_bytes()), list):
                raise ValueError("it is no list")
            lists[path.name] = found
        except (OSError, ValueError) as error:
            problems.append(f"{path}: {error}")
    if problems or not lists:
        raise ImporterError("\n".join(problems) or f"{input} holds no *.json with conversations")
    clips = find_by_stem(input, (".mp4", ".avi", ".mkv", ".webm"), settings.allow_outside)
    return [
        entry(f"{name}, item {number}", lambda item=item: _row(item, input, clips))
        for name, items in lists.items()
        for number, item in enumerate(items, start=1)
    ]


def _row(item: Any, input: Path, clips: dict[str, Path]) -> dict[str, Any]:
    if not isinstance(item, dict) or not isinstance(item.get("video"), str):
        raise ValueError("it names no 'video'")
    turns = item.get("conversations")
    said = [turn.get("value") for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    if len(said) != 2 or not isinstance(said[-1], str):
        raise ValueError("'conversations' must be a question and an answer")
    stem = PurePosixPath(item["video"]).stem
    inside = (input / item["video"]).is_file() and not Path(item["video"]).is_absolute()
    if not inside and stem not in clips:
        raise ValueError(f"no such clip: {item['video']!r}")
    thought = _ANSWER.fullmatch(said[-1])
    label = (thought[2] if thought else said[-1]).strip()
    if not 0 < len(label) <= _LONGEST_LABEL:
        raise ValueError(f"the answer is neither a label nor a thought and a label in tags: {said[-1]!r:.80}")
    return {
        "id": f"emer_{stem}",
        "dataset": "emer",
        "video": item["video"] if inside else str(clips[stem]),
        "label": label,
        "rationale": thought[1].strip() if thought else None,
    }
