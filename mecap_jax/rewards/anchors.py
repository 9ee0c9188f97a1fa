"""Emotion anchors: one unit vector an emotion in the space of a sentence encoder, and their file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from mecap_jax.data.checks import references
from mecap_jax.data.manifest import ClipRecord
from mecap_jax.data.utterance import Utterance
from mecap_jax.emotions import EMOTIONS
from mecap_jax.json_files import parse_json, to_json
from mecap_jax.models.checkpoints.safetensors_files import write_file
from mecap_jax.models.sentence_encoder import SentenceEncoder
from mecap_jax.rewards.base import normalise_text

SCHEMA_VERSION = 1
KINDS = ("captions", "templates")
_FORMAT = "mecap_jax.anchors"


class AnchorsError(ValueError):
    """Anchors that cannot be built, read or used; the message says what does not fit."""


@dataclasses.dataclass(frozen=True)
class Anchors:
    """Emotion anchors with their provenance.

    Attributes:
      labels: the K emotions.
      vectors: float32 [K, D], unit length: the normalised mean embedding of each emotion's sentences.
      text_mean: float32 [D], mean embedding of ordinary captions, for centring texts.
      encoder: name of the sentence encoder.
      encoder_sha256: SHA-256 of its weights.
      kind: "captions" (train captions) or "templates" (fixed sentences).
      source: where the sentences came from.
      counts: sentences behind each anchor.
    """

    labels: tuple[str, ...]
    vectors: np.ndarray
    text_mean: np.ndarray
    encoder: str
    encoder_sha256: str
    kind: str
    source: str
    counts: tuple[int, ...]

    def __post_init__(self):
        k = len(self.labels)

        def check(ok: bool, field: str, expected: str):
            if not ok:
                raise AnchorsError(f"anchors: {field!r} must be {expected}, got {getattr(self, field)!r:.80}")

        def is_strings(values: object) -> bool:
            return isinstance(values, tuple) and all(isinstance(value, str) and value for value in values)

        check(is_strings(self.labels) and 2 <= k == len(set(self.labels)), "labels", "two or more different names")
        check(
            self.vectors.dtype == np.float32 and self.vectors.ndim == 2 and len(self.vectors) == k,
            "vectors",
            f"float32 [{k}, D]",
        )
        check(
            bool(np.allclose(np.linalg.norm(self.vectors, axis=1), 1, atol=1e-4)),
            "vectors",
            "finite and of unit length",
        )
        dim = self.vectors.shape[1]
        check(self.text_mean.dtype == np.float32 and self.text_mean.shape == (dim,), "text_mean", f"float32 [{dim}]")
        check(bool(np.isfinite(self.text_mean).all()), "text_mean", "finite")
        for field in ("encoder", "encoder_sha256", "source"):
            check(isinstance(getattr(self, field), str), field, "a string")
        check(self.kind in KINDS, "kind", f"one of {KINDS}")
        check(
            isinstance(self.counts, tuple)
            and len(self.counts) == k
            and all(isinstance(count, int) and count > 0 for count in self.counts),
            "counts",
            f"{k} positive integers",
        )

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file: `vectors` and `text_mean`, the rest as JSON in its metadata."""
        about = dataclasses.asdict(self)
        tensors = {name: about.pop(name) for name in ("vectors", "text_mean")}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        metadata = {"format": _FORMAT, "version": str(SCHEMA_VERSION), "anchors": to_json(about)}
        write_file(Path(path), tensors, metadata)

    @classmethod
    def load(cls, path: str | Path) -> Anchors:
        """Reads and checks what `save` wrote.

        Raises:
          AnchorsError: no such file, no anchors file, another version, ill-formed contents; names the file.
        """
        if not Path(path).is_file():
            raise AnchorsError(f"no such anchors file: {path}")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}
        except SafetensorError as error:
            raise AnchorsError(f"{path} is no anchors file: {error}") from error
        found, expected = (metadata.get("format"), metadata.get("version")), (_FORMAT, str(SCHEMA_VERSION))
        if found != expected:
            raise AnchorsError(f"{path} has format and version {found}, this code reads {expected}")
        try:
            about = parse_json(metadata["anchors"])
            return cls(**tensors, **{k: tuple(v) if isinstance(v, list) else v for k, v in about.items()})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise AnchorsError(f"{path} is ill-formed: {error}") from error


def build_anchors(
    encoder: SentenceEncoder,
    sentences: Mapping[str, Sequence[str]],
    *,
    kind: str,
    source: str,
    texts: Sequence[str] = (),
) -> Anchors:
    """Returns a_k = normalise(mean of E(s) over the sentences s of emotion k), in the order of `sentences`.

    Args:
      encoder: the sentence encoder E.
      sentences: sentences by emotion; for kind "captions" these must be train captions, never held-out ones.
      kind: "captions" or "templates".
      source: provenance, kept in the file.
      texts: what `text_mean` is the mean of; by default the sentences themselves.

    Raises:
      AnchorsError: fewer than two emotions, an emotion without sentences, sentences that cancel out.
    """
    empty = [label for label, group in sentences.items() if not group]
    if empty:
        raise AnchorsError(f"no {kind} for the emotions {empty} in {source}")
    every = [normalise_text(text) for group in sentences.values() for text in group]
    embeddings = encoder.encode(every).astype(np.float64)
    bounds = np.cumsum([len(group) for group in sentences.values()])
    means = np.stack([group.mean(axis=0) for group in np.split(embeddings, bounds[:-1])])
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    if not (norms > 1e-6).all():
        raise AnchorsError(f"the sentences of an emotion cancel out in {source}")
    if texts:
        embeddings = encoder.encode([normalise_text(text) for text in texts]).astype(np.float64)
    return Anchors(
        labels=tuple(sentences),
        vectors=(means / norms).astype(np.float32),
        text_mean=embeddings.mean(axis=0).astype(np.float32),
        encoder=encoder.name,
        encoder_sha256=encoder.weights_sha256,
        kind=kind,
        source=source,
        counts=tuple(len(group) for group in sentences.values()),
    )


def captions_by_label(utterances: Iterable[Utterance | ClipRecord], split: str, target: str) -> dict[str, list[str]]:
    """Returns the captions of kind `target` in `split`, by the multimodal label of their clips.

    The labels come in the order of `EMOTIONS`, then alphabetically. Clips without a label or a caption are left out.
    """
    groups: dict[str, list[str]] = {}
    for utterance in utterances:
        captions = references(utterance, target)
        if utterance.split == split and utterance.label is not None and captions:
            groups.setdefault(utterance.label, []).extend(captions)
    order = {label: i for i, label in enumerate(EMOTIONS)}
    return {label: groups[label] for label in sorted(groups, key=lambda label: (order.get(label, len(order)), label))}


def check_encoder(anchors: Anchors, encoder: SentenceEncoder) -> None:
    """Refuses anchors that another encoder built: their coordinates would mean nothing.

    Raises:
      AnchorsError: names both encoders and both hashes.
    """
    if anchors.encoder_sha256 != encoder.weights_sha256 or anchors.vectors.shape[1] != encoder.dim:
        raise AnchorsError(
            f"the anchors were built with encoder {anchors.encoder!r} (weights {anchors.encoder_sha256}, "
            f"dim {anchors.vectors.shape[1]}), but the encoder is {encoder.name!r} (weights {encoder.weights_sha256}, "
            f"dim {encoder.dim}); rebuild them with scripts/build_anchors.py"
        )
