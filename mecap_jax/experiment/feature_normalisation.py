"""Features of clips as they differ from those of the same speaker, or of the training clips: z-scores, as files.

Voices and faces differ more from person to person than from emotion to emotion. Where several clips of a person are
known, labelled or not, the mean and the standard deviation of that person's features can be taken out, as is usual in
speech emotion recognition (Busso, Mariooryad, Metallinou and Narayanan 2013, IEEE Trans. Affective Computing 4:386).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mecap_jax.data.importers import open_source
from mecap_jax.data.importers.feature_files import DIRECTORY
from mecap_jax.data.inspection import Pending, read
from mecap_jax.data.manifest import BadClip
from mecap_jax.data.utterance import Utterance
from mecap_jax.experiment.feature_extraction import (
    RECORD,
    Extracted,
    check_name,
    lock_file,
    names_a_file,
    refuse_links,
    write_whole,
)
from mecap_jax.json_files import read_json_object, write_json
from mecap_jax.locking import locked
from mecap_jax.text_files import printable
from mecap_jax.training.logging import RunLogger

SPEAKER, TRAIN = "speaker", "train"
_KINDS = ("-UTT", "-FRA")
_LEAST = 1e-6  # of a standard deviation: what varies less is a constant, which says nothing


class NormalisationError(ValueError):
    """Features that cannot be normalised; the message names the clip, or the directory."""


def normalise(
    root: Path,
    feature: str,
    by: str,
    logger: RunLogger,
    *,
    source: str = "folder",
    name: str = "",
    allow_outside: bool = False,
) -> tuple[Path, list[Extracted]]:
    """Writes z-scores of the features called `feature` of all clips; returns where, and what became of each clip.

    Clips are read twice: before the first file is written, all are known to fit.

    Args:
      root: the raw files; features are found, and written, in its directory of features.
      by: `SPEAKER`: mean and deviation are those of the clips of one speaker of a corpus. `TRAIN`: of all clips of that
        split; nothing is taken from others.
      source: a key of `IMPORTERS`.
      name: of the result, without the ending; "" makes one of `feature` and `by`.
      allow_outside: links and paths out of `root` are followed.

    Raises:
      NormalisationError: a clip cannot be read, lacks the features or has them in another width; a speaker has one clip
        only; or there are other features of that name.
      EncoderError: a name that is none, or a link that leads out of `root`.
      ImporterError: no such input.
      LockedError: another process writes there.
    """
    kind = next((kind for kind in _KINDS if feature.endswith(kind)), None)
    if kind is None or feature == kind:
        raise NormalisationError(f"--feature: {feature!r:.80} ends in none of {', '.join(_KINDS)}")
    base = name or f"{feature.removesuffix(kind)}-{by}"
    check_name(base)
    clips = open_source(source, root, allow_outside)
    moments, checksum = _measure(clips, feature, by)
    output = root / DIRECTORY
    directory = output / f"{base}{kind}"
    if not allow_outside:
        refuse_links(root, output, base)
    with locked(lock_file(output, base), str(directory)):
        _open(directory, {"normalised": feature, "by": by, "sha256": checksum})
        found = []
        with logger.progress(f"{printable(feature)} by {by}", len(clips)) as progress:
            for clip, vectors in _features(clips, feature):
                path = directory / f"{clip.id}.npy"
                made = not path.is_file()
                if made:
                    scores = moments[_group(clip, by)].normalise(vectors)
                    np.save(data := io.BytesIO(), scores[0] if kind == "-UTT" else scores, allow_pickle=False)
                    write_whole(path, data.getvalue())
                found.append(Extracted(clip.id, made))
                progress(len(found), {})
    return directory, found


@dataclasses.dataclass
class Moments:
    """Mean and squared deviations of vectors that are seen a few at a time (Chan, Golub and LeVeque 1983)."""

    clips: int = 0
    vectors: int = 0
    mean: np.ndarray | float = 0.0
    squares: np.ndarray | float = 0.0

    def add(self, vectors: np.ndarray) -> None:
        """Adds the vectors `[N, dim]` of a clip."""
        vectors = vectors.astype(np.float64)
        mean, count, before = vectors.mean(axis=0), len(vectors), self.vectors
        self.clips, self.vectors = self.clips + 1, before + count
        away = mean - self.mean
        self.squares = self.squares + ((vectors - mean) ** 2).sum(axis=0) + away**2 * before * count / self.vectors
        self.mean = self.mean + away * count / self.vectors

    def normalise(self, vectors: np.ndarray) -> np.ndarray:
        """Returns z-scores float32 `[N, dim]`; of a number that is always the same, 0."""
        deviation = np.sqrt(self.squares / self.vectors)
        varies = deviation > _LEAST * np.maximum(np.abs(self.mean), _LEAST)
        return np.where(varies, (vectors - self.mean) / np.where(varies, deviation, 1.0), 0.0).astype(np.float32)


def _measure(clips: Sequence[Pending], feature: str, by: str) -> tuple[Mapping[tuple[str, ...], Moments], str]:
    """Returns the moments of each group of clips, and a checksum of all that they and the groups were made of."""
    moments: dict[tuple[str, ...], Moments] = {}
    last: dict[tuple[str, ...], str] = {}
    digest, first = hashlib.sha256(), None
    for clip, vectors in _features(clips, feature):
        first = first or (clip.id, vectors.shape[1])
        if vectors.shape[1] != first[1]:
            raise NormalisationError(
                f"clip {clip.id!r}: {feature!r} has a width of {vectors.shape[1]}, and of {first[1]} in {first[0]!r}"
            )
        group = _group(clip, by)
        digest.update(repr((clip.id, group, clip.split, vectors.shape)).encode() + vectors.tobytes())
        if by == SPEAKER or clip.split == TRAIN:
            moments.setdefault(group, Moments()).add(vectors)
            last[group] = clip.id
    if not moments:
        raise NormalisationError(f"there are no {'train clips' if first else 'clips'} with features {feature!r}")
    for group, found in moments.items():
        if found.clips < 2:
            whose = f"the only one of {' '.join(group)}" if by == SPEAKER else "the only train clip"
            raise NormalisationError(f"clip {last[group]!r} is {whose}: there is nothing to compare it with")
    return moments, digest.hexdigest()


def _open(directory: Path, wanted: Mapping[str, str]) -> None:
    """Makes the directory of normalised features, and says in it what they are made of."""
    if (directory / RECORD).is_file() or any(directory.glob("*.npy")):
        try:
            found = read_json_object(directory / RECORD)
        except (OSError, ValueError) as error:
            raise NormalisationError(f"{directory} holds features, and not how they were made: {error}") from None
        if found != wanted:
            raise NormalisationError(
                f"{directory} holds features that were made otherwise, or of other clips; remove it, or choose another "
                f"--name ({RECORD}: {found}; asked: {wanted})"
            )
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / RECORD, wanted)


def _group(clip: Utterance, by: str) -> tuple[str, ...]:
    return (clip.dataset, clip.speaker) if by == SPEAKER else ()


def _features(clips: Sequence[Pending], feature: str) -> Iterator[tuple[Utterance, np.ndarray]]:
    """Reads clips one by one: an utterance, and its features `[N, dim]`. Copies of others are passed over."""
    for clip in map(read, clips):
        if isinstance(clip, BadClip):
            raise NormalisationError(f"clip {clip.id!r}: {clip.reason}")
        if isinstance(clip, Utterance):
            if feature not in clip.features:
                raise NormalisationError(
                    f"clip {clip.id!r} lacks the features {feature!r}; it has {sorted(clip.features)}"
                )
            if not names_a_file(clip.id):
                raise NormalisationError(f"clip {clip.id!r}: its id is no name of a file")
            vectors = clip.features[feature]
            if feature.endswith("-UTT") and len(vectors) != 1:
                raise NormalisationError(f"clip {clip.id!r}: {feature!r} has {len(vectors)} vectors, not one")
            yield clip, vectors
