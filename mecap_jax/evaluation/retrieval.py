"""Retrieval as a judge of captions: does a caption pick its own clip's references, rather than those of other emotions?

It sees n-grams alone, so it depends on no sentence encoder, and therefore on nothing that the reward is made of.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import scipy.sparse

from mecap_jax.data.language import CHARACTER, WORD, is_unspaced
from mecap_jax.evaluation.intervals import Statistic, mean

_ORDERS = (1, 2, 3, 4)
_BLOCK = 256  # captions that are compared at once


def retrieval(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    gold: Sequence[str | None],
    languages: Sequence[str],
) -> Statistic:
    """How often a caption is more like its own references than like those of a clip of another emotion.

    The share of such clips, a tie counting one half, mean over the captions of labelled clips: .5 is chance, for an
    empty caption, too. Likeness is the cosine between n-grams weighted by inverse document frequency as in CIDEr
    (Vedantam et al. 2015; a clip's references are a document), mean over n = 1 to 4 and over a clip's references. A
    clip whose language no other emotion has is left out.

    Args:
      captions, references, gold, languages: one a clip; `references` at least one each.
    """
    tokens = [_tokens(caption, language) for caption, language in zip(captions, languages)]
    documents = [[_tokens(text, language) for text in texts] for texts, language in zip(references, languages)]
    counts = [len(texts) for texts in documents]
    owners = np.repeat(np.arange(len(documents)), counts)
    weights = (1 / np.repeat(counts, counts), (owners, np.arange(len(owners))))
    average = scipy.sparse.csr_array(weights, (len(documents), len(owners)))
    spaces = [_vectors(tokens, documents, order) for order in _ORDERS]
    labels = np.array([label or "" for label in gold], dtype=object)
    spoken = np.array([language.partition("-")[0] for language in languages], dtype=object)
    wins, compared = np.zeros(len(tokens)), np.zeros(len(tokens), dtype=bool)
    for start in range(0, len(tokens), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(tokens)))
        like = sum((theirs @ ours[rows].T).toarray() for ours, theirs in spaces)  # [references, captions]
        like = np.round((average @ like).T / len(_ORDERS), 12)  # [captions, clips]
        own = like[np.arange(len(rows)), rows][:, None]
        others = (labels[None] != labels[rows, None]) & (labels[None] != "") & (labels[rows, None] != "")
        others &= spoken[None] == spoken[rows, None]
        won = ((own > like) + 0.5 * (own == like)) * others
        compared[rows] = others.any(axis=1)
        wins[rows] = won.sum(axis=1) / np.maximum(others.sum(axis=1), 1)
    return mean(wins, compared)


def _tokens(text: str, language: str) -> list[str]:
    return (CHARACTER if is_unspaced(language) else WORD).findall(text.lower())


def _vectors(
    tokens: list[list[str]], documents: list[list[list[str]]], order: int
) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """Returns unit vectors over n-grams of captions `[N, V]` and of all references `[R, V]`."""
    texts = [text for document in documents for text in document]
    frequency = collections.Counter(
        gram for document in documents for gram in {gram for text in document for gram in _grams(text, order)}
    )
    columns = {gram: column for column, gram in enumerate(frequency)}
    rarity = np.array([math.log(len(documents) / count) for count in frequency.values()])
    return _unit_rows(tokens, order, columns, rarity), _unit_rows(texts, order, columns, rarity)


def _unit_rows(
    texts: list[list[str]], order: int, columns: dict[Hashable, int], rarity: np.ndarray
) -> scipy.sparse.csr_array:
    rows = [collections.Counter(_grams(text, order)) for text in texts]
    # N-grams that no reference has lengthen a caption's vector without a direction: as if each clip had one of its own.
    strange = [sum(count**2 for gram, count in row.items() if gram not in columns) for row in rows]
    known = [[(columns[gram], count) for gram, count in row.items() if gram in columns] for row in rows]
    flat = [pair for row in known for pair in row]
    index = np.array([column for column, _ in flat], dtype=np.int64)
    values = np.array([count for _, count in flat], dtype=np.float64) * (rarity[index] if len(index) else 1.0)
    starts = np.cumsum([0, *map(len, known)])
    vectors = scipy.sparse.csr_array((values, index, starts), shape=(len(texts), len(columns)))
    most = float(rarity.max()) if len(rarity) else 0.0
    lengths = np.sqrt(vectors.multiply(vectors).sum(axis=1) + np.array(strange) * most**2)
    return (scipy.sparse.diags_array(1 / np.where(lengths > 0, lengths, 1.0)) @ vectors).tocsr()


def _grams(tokens: list[str], order: int) -> Iterator[Hashable]:
    return zip(*(tokens[k:] for k in range(order)))
