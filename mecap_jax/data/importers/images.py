"""Importer for pictures with an emotion each: EmoSet (arXiv 2307.07961), Emotion6, or any folder of pictures by label.

EmoSet's layout is read where `train.json` is there: `{train,val,test}.json` are lists of `["amusement", ...,
"image/amusement/amusement_12865.jpg", "annotation/amusement/amusement_12865.json"]`. Otherwise the folder of a picture
is its label, and a folder around it named train, val or test its split: `anger/1.jpg`, `test/anger/1.jpg`. Without
splits, pictures are divided by a hash, 80 / 10 / 10.

Pictures are JPEG files; each becomes a video of one frame. EmoSet's further attributes are not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mecap_jax.data.importers import ImporterError, ImportSettings
from mecap_jax.data.importers.corpus import Entry, entry
from mecap_jax.data.importers.files import walk
from mecap_jax.json_files import parse_json

_SPLITS = ("train", "val", "test")
_ENDINGS = (".jpg", ".jpeg")


def rows(input: Path, settings: ImportSettings) -> list[Entry]:
    """Returns one row a picture.

    Raises:
      ImporterError: no pictures, or names all lists that are none.
    """
    if (input / "train.json").is_file():
        return _emoset(input)
    pictures = [path for path in walk(input, settings.allow_outside) if path.suffix.lower() in _ENDINGS]
    pictures = [path for path in sorted(pictures) if len(path.parts) > 1]
    if not pictures:
        raise ImporterError(f"{input} holds no pictures in folders (such as anger/1.jpg), nor EmoSet's train.json")
    return [(repr(str(path)), _row(input, str(path), path.parts[-2], _split_of(path))) for path in pictures]


def _emoset(input: Path) -> list[Entry]:
    entries, problems = [], []
    for name in [f"{split}.json" for split in _SPLITS if (input / f"{split}.json").is_file()]:
        try:
            listed = parse_json((input / name).read_bytes())
            if not isinstance(listed, list):
                raise ValueError("it is no list")
        except (OSError, ValueError) as error:
            problems.append(f"{input / name}: {error}")
            continue
        for number, item in enumerate(listed, start=1):
            place = f"{name}, item {number}"
            entries.append(entry(place, lambda item=item, name=name: _listed(input, item, Path(name).stem)))
    if problems:
        raise ImporterError("\n".join(problems))
    return entries


def _listed(input: Path, item: Any, split: str) -> dict[str, Any]:
    if not isinstance(item, list) or not item or not all(isinstance(part, str) for part in item):
        raise ValueError("expected a list of strings: emotion, picture, annotation")
    picture = next((part for part in item[1:] if Path(part).suffix.lower() in _ENDINGS), None)
    if picture is None:
        raise ValueError("it names no picture")
    return _row(input, picture, item[0], split)


def _row(input: Path, picture: str, label: str, split: str | None) -> dict[str, Any]:
    dataset = input.resolve().name.casefold()
    return {
        "id": str(Path(picture).with_suffix("")),
        "dataset": dataset,
        "split": split,
        "video": picture,
        "label": label,
    }


def _split_of(path: Path) -> str | None:
    return next((part for part in path.parts[:-2] if part.casefold() in (*_SPLITS, "validation")), None)
