"""Importer for the 600 public test clips of SECap (arXiv 2312.10381): the directory `dataset` of its repository.

Reads `fid2captions.json` (an object: id -> a Chinese caption of the emotion), `wav/<id>.wav` and `text.txt` ("id
transcript" a line). All clips are in split test. Who speaks is not published: every clip counts as a speaker of its
own.
"""

from __future__ import annotations

from pathlib import Path

from mecap_jax.data.importers import ImporterError, ImportSettings
from mecap_jax.data.importers.corpus import Entry, entry, require
from mecap_jax.json_files import read_json_object
from mecap_jax.text_files import read_lines

OFFICIAL = {"test": {"clips": 600}}


def rows(input: Path, settings: ImportSettings) -> list[Entry]:
    """Returns one row a caption.

    Raises:
      ImporterError: names the files that are missing, or the one that is no JSON.
    """
    captions, text, _ = require(input, "fid2captions.json", "text.txt", "wav")
    try:
        captions = read_json_object(captions, unique=True)
    except ValueError as error:
        raise ImporterError(str(error)) from error
    said = {parts[0]: parts[-1] for line in read_lines(text) if len(parts := line.split(maxsplit=1)) == 2}

    def row(id: str) -> dict:
        caption = captions[id]
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f"a caption must be a string that says something, got {caption!r:.80}")
        return {
            "id": id,
            "dataset": "secap",
            "split": "test",
            "audio": f"wav/{id}.wav",
            "transcript": said.get(id),
            "language": "zh",
            "captions": {"emotion": caption.strip()},
        }

    return [entry(f"fid2captions.json, {id!r}", lambda id=id: row(id)) for id in captions]
