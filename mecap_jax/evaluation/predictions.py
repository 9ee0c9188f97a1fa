"""What a stage said of every clip and how that was read: `predictions.jsonl`, one object a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mecap_jax.evaluation.decoding import Caption
from mecap_jax.evaluation.stage import StageResult
from mecap_jax.json_files import parse_json, to_json


class PredictionsError(ValueError):
    """A file of predictions that cannot be read."""


def predictions(result: StageResult, finished: Sequence[bool], step: int | None) -> list[dict[str, Any]]:
    """Returns one row a clip, as JSON types.

    Keys: `id`, `step` (of the checkpoint, null where there is none), `label` (or null), `references`, `caption`,
    `finished` (false: cut off at the longest length), `reading` (the emotion that the caption expresses, or null: of a
    free caption by nearest `anchor` and by `first_word`) and `rewards` (by term).
    """
    parts = zip(result.clips, result.captions, finished, strict=True)
    return [
        {
            "id": clip.id,
            "step": step,
            "label": clip.label,
            "references": list(clip.references),
            "caption": caption,
            "finished": ended,
            "reading": {name: values[i] for name, values in result.readings.items()},
            "rewards": {name: values[i] for name, values in result.rewards.items()},
        }
        for i, (clip, caption, ended) in enumerate(parts)
    ]


def bare_prediction(identity: str, step: int | None, caption: Caption | None) -> dict[str, Any]:
    """Returns the row of a clip whose caption nobody has scored; null where the clip could not be decoded."""
    text, finished = (None, False) if caption is None else (caption.text, caption.finished)
    return {"id": identity, "step": step, "caption": text, "finished": finished}


def write_predictions(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a file as a whole: a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text("".join(to_json(row) + "\n" for row in rows), encoding="utf-8")
    temporary.replace(path)


def read_captions(path: Path, step: int | None) -> dict[str, Caption | None]:
    """Returns the captions of a checkpoint by clip id; empty where the file is not there, or is another checkpoint's.

    A clip that could not be decoded has None. `step` None takes those of any checkpoint.

    Raises:
      PredictionsError: a line is not a row of predictions; names file and line.
    """
    captions: dict[str, Caption | None] = {}
    if not path.is_file():
        return captions
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            row = parse_json(line)
            identity, text, finished = row["id"], row["caption"], row["finished"]
            if type(identity) is not str or type(text) not in (str, type(None)) or type(finished) is not bool:
                raise ValueError("a value of another type")
            if step is None or row["step"] == step:
                captions[identity] = None if text is None else Caption(text, finished)
        except (KeyError, TypeError, ValueError) as error:
            raise PredictionsError(f"{path}, line {number}, is no prediction: {error!r}") from error
    return captions


def are_scored(path: Path) -> bool:
    """Whether a file that `read_captions` has read holds scores, too: where scoring failed, it has captions alone."""
    with path.open("rb") as file:
        return "reading" in parse_json(file.readline())
