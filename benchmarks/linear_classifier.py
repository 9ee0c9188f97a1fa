"""The linear classifier that captioners of features are held against."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mecap_jax.data.manifest import ClipRecord
from mecap_jax.data.shards import ShardError, ShardReader

_STRENGTHS = tuple(10.0**power for power in range(-4, 2))  # of scikit-learn's C, the inverse of the penalty
_FOLDS = 5


def fit(x: np.ndarray, y: np.ndarray, speakers: np.ndarray) -> GridSearchCV:
    """Returns the classifier of vectors `[N, dim]`, with the penalty that serves speakers best that it has not seen."""
    folds = GroupKFold(min(_FOLDS, len(set(speakers))))
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    search = GridSearchCV(classifier, {"logisticregression__C": _STRENGTHS}, scoring="recall_macro", cv=folds)
    return search.fit(x, y, groups=speakers)


class Row(NamedTuple):
    """What was found of a corpus: the clips and speakers tested, unweighted average recalls of probe and majority."""

    corpus: str
    trained: int
    clips: int
    speakers: int
    labels: int
    strength: float
    uar: float
    majority_uar: float


def probe(reader: ShardReader, features: Sequence[str]) -> list[Row]:
    """Trains and tests a probe for each corpus that has labelled clips with the features in both splits.

    Raises:
      ShardError: there is none.
    """
    held_out = "test" if any(row.split == "test" for row in reader.index) else "validation"
    clips: dict[tuple[str, str], list[tuple[ClipRecord, np.ndarray]]] = {}
    for number, row in enumerate(reader.index):
        if "multimodal" in row.labels and all(name in row.features for name in features):
            held = reader[number].features
            vector = np.concatenate([held[name].mean(axis=0) for name in features])
            clips.setdefault((row.dataset, row.split), []).append((row, vector))
    corpora = [corpus for corpus, split in clips if split == "train" and (corpus, held_out) in clips]
    if not corpora:
        names = ", ".join(features)
        raise ShardError(f"{reader.directory}: no labelled clips with features {names} in train and {held_out}")
    return [_probe(corpus, clips[corpus, "train"], clips[corpus, held_out]) for corpus in corpora]


def _probe(corpus: str, train: list, tested: list) -> Row:
    x, y, speakers = _arrays(train)
    unseen, truth, tested_speakers = _arrays(tested)
    search = fit(x, y, speakers)
    return Row(
        corpus=corpus,
        trained=len(y),
        clips=len(truth),
        speakers=len(set(tested_speakers)),
        labels=len(set(truth)),
        strength=search.best_params_["logisticregression__C"],
        uar=float(recall_score(truth, search.predict(unseen), labels=sorted(set(truth)), average="macro")),
        majority_uar=1 / len(set(truth)),  # one class has a recall of 1, the others have 0
    )


def _arrays(clips: list[tuple[ClipRecord, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns features `[N, dim]`, labels `[N]` and speakers `[N]`."""
    rows, vectors = zip(*clips, strict=True)
    return (
        np.stack(vectors),
        np.array([row.labels["multimodal"] for row in rows]),
        np.array([row.speaker for row in rows]),
    )
