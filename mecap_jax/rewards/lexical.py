"""Rewards by words: ROUGE-L and CIDEr-D, numerically those of `pycocoevalcap` on the same tokens, and fluency.

Evaluation takes the first two from the library itself. A reward cannot: the library's CIDEr-D counts document
frequencies in the batch that it scores instead of in the training captions, and its ROUGE-L takes 45 times as long for
a caption.
"""

from __future__ import annotations

import collections
import functools
import itertools
import math
import re
from collections.abc import Iterable, Sequence

from mecap_jax.data.language import MARKS, UNSPACED
from mecap_jax.rewards.base import Sample, normalise_text

_IN_WORDS = rf"(?:(?![_{UNSPACED}])[\w{MARKS}])"
_TOKEN = re.compile(rf"[{UNSPACED}]|{_IN_WORDS}+(?:['-]{_IN_WORDS}+)*")


def tokenize(text: str) -> list[str]:
    """Returns the lower-case words of `text`, without punctuation; scripts without blanks (Chinese) by character.

    Apostrophes and hyphens inside a word belong to it ("isn't", "matter-of-fact").
    """
    return _TOKEN.findall(normalise_text(text).replace("’", "'"))


# --- ROUGE-L ------------------------------------------------------------------------------------------------------

_BETA = 1.2


def rouge_l(completion: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L F-measure with beta 1.2 (Lin 2004), in [0, 1].

    As in `pycocoevalcap`, precision and recall are each taken from the reference where they are best. Without a token
    or a reference the value is 0.
    """
    pairs = [(longest_common_subsequence(completion, reference), len(reference)) for reference in references]
    precision = max((common / len(completion) for common, _ in pairs if completion), default=0.0)
    recall = max((common / length for common, length in pairs if length), default=0.0)
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyrö 2004): one big-integer step a token of `b`."""
    positions: dict[str, int] = {}
    for i, token in enumerate(a):
        positions[token] = positions.get(token, 0) | 1 << i
    everywhere = (1 << len(a)) - 1
    row = everywhere
    for token in b:
        matches = row & positions.get(token, 0)
        row = ((row + matches) | (row - matches)) & everywhere
    return len(a) - row.bit_count()


class RougeLReward:
    """ROUGE-L against the references; None for a sample without references.

    Args:
      over: "best" takes precision and recall where they are best, as the metric does; "mean" averages over references.

    Raises:
      ValueError: another `over`.
    """

    name = "rouge_l"

    def __init__(self, over: str = "best"):
        if over not in ("best", "mean"):
            raise ValueError(f"over must be best or mean, got {over!r}")
        self._by_itself = over == "mean"

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [self._score(sample) if sample.references else None for sample in samples]

    def _score(self, sample: Sample) -> float:
        completion, references = tokenize(sample.completion), [_tokenize_reference(text) for text in sample.references]
        parts = [[reference] for reference in references] if self._by_itself else [references]
        return sum(rouge_l(completion, part) for part in parts) / len(parts)


# --- Fluency ------------------------------------------------------------------------------------------------------


class FluencyReward:
    """The share of a completion's pairs of neighbouring words, beginning and end included, that training captions have.

    In [0, 1]. Words that are none, a list of labels, a sentence that stops in the middle or a word put where it does
    not belong cost a pair or two each; how likely a pair is does not matter, so that usual phrases earn no more than
    rare ones. Chinese counts by character.

    Args:
      train_references: the references of each training clip.
    """

    name = "fluency"

    def __init__(self, train_references: Iterable[Sequence[str]]):
        self._known = {pair for references in train_references for text in references for pair in _pairs(text)}

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [self._share(_pairs(sample.completion)) for sample in samples]

    def _share(self, pairs: list[tuple[str, str]]) -> float:
        return sum(pair in self._known for pair in pairs) / len(pairs)


def _pairs(text: str) -> list[tuple[str, str]]:
    return list(itertools.pairwise(["", *tokenize(text), ""]))


# --- CIDEr-D ------------------------------------------------------------------------------------------------------

_ORDER = 4
_SIGMA = 6.0
_NGram = tuple[str, ...]
# Per n-gram order: weights and their Euclidean norm; then the length.
_Vector = tuple[list[dict[_NGram, float]], list[float], int]


class CiderD:
    """CIDEr-D (Vedantam et al., arXiv 1411.5726) with n up to 4 and sigma 6; the scale is 0 to 10.

    Args:
      documents: the tokenised references of each training clip; document frequencies come from these alone. A clip
        without references is no document.

    Raises:
      ValueError: fewer than two documents, for which every inverse document frequency is zero.
    """

    def __init__(self, documents: Iterable[Sequence[Sequence[str]]]):
        self._frequency: collections.Counter[_NGram] = collections.Counter()
        count = 0
        for references in filter(None, documents):
            count += 1
            self._frequency.update({ngram for reference in references for ngram in _ngrams(reference)})
        if count < 2:
            raise ValueError(f"CIDEr-D needs the references of at least two clips, got {count}")
        self._log_count = math.log(count)
        self._reference_vector = functools.lru_cache(maxsize=65536)(self._vector)

    def __call__(self, completion: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """Returns the score of tokens against a clip's tokenised references, their mean; 0 without references."""
        if not references:
            return 0.0
        vector = self._vector(tuple(completion))
        similarities = [_similarity(vector, self._reference_vector(tuple(reference))) for reference in references]
        return 10 * sum(similarities) / len(similarities)

    def _vector(self, tokens: _NGram) -> _Vector:
        weights: list[dict[_NGram, float]] = [{} for _ in range(_ORDER)]
        for ngram, count in _ngrams(tokens).items():
            weight = count * (self._log_count - math.log(max(1, self._frequency[ngram])))
            weights[len(ngram) - 1][ngram] = weight
        norms = [math.sqrt(sum(weight**2 for weight in row.values())) for row in weights]
        # pycocoevalcap measures the length in bigrams.
        return weights, norms, max(len(tokens) - 1, 0)


def _similarity(hypothesis: _Vector, reference: _Vector) -> float:
    """Clipped cosine of two vectors, averaged over the orders, with the Gaussian penalty on their lengths."""
    total = 0.0
    for row, row_norm, other, other_norm in zip(hypothesis[0], hypothesis[1], reference[0], reference[1]):
        if row_norm and other_norm:
            product = sum(min(weight, other[ngram]) * other[ngram] for ngram, weight in row.items() if ngram in other)
            total += product / (row_norm * other_norm)
    difference = hypothesis[2] - reference[2]
    return total / _ORDER * math.exp(-(difference**2) / (2 * _SIGMA**2))


def _ngrams(tokens: Sequence[str]) -> collections.Counter[_NGram]:
    tokens = tuple(tokens)
    return collections.Counter(tokens[i : i + n] for n in range(1, _ORDER + 1) for i in range(len(tokens) - n + 1))


class CiderDReward:
    """CIDEr-D against the references, 0 to 10; None for a sample without references.

    Args:
      train_references: the references of each training clip.
    """

    name = "cider_d"

    def __init__(self, train_references: Iterable[Sequence[str]]):
        self._score = CiderD([tokenize(text) for text in references] for references in train_references)

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [
            self._score(tokenize(sample.completion), [_tokenize_reference(text) for text in sample.references])
            if sample.references
            else None
            for sample in samples
        ]


@functools.lru_cache(maxsize=65536)
def _tokenize_reference(text: str) -> tuple[str, ...]:
    return tuple(tokenize(text))
