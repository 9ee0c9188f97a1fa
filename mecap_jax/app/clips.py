"""The clips of a data set, shards or a folder with a manifest: what is known of each without reading its media."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mecap_jax.config import ConfigError
from mecap_jax.data.importers import open_source
from mecap_jax.data.inspection import read
from mecap_jax.data.manifest import MANIFEST, BadClip, ClipRecord, Duplicate
from mecap_jax.data.shards import ShardReader
from mecap_jax.data.utterance import MODALITIES, Utterance


@dataclasses.dataclass(frozen=True)
class ClipRow:
    """A clip in a table; `number` is its place in the data set, `seconds` None where nobody has measured it."""

    number: int
    id: str
    split: str
    speaker: str
    labels: Mapping[str, str]
    captions: Mapping[str, tuple[str, ...]]
    transcript: str
    seconds: float | None

    @property
    def disagree(self) -> bool:
        """Whether modalities are labelled differently."""
        return len(set(self.labels.values())) > 1


@dataclasses.dataclass(frozen=True)
class Clips:
    """A data set.

    Attributes:
      rows: one a clip.
      left_out: ids of clips that were left out, and why.
      about: what the data are, line by line.
      numbers: of the clips by id.
      utterance: reads a clip; may raise OSError or ValueError.
    """

    rows: tuple[ClipRow, ...]
    left_out: tuple[tuple[str, str], ...]
    about: Mapping[str, str]
    utterance: Callable[[int], Any]

    @functools.cached_property
    def numbers(self) -> Mapping[str, int]:
        return {row.id: row.number for row in self.rows}

    def __getitem__(self, number: int) -> Utterance:
        """Reads a clip with its media.

        Raises:
          ConfigError: there is no such clip, or it cannot be read; says why.
        """
        if not 0 <= number < len(self.rows):
            raise ConfigError(f"there is no clip {number}, only {len(self.rows)}")
        try:
            found = self.utterance(number)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.rows[number].id}: {error}") from error
        if not isinstance(found, Utterance):
            raise ConfigError(f"{found.id}: {getattr(found, 'reason', 'a copy')}")
        return found


def open_clips(directory: Path) -> Clips:
    """Opens a directory of shards, or a folder of clips with a manifest.

    Raises:
      ShardError, ImporterError: it is neither, is damaged or of another version; in one line.
    """
    return _shards(directory) if (directory / MANIFEST).is_file() else _folder(directory)


def choose_clips(
    rows: Iterable[ClipRow], split: str = "", label: str = "", words: str = "", disagree: bool = False
) -> list[ClipRow]:
    """The clips that fit; "" takes all. `words` stand in the id, the transcript or a caption."""
    words = words.casefold().strip()

    def has_words(row: ClipRow) -> bool:
        texts = (row.id, row.transcript, *(text for texts in row.captions.values() for text in texts))
        return any(words in text.casefold() for text in texts)

    return [
        row
        for row in rows
        if (not split or row.split == split)
        and (not label or label in row.labels.values())
        and (not disagree or row.disagree)
        and (not words or has_words(row))
    ]


def _shards(directory: Path) -> Clips:
    reader = ShardReader(directory, verify=False)  # of each record that is read, its own checksum counts
    manifest = reader.manifest
    copies = ((clip["id"], f"a copy of {clip['of']}") for clip in manifest["duplicates"])
    bad = ((clip["id"], clip["reason"]) for clip in manifest["quarantined"])
    counts = ", ".join(f"{split} {counts['records']}" for split, counts in manifest["splits"].items())
    about = {
        "made by": manifest["command"],
        "synthetic": "yes" if manifest["synthetic"] else "no",
        "clips": counts,
        "corpora": _listed(manifest["datasets"]),
        "languages of captions": _listed(manifest["caption_languages"]),
        "licences": _listed(manifest["licences"]),
    }
    rows = tuple(_row(number, record) for number, record in enumerate(reader.index))
    return Clips(rows, (*bad, *copies), about, reader.__getitem__)


def _folder(directory: Path) -> Clips:
    found = open_source("folder", directory)
    bad = tuple((item.id, item.reason) for item in found if isinstance(item, BadClip))
    copies = tuple((item.id, f"a copy of {item.of}") for item in found if isinstance(item, Duplicate))
    clips = [clip for clip in found if callable(clip)]
    rows = tuple(
        ClipRow(
            number,
            clip.id,
            clip.told["split"],
            clip.told["speaker"],
            clip.told["labels"],
            clip.told["captions"],
            clip.told.get("transcript", ""),
            None,
        )
        for number, clip in enumerate(clips)
    )
    return Clips(rows, bad + copies, {"clips": str(len(rows))}, lambda number: read(clips[number]))


def _row(number: int, record: ClipRecord) -> ClipRow:
    known = (getattr(record, name) for name in ("id", "split", "speaker", "labels", "captions", "transcript"))
    return ClipRow(number, *known, record.seconds)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name or 'unknown'} {count}" for name, count in counts.items())


def labels_of(rows: Iterable[ClipRow]) -> list[str]:
    """All labels of any modality, in alphabetical order."""
    return sorted({label for row in rows for label in row.labels.values()})


def by_modality(labels: Mapping[str, str]) -> list[tuple[str, str]]:
    """Labels in the order of the schema."""
    return [(modality, labels[modality]) for modality in MODALITIES if modality in labels]
