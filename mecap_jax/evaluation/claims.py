"""Is what a text claims true of what was rendered? For the synthetic corpus, where the truth is known.

A caption or rationale in the words of the corpus makes claims: how fast, high and loud the voice is, what brows and
mouth do, which emotion is shown. Each is compared with the parameters that the clip was made from, which stand in its
attributes. No reward reads these.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from mecap_jax.data.manifest import ClipRecord
from mecap_jax.data.synthetic import chinese, english
from mecap_jax.data.synthetic.corpus import DATASET as SYNTHETIC
from mecap_jax.data.synthetic.facts import LEVEL_WORDS
from mecap_jax.emotion_words import first_emotion_word
from mecap_jax.evaluation.intervals import Statistic, mean
from mecap_jax.rewards.sentences import split_sentences

ASPECTS = ("tempo", "pitch", "loudness", "brows", "mouth", "emotion")
AT_REST = "at rest"

Claim = tuple[str, str]  # aspect, value

_GRAMMARS = {"en": english, "zh": chinese}
_LEANINGS: Mapping[str, Claim] = {
    "low": ("pitch", "low"),
    "high": ("pitch", "high"),
    "quiet": ("loudness", "low"),
    "loud": ("loudness", "high"),
}
_REST = {"eyebrows": "brows", "眉毛": "brows", "a relaxed mouth": "mouth", "嘴角放松": "mouth"}
_PLAIN = {"medium-pitched": "pitch", "音调居中": "pitch", "音量正常": "loudness"}


def claims_of(text: str, language: str) -> list[Claim]:
    """Returns the claims of a text in the words of the corpus's grammar, each once.

    Values are "low", "medium" or "high" for tempo, pitch and loudness (slow is low, quiet is low), features of the face
    as in `facts`, or `AT_REST`, for brows and mouth, and labels for the emotion: of each sentence that which it names
    first.
    """
    words, pattern = _wordings(language)
    claims = [words[match.group().lower()] for match in pattern.finditer(text)]
    claims = [claim for claim in claims if claim[0] in ASPECTS]
    named = [first_emotion_word(sentence) for sentence in split_sentences(text)]
    return list(dict.fromkeys([*claims, *(("emotion", emotion) for emotion in named if emotion)]))


def is_true(claim: Claim, attributes: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a claim is true of a clip of the corpus; nothing is true of a face or a voice that is not there.

    An emotion is true where voice, face or both together show it.
    """
    aspect, value = claim
    if aspect == "emotion":
        return value in (labels.get(modality) for modality in ("audio", "video", "multimodal"))
    if aspect in LEVEL_WORDS:
        if aspect not in attributes:
            return False
        level = LEVEL_WORDS[aspect].index(attributes[aspect]) - 2
        return value == ("medium" if level == 0 else "high" if level > 0 else "low")
    if "face" not in attributes:
        return False
    visible = {name for name in attributes["face"].split(", ") if _aspect_of_face(name) == aspect}
    return value in visible or (value == AT_REST and not visible)


def claims_where_known(texts: Sequence[str], records: Sequence[ClipRecord], language: str) -> dict[str, Statistic]:
    """Returns `claim_accuracy` of one text a clip of the synthetic corpus, where the truth is known; else nothing."""
    if {record.dataset for record in records} != {SYNTHETIC} or language not in _GRAMMARS:
        return {}
    return claim_accuracy(texts, [(record.attributes, record.labels) for record in records], language)


def claim_accuracy(
    texts: Sequence[str], records: Sequence[tuple[Mapping[str, str], Mapping[str, str]]], language: str
) -> dict[str, Statistic]:
    """Returns how true texts are, by key.

    Keys: `claims_true`, the mean over clips of the share of a text's claims that are true, 0 for a text that claims
    nothing; `claims`, their number a text; `claims_true/ASPECT`, the share of true claims among all of that aspect.

    Args:
      texts: one a clip; empty where an answer could not be parsed.
      records: attributes and labels of each clip.
      language: of the texts, "en" or "zh".

    Raises:
      ValueError: lengths differ.
    """
    if len(texts) != len(records):
        raise ValueError(f"{len(texts)} texts for {len(records)} clips")
    counts = np.zeros((len(texts), len(ASPECTS), 2))  # true claims, claims
    for i, (text, (attributes, labels)) in enumerate(zip(texts, records)):
        for claim in claims_of(text, language):
            counts[i, ASPECTS.index(claim[0])] += is_true(claim, attributes, labels), 1
    true, every = counts.sum(axis=1).T
    by_aspect = {f"claims_true/{aspect}": Statistic(counts[:, k], _share) for k, aspect in enumerate(ASPECTS)}
    return {"claims_true": mean(true / np.maximum(every, 1)), "claims": mean(every), **by_aspect}


def _share(sums: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return sums[..., 0] / sums[..., 1]


@functools.cache
def _wordings(language: str) -> tuple[dict[str, Claim], re.Pattern[str]]:
    """Returns the claim by wording, and a pattern of all wordings, longest first: "raised eyebrows" is not "raised"."""
    grammar = _GRAMMARS[language]
    said: dict[str, Claim] = {}
    for level, wordings in grammar.TEMPO.items():
        value = "medium" if level == 0 else "high" if level > 0 else "low"
        said |= dict.fromkeys(wordings, ("tempo", value))
    for name, claim in _LEANINGS.items():
        said |= dict.fromkeys([word for words in grammar.VOICE[name] for word in words], claim)
    for name, both in grammar.FACE.items():
        said |= dict.fromkeys([word for words in both for word in words], (_aspect_of_face(name), name))
    for part, aspect in _REST.items():
        wordings = [word for words in grammar.FACE_AT_REST for word in words if part in word]
        said |= dict.fromkeys(wordings, (aspect, AT_REST))
    said |= {wording: (_PLAIN[wording], "medium") for wording in grammar.PLAIN_VOICE if wording in _PLAIN}
    ordered = sorted(said, key=len, reverse=True)
    boundary = r"\b" if language == "en" else ""
    pattern = re.compile(boundary + "(?:" + "|".join(map(re.escape, ordered)) + ")" + boundary, re.IGNORECASE)
    return said, pattern


def _aspect_of_face(name: str) -> str:
    if name.startswith("brows"):
        return "brows"
    return "mouth" if name.partition(" ")[0] in ("smile", "mouth", "lips", "lip", "teeth", "jaw") else "other"
