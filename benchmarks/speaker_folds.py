"""Clips of several speakers in folds: who is dealt where, what captioners may read, what a linear probe reads in it."""

import csv
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.linear_classifier import fit
from mecap_jax.data.shards import ShardReader
from mecap_jax.evaluation.intervals import bootstrap, bootstrap_difference
from mecap_jax.evaluation.recognition import recognition
from mecap_jax.experiment.feature_normalisation import SPEAKER, Moments
from mecap_jax.json_files import parse_json
from mecap_jax.training.logging import read_jsonl

PROBE = "linear probe"


class FoldsError(ValueError):
    """Clips that do not divide into folds, or a table that does not fit them."""


class Clips(NamedTuple):
    """What is known of N clips, in one order.

    Attributes:
      rows: of the folder's table, without a split.
      voice: `[N, dim]`.
      face: `[N, dim]`, NaN where a clip has none; None where there is no table.
    """

    rows: Sequence[Mapping]
    voice: np.ndarray
    face: np.ndarray | None

    def column(self, name: str) -> np.ndarray:
        return np.array([row[name] for row in self.rows])


def read_clips(shards: Path, feature: str, face: Path | None) -> Clips:
    """Reads labelled clips and their features.

    Raises:
      FoldsError: a clip lacks the features, or names a row that the table has not.
    """
    reader, rows, voices, faces = ShardReader(shards), [], [], []
    table = None if face is None else read_faces(face)
    for number, record in enumerate(reader.index):
        if "multimodal" not in record.labels:
            continue
        clip = reader[number]
        if feature not in clip.features:
            raise FoldsError(f"clip {clip.id!r} lacks the features {feature!r}; it has {sorted(clip.features)}")
        voices.append(clip.features[feature].mean(axis=0))
        if table is not None:
            faces.append(_face_of(clip.id, clip.attributes.get("visual_features"), table))
        rows.append(
            {
                "id": clip.id,
                "dataset": clip.dataset,
                "speaker": clip.speaker,
                "label": clip.label,
                "language": clip.language,
                "captions": {kind: list(texts) for kind, texts in clip.captions.items()},
                "attributes": dict(clip.attributes),
            }
        )
    return Clips(rows, np.stack(voices), np.stack(faces) if faces else None)


def read_faces(path: Path) -> np.ndarray:
    """Returns a table `[rows, dim]`, without its first column.

    Raises:
      FoldsError: a value is no finite number; names the line and the column.
    """
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    if not rows:
        raise FoldsError(f"{path} holds no table")
    for line, row in enumerate(rows, start=2):
        for column, value in itertools.zip_longest(header[1:], row[1:], fillvalue=""):
            try:
                if not np.isfinite(float(value)):
                    raise ValueError
            except ValueError:
                raise FoldsError(f"{path}: line {line}: {column!r} is {value!r:.40}, no finite number") from None
        if len(row) != len(header):
            raise FoldsError(f"{path}: line {line} has {len(row)} columns, not {len(header)}")
    return np.array([row[1:] for row in rows], np.float64)


def _face_of(id: str, named: str | None, table: np.ndarray) -> np.ndarray:
    if named is None:
        return np.full(table.shape[1], np.nan)
    try:
        row = parse_json(named)["row"]
        if type(row) is not int or not 0 <= row < len(table):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        message = f"clip {id!r}: attribute visual_features is {named!r:.80}, the table has rows 0 to {len(table) - 1}"
        raise FoldsError(message) from None
    return table[row]


def deal(speakers: Iterable[tuple[str, str]], folds: int) -> dict[tuple[str, str], int]:
    """Deals speakers, (corpus, name), into folds: those of each corpus in turn, in the order of their names.

    Raises:
      FoldsError: a corpus has fewer speakers than there are folds.
    """
    dealt = {}
    for corpus, them in itertools.groupby(sorted(set(speakers)), key=lambda speaker: speaker[0]):
        them = list(them)
        if len(them) < folds:
            raise FoldsError(f"{corpus} has {len(them)} speakers, too few for {folds} folds")
        dealt |= {speaker: place % folds for place, speaker in enumerate(them)}
    return dealt


def z_scores(vectors: np.ndarray, groups: Sequence, counted: np.ndarray) -> np.ndarray:
    """Returns vectors `[N, dim]` less the mean of their group's counted ones, by their deviation."""
    moments: dict = {}
    for vector, group in zip(vectors[counted], itertools.compress(groups, counted)):
        moments.setdefault(group, Moments()).add(vector[None])
    return np.concatenate([moments[group].normalise(vector[None]) for vector, group in zip(vectors, groups)])


def features(clips: Clips, variant: str, train: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what the recipe reads in a variant, by name, float32 `[N, dim]`."""
    by = variant.removesuffix(",face")
    speakers = [(row["dataset"], row["speaker"]) if by == SPEAKER else () for row in clips.rows]
    counted = np.ones(len(speakers), bool) if by == SPEAKER else train
    found = {f"whisper-base-{by}-UTT": z_scores(clips.voice, speakers, counted)}
    if variant.endswith(",face"):
        seen = np.isfinite(clips.face).all(axis=1)
        scores = np.zeros(clips.face.shape, np.float32)
        scores[seen] = z_scores(clips.face[seen], list(itertools.compress(speakers, seen)), counted[seen])
        found[f"face-{by}-UTT"] = scores
    return found


def read_said(predictions: Path, ids: Iterable[str]) -> list[str | None]:
    """The first emotion that the captions of clips assert, from the file of a stage's predictions."""
    read = {row["id"]: row["reading"]["first_word"] for row in read_jsonl(predictions)}
    return [read[id] for id in ids]


def probe(clips: Clips, vectors: np.ndarray, tested: np.ndarray) -> list[str]:
    """What a linear probe of each corpus takes the tested clips for."""
    corpora, labels, speakers = (clips.column(name) for name in ("dataset", "label", "speaker"))
    said = np.empty(len(labels), object)
    for corpus in set(corpora[tested]):
        train, test = (corpora == corpus) & ~tested, (corpora == corpus) & tested
        said[test] = fit(vectors[train], labels[train], speakers[train]).predict(vectors[test])
    return list(said[tested])


def table(rows: Sequence[Mapping], said: Mapping[str, Sequence[str | None]], resamples: int = 1000) -> list[str]:
    """Unweighted average recall of each system by corpus, over all folds' clips, with intervals over speakers."""
    lines = [f"| | {PROBE} | " + " | ".join(f"{name} | {name} − probe" for name in said if name != PROBE) + " |"]
    lines.append("|---" + "|---:" * (2 * len(said) - 1) + "|")
    for corpus in sorted({row["dataset"] for row in rows}):
        places = [place for place, row in enumerate(rows) if row["dataset"] == corpus]
        gold, speakers = ([rows[place][key] for place in places] for key in ("label", "speaker"))
        classes = sorted({*gold, *(word for words in said.values() for word in words if word)})
        uar = {
            name: {"uar": recognition([words[place] for place in places], gold, classes).uar}
            for name, words in said.items()
        }
        cells = []
        for name, statistic in uar.items():
            cells.append(f"{statistic['uar'].value:.3f} {_interval(bootstrap(statistic, speakers, resamples)['uar'])}")
            if name != PROBE:
                difference = bootstrap_difference(statistic, uar[PROBE], speakers, resamples)["uar"]
                cells.append(f"{difference.value:+.3f} {_interval(difference.interval)}")
        lines.append(f"| {corpus}: {len(gold)} clips, {len(set(speakers))} speakers | {' | '.join(cells)} |")
    return lines


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else "[{:.3f}, {:.3f}]".format(*interval)
