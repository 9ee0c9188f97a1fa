"""Does an answer begin with the modality that says more about the emotion? (MIGR, arXiv 2512.02699)"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mecap_jax.rewards.base import Sample

_DESCRIBES = {"vis_desc": "video", "aud_desc": "audio"}
DESCRIPTIONS = tuple(_DESCRIBES)


def dominant_modality(labels: Mapping[str, str]) -> str | None:
    """Returns which modality shows the clip's emotion: "audio", "video" or "both"; None where that cannot be said.

    Args:
      labels: emotion by modality; where only one of sound and picture bears the multimodal label, it dominates.
    """
    emotion, heard, seen = (labels.get(modality) for modality in ("multimodal", "audio", "video"))
    if emotion is None or heard is None or seen is None or emotion not in (heard, seen):
        return None
    return "both" if heard == seen else "audio" if heard == emotion else "video"


def modality_order(fields: Iterable[str], dominant: str | None) -> float | None:
    """Returns 1 where the dominant modality is described first, 0.5 in either order where both dominate, else -1.

    Args:
      fields: the names of the answer's blocks as they stood; none for a malformed answer, which earns -1.
      dominant: "audio", "video" or "both"; where it is None, so is the value.
    """
    if dominant is None:
        return None
    first = next((_DESCRIBES[name] for name in fields if name in _DESCRIBES), None)
    if first is None:
        return -1.0
    return 0.5 if dominant == "both" else 1.0 if first == dominant else -1.0


class ModalityOrderReward:
    """`modality_order` of an answer that describes what is heard and what is seen; None where the clip's labels do not
    say which of them shows the emotion."""

    name = "modality_order"

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [
            modality_order(sample.fields, dominant_modality(sample.record.labels if sample.record else {}))
            for sample in samples
        ]
