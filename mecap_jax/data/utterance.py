"""The record that flows through the project: one utterance with its media, labels and captions.

An `Utterance` is what importers write into shards and what the pipeline reads back. Media stay encoded, as they
came; decoding happens in the pipeline. Serialisation is msgpack with an explicit schema: nothing executable is ever
stored, and every field is checked when it is read back, because a shard is hostile until parsed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

SCHEMA_VERSION = 1
SPLITS = ("train", "validation", "test")
MODALITIES = ("text", "audio", "video", "multimodal")
CAPTION_KINDS = ("emotion", "style", "speaker", "overall")
_FEATURE_DTYPES = ("float16", "float32")


class UtteranceError(ValueError):
    """A record that does not follow the schema; the message names the utterance and the field."""


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One clip of somebody speaking.

    Attributes:
      id: unique within its dataset.
      dataset: name of the corpus.
      split: "train", "validation" or "test".
      speaker: speaker id; splits and bootstrap intervals go by it.
      dialogue: dialogue id, where the corpus has dialogues.
      audio: an encoded audio file (wav, flac, ogg, mp3), byte for byte, or None.
      video: an encoded video file (mp4, mkv, webm), or None. Its sound track is the audio where `audio` is None.
      features: precomputed features by name, each float16 or float32 `[frames, dim]` (one frame per utterance or many).
      transcript: what was said.
      language: BCP-47 code of the speech ("en", "zh"), "" where it is not known.
      labels: emotion label by modality ("text", "audio", "video", "multimodal"); modalities may disagree.
      valence: continuous valence in [-2, 2] (EmotionTalk's scale), where annotated.
      captions: references by kind ("emotion", "style", "speaker", "overall").
      rationale: an explanation of the label, where the corpus has one.
      attributes: what else is known ("gender", "intensity", ...), as strings.
      licence: SPDX identifier or name of the licence of the media.
    """

    id: str
    dataset: str
    split: str
    speaker: str
    dialogue: str | None = None
    audio: bytes | None = None
    video: bytes | None = None
    features: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    transcript: str = ""
    language: str = "en"
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    valence: float | None = None
    captions: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    rationale: str | None = None
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    licence: str = ""

    def __post_init__(self):
        def check(ok: bool, field: str, expected: str):
            if not ok:
                raise UtteranceError(
                    f"utterance {self.id!r}: field {field!r} must be {expected}, got {getattr(self, field)!r:.80}"
                )

        check(_is_text(self.id) and bool(self.id), "id", "a non-empty string")
        for field in ("dataset", "speaker", "transcript", "language", "licence"):
            check(_is_text(getattr(self, field)), field, "a string of Unicode characters")
        check(self.split in SPLITS, "split", f"one of {SPLITS}")
        for field in ("dialogue", "rationale"):
            check(getattr(self, field) is None or _is_text(getattr(self, field)), field, "a string or None")
        for field in ("audio", "video"):
            check(getattr(self, field) is None or isinstance(getattr(self, field), bytes), field, "bytes or None")
        check(self.valence is None or isinstance(self.valence, float), "valence", "a float or None")
        check(
            _is_string_map(self.labels) and set(self.labels) <= set(MODALITIES),
            "labels",
            f"strings keyed by {MODALITIES}",
        )
        check(_is_string_map(self.attributes), "attributes", "strings keyed by strings")
        check(
            isinstance(self.captions, Mapping)
            and set(self.captions) <= set(CAPTION_KINDS)
            and all(
                isinstance(refs, tuple) and all(_is_text(r) and r for r in refs) for refs in self.captions.values()
            ),
            "captions",
            f"tuples of non-empty strings keyed by {CAPTION_KINDS}",
        )
        check(
            isinstance(self.features, Mapping)
            and all(
                _is_text(name) and isinstance(x, np.ndarray) and x.ndim == 2 and x.dtype.name in _FEATURE_DTYPES
                for name, x in self.features.items()
            ),
            "features",
            f"arrays [frames, dim] of {_FEATURE_DTYPES} keyed by name",
        )

    @property
    def label(self) -> str | None:
        """The multimodal emotion label, or None where there is none."""
        return self.labels.get("multimodal")


def _is_text(value: Any) -> bool:
    """Whether it is a string that UTF-8 can write: half a surrogate pair is JSON, but no text."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_string_map(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_is_text(k) and _is_text(v) for k, v in value.items())


def serialize(utterance: Utterance) -> bytes:
    """Packs an utterance into msgpack bytes."""
    record: dict[str, Any] = {f.name: getattr(utterance, f.name) for f in dataclasses.fields(utterance)}
    record["features"] = {
        name: {"dtype": x.dtype.name, "shape": list(x.shape), "data": np.ascontiguousarray(x).tobytes()}
        for name, x in utterance.features.items()
    }
    record["captions"] = {kind: list(refs) for kind, refs in utterance.captions.items()}
    record["labels"] = dict(utterance.labels)
    record["attributes"] = dict(utterance.attributes)
    return msgpack.packb({"schema": SCHEMA_VERSION, **record}, use_bin_type=True)


def deserialize(data: bytes) -> Utterance:
    """Unpacks and checks what `serialize` wrote.

    Raises:
      UtteranceError: not msgpack, another schema version, a missing, unknown or ill-typed field.
    """
    try:
        record = msgpack.unpackb(data, raw=False, strict_map_key=True)
    except Exception as error:  # msgpack raises half a dozen unrelated types on hostile input
        raise UtteranceError(f"record is not valid msgpack: {error}") from error
    if not isinstance(record, dict):
        raise UtteranceError(f"record must be a map, got {type(record).__name__}")
    version = record.pop("schema", None)
    if version != SCHEMA_VERSION:
        raise UtteranceError(f"record has schema version {version!r}, this code reads version {SCHEMA_VERSION}")
    expected = {f.name for f in dataclasses.fields(Utterance)}
    if set(record) != expected:
        missing, unknown = sorted(expected - set(record)), sorted(set(record) - expected)
        raise UtteranceError(f"record {record.get('id')!r}: missing fields {missing}, unknown fields {unknown}")
    try:
        record["features"] = {name: _unpack_array(spec) for name, spec in record["features"].items()}
        record["captions"] = {kind: tuple(refs) for kind, refs in record["captions"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UtteranceError(f"record {record.get('id')!r}: ill-formed features or captions: {error}") from error
    return Utterance(**record)


def _unpack_array(spec: Mapping[str, Any]) -> np.ndarray:
    if spec["dtype"] not in _FEATURE_DTYPES:
        raise ValueError(f"feature dtype {spec['dtype']!r} is not one of {_FEATURE_DTYPES}")
    return np.frombuffer(spec["data"], dtype=spec["dtype"]).reshape(spec["shape"])
