"""Caption metrics: n-gram overlap with the references, sentence similarity, diversity, repetition, length.

BLEU, ROUGE-L, CIDEr-D and METEOR come from `pycocoevalcap` (its `Cider` is CIDEr-D: clipped counts, a Gaussian length
penalty with sigma 6, times 10; Vedantam et al. 2015). English is tokenised by the Penn Treebank tokenizer where Java
is there (tokenisation "ptb"), else by a regular expression ("words"), as are other languages; METEOR needs Java, knows
English only and is never replaced. Chinese, and what else is written without blanks (Japanese, Thai), is scored by
characters ("characters"), Chinese again by words (keys with the suffix `_words`) where the package `jieba` is
installed. Each clip of a mixed corpus is scored by its own language. Numbers under different tokenisations do not
compare, so the result names its own ("ptb+characters" for two).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import scipy.sparse
from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from mecap_jax.data.language import CHARACTER, WORD, has_word, is_unspaced
from mecap_jax.evaluation.intervals import Statistic, mean
from mecap_jax.evaluation.java_tools import JavaError, Meteor, meteor_score, ptb_tokenize

T = TypeVar("T")
Encode = Callable[[Sequence[str]], np.ndarray]
SIMILARITY_SHARES = (0.5, 0.6, 0.8)  # SECap's thresholds (arXiv 2312.10381)
_REPEATED_CHARACTERS = re.compile(r"(.{2,20}?)[和与又且并而]?\1")


@dataclasses.dataclass(frozen=True)
class CaptionScores:
    """What `caption_metrics` found.

    Attributes:
      statistics: metrics by key, each with its per-clip statistics; `statistics[key].value` is the metric.
      unavailable: the reason for every metric that could not be computed.
      tokenisation: "ptb", "words" or "characters"; where clips differ, all of theirs joined by "+".
    """

    statistics: dict[str, Statistic]
    unavailable: dict[str, str]
    tokenisation: str

    @property
    def metrics(self) -> dict[str, float | None]:
        """Metrics by key; None for the unavailable ones."""
        return {key: s.value for key, s in self.statistics.items()} | dict.fromkeys(self.unavailable)


def caption_metrics(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    languages: str | Sequence[str] = "en",
    encode: Encode | None = None,
    meteor: Meteor | None = None,
) -> CaptionScores:
    """Scores one caption a clip against the clip's references.

    Keys: `bleu_1..bleu_4`, `rouge_l`, `meteor` (all in [0, 1]), `cider_d` (in [0, 10]); `sbert_similarity` (cosine to
    the best reference, an empty caption counts 0) and the shares of clips above .5, .6 and .8 (`sbert_above_50`, ...);
    `vocabulary_size` (different words over all candidates), `distinct_1`, `distinct_2` (different n-grams / all
    n-grams, Li et al. 2016), `distinct_captions` (different captions), `repetition` (share of captions in which a word
    directly repeats, also across "and", or three words in a row occur twice; in Chinese: two or more characters that
    directly repeat, because single ones reduplicate and stock phrases recur), `mean_length` (tokens). In a mixed corpus
    `meteor` is that of the English clips and `*_words` those of the Chinese ones; everything else is over all clips.

    Args:
      candidates: one caption a clip; it may be empty.
      references: at least one a clip.
      languages: of the references, BCP-47: one for all, or one a clip.
      encode: sentence encoder, texts -> float32 unit vectors `[n, d]`; without it similarity is unavailable.
      meteor: a running METEOR, where several sets of captions are scored; by default one is started and closed here.

    Raises:
      ValueError: no clips, lengths that differ, a clip without references, a reference without a word, a text that is
        not valid Unicode, embeddings that are not unit vectors.
    """
    languages = [languages] * len(candidates) if isinstance(languages, str) else languages
    _check(candidates, references, languages)
    unavailable: dict[str, str] = {}
    tokens, reference_tokens, tokenisations = _tokenise(candidates, references, languages, unavailable)
    statistics = _token_statistics(tokens, reference_tokens, tokenisations)
    chinese = [i for i, language in enumerate(languages) if language.partition("-")[0] == "zh"]
    if chinese:
        words = _chinese_words(_at(chinese, candidates), _at(chinese, references), unavailable, statistics)
        statistics |= {key: _among(len(tokens), chinese, statistic) for key, statistic in words.items()}
    english = _places(tokenisations, "ptb")
    if english:
        try:
            with contextlib.ExitStack() as stack:
                running = meteor or stack.enter_context(Meteor())
                found = running.statistics(_at(english, tokens), _at(english, reference_tokens))
            statistics["meteor"] = _among(len(tokens), english, Statistic(found, meteor_score))
        except JavaError as error:
            unavailable["meteor"] = str(error)
    elif "meteor" not in unavailable:
        unavailable["meteor"] = "METEOR scores English captions only, and there are none"
    if encode is None:
        keys = ("sbert_similarity", *map(_share_key, SIMILARITY_SHARES))
        unavailable |= dict.fromkeys(keys, "no sentence encoder was given")
    else:
        statistics |= _similarity_statistics(candidates, references, encode)
    return CaptionScores(statistics, unavailable, "+".join(dict.fromkeys(tokenisations)))


# --- tokenisation -----------------------------------------------------------------------------------------------


def _check(candidates: Sequence[str], references: Sequence[Sequence[str]], languages: Sequence[str]):
    if not candidates:
        raise ValueError("there are no captions to score")
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates but {len(references)} lists of references")
    if len(candidates) != len(languages):
        raise ValueError(f"{len(candidates)} candidates but {len(languages)} languages")
    for i, (candidate, texts) in enumerate(zip(candidates, references)):
        if isinstance(texts, str) or not texts:
            raise ValueError(f"references[{i}] must be a non-empty sequence of texts, got {texts!r}")
        for name, text in (
            (f"candidates[{i}]", candidate),
            *((f"references[{i}][{j}]", t) for j, t in enumerate(texts)),
        ):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"{name} is not valid Unicode: {error}") from error
            if name.startswith("r") and not has_word(text):
                raise ValueError(f"{name} has no word in it: {text!r:.80}")


def _tokenise(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    languages: Sequence[str],
    unavailable: dict[str, str],
) -> tuple[list[str], list[list[str]], list[str]]:
    """Returns candidates and references as tokens joined by blanks, and the name of each clip's tokenisation."""
    kinds = [
        "characters" if is_unspaced(language) else "ptb" if language.partition("-")[0] == "en" else "words"
        for language in languages
    ]
    texts = [[candidate, *row] for candidate, row in zip(candidates, references)]
    english = [text for row, kind in zip(texts, kinds) if kind == "ptb" for text in row]
    treebank = iter(())
    if english:
        try:
            treebank = iter(ptb_tokenize(english))
        except JavaError as error:
            unavailable["meteor"] = f"METEOR works on tokens of the PTB tokenizer, but {error}"
            kinds = ["words" if kind == "ptb" else kind for kind in kinds]
    patterns = {"characters": CHARACTER, "words": WORD}
    tokens = [
        [next(treebank) if kind == "ptb" else " ".join(patterns[kind].findall(text.lower())) for text in row]
        for row, kind in zip(texts, kinds)
    ]
    return [row[0] for row in tokens], [row[1:] for row in tokens], kinds


def _places(tokenisations: Sequence[str], wanted: str) -> list[int]:
    return [i for i, name in enumerate(tokenisations) if name == wanted]


def _at(places: Sequence[int], items: Sequence[T]) -> list[T]:
    return [items[i] for i in places]


def _among(clips: int, places: Sequence[int], statistic: Statistic) -> Statistic:
    """A statistic of some clips as one of all, to which the others add nothing."""
    spread = scipy.sparse.csr_array((np.ones(len(places)), (places, np.arange(len(places)))), (clips, len(places)))
    return dataclasses.replace(statistic, values=spread @ statistic.values)


def _split(tokenised: list[str], references: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    rest = iter(tokenised)
    tokens = [next(rest) for _ in references]
    return tokens, [[next(rest) for _ in row] for row in references]


def _chinese_words(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    unavailable: dict[str, str],
    by_characters: dict[str, Statistic],
) -> dict[str, Statistic]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its source predates today's escape sequence rules
            jieba = importlib.import_module("jieba")
            jieba.setLogLevel("WARNING")
    except ImportError:
        reason = "word segmentation needs the package jieba"
        unavailable |= {f"{key}_words": reason for key in by_characters}
        return {}
    texts = [*candidates, *(text for row in references for text in row)]
    with tempfile.TemporaryDirectory() as private:
        segmenter = jieba.Tokenizer()
        segmenter.tmp_dir = private  # its cache is unmarshalled: never from the shared temporary directory
        words = [" ".join(w for w in segmenter.lcut(text.lower()) if has_word(w)) for text in texts]
    scores = _token_statistics(*_split(words, references), ["words"] * len(candidates))
    return {f"{key}_words": statistic for key, statistic in scores.items()}


# --- metrics over tokens ----------------------------------------------------------------------------------------


def _token_statistics(
    tokens: list[str], references: list[list[str]], tokenisations: Sequence[str]
) -> dict[str, Statistic]:
    clips = range(len(tokens))
    results, truths = {i: [tokens[i]] for i in clips}, {i: references[i] for i in clips}
    counts = np.array([_bleu_counts(tokens[i], references[i]) for i in clips])
    statistics = {f"bleu_{n}": Statistic(counts, _bleu(n)) for n in (1, 2, 3, 4)}
    statistics["rouge_l"] = mean(Rouge().compute_score(truths, results)[1])
    # Document frequencies stay those of all clips in every resample: they describe the reference corpus.
    statistics["cider_d"] = mean(Cider().compute_score(truths, results)[1])
    words = [text.split() for text in tokens]
    statistics["vocabulary_size"] = _types([set(row) for row in words], _count)
    for n in (1, 2):
        statistics[f"distinct_{n}"] = _distinct([list(zip(*(row[k:] for k in range(n)))) for row in words])
    statistics["distinct_captions"] = _types([{text} for text in tokens], _count)
    repeats = {"characters": _repeats_characters}
    statistics["repetition"] = mean([repeats.get(kind, _repeats_words)(row) for row, kind in zip(words, tokenisations)])
    statistics["mean_length"] = mean([len(row) for row in words])
    return statistics


def _bleu_counts(candidate: str, references: list[str]) -> list[int]:
    """Returns clipped matches and n-grams of orders 1 to 4, the length, and the closest reference's length."""
    counts = cook_test(candidate, cook_refs(references))
    length = counts["testlen"]
    closest = min((abs(other - length), other) for other in counts["reflen"])[1]
    return [*counts["correct"], *counts["guess"], length, closest]


def _bleu(n: int) -> Callable[[np.ndarray], np.ndarray]:
    """Corpus BLEU with `pycocoevalcap`'s smoothing constants, as a function of summed `_bleu_counts`."""
    tiny, small = 1e-15, 1e-9

    def aggregate(sums: np.ndarray) -> np.ndarray:
        precisions = (sums[..., :n] + tiny) / (sums[..., 4 : 4 + n] + small)
        ratio = (sums[..., 8] + tiny) / (sums[..., 9] + small)
        return np.prod(precisions, axis=-1) ** (1 / n) * np.exp(np.minimum(0, 1 - 1 / ratio))

    return aggregate


def _distinct(ngrams: list[list[tuple[str, ...]]]) -> Statistic:
    presence = _types([set(row) for row in ngrams], _count)
    totals = scipy.sparse.csr_array(np.array([[len(row)] for row in ngrams], dtype=np.float64))
    values = scipy.sparse.hstack([presence.values, totals], format="csr")
    return Statistic(values, lambda sums: _count(sums[..., :-1]) / np.maximum(sums[..., -1], 1), counts_types=True)


def _types(rows: list[set], aggregate: Callable[[np.ndarray], np.ndarray]) -> Statistic:
    """Which types occur in which clip, float `[clips, types]`."""
    index = {kind: i for i, kind in enumerate(dict.fromkeys(kind for row in rows for kind in sorted(row)))}
    columns = [index[kind] for row in rows for kind in row]
    starts = np.cumsum([0, *(len(row) for row in rows)])
    values = scipy.sparse.csr_array((np.ones(len(columns)), columns, starts), shape=(len(rows), len(index)))
    return Statistic(values, aggregate, counts_types=True)


def _count(sums: np.ndarray) -> np.ndarray:
    return (sums > 0).sum(axis=-1).astype(np.float64)


def _repeats_words(words: list[str]) -> bool:
    trigrams = list(zip(words, words[1:], words[2:]))
    return (
        any(a == b for a, b in zip(words, words[1:]))
        or any(a == c and b == "and" for a, b, c in trigrams)
        or len(set(trigrams)) < len(trigrams)
    )


def _repeats_characters(characters: list[str]) -> bool:
    return bool(_REPEATED_CHARACTERS.search("".join(characters)))


# --- sentence similarity ----------------------------------------------------------------------------------------


def _similarity_statistics(
    candidates: Sequence[str], references: Sequence[Sequence[str]], encode: Encode
) -> dict[str, Statistic]:
    texts = list(dict.fromkeys([*candidates, *(text for row in references for text in row)]))
    vectors = np.asarray(encode(texts))
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise ValueError(f"encode returned shape {vectors.shape} for {len(texts)} texts, expected [n, d]")
    norms = np.linalg.norm(vectors, axis=1)
    if not np.allclose(norms, 1, atol=1e-3):
        raise ValueError(f"encode must return unit vectors, got a norm of {norms[np.argmax(np.abs(norms - 1))]:.4g}")
    index = {text: i for i, text in enumerate(texts)}
    best = np.array(
        [
            max(float(vectors[index[candidate]] @ vectors[index[text]]) for text in row) if candidate.strip() else 0.0
            for candidate, row in zip(candidates, references)
        ]
    )
    statistics = {"sbert_similarity": mean(best)}
    for share in SIMILARITY_SHARES:
        statistics[_share_key(share)] = mean(best > share)
    return statistics


def _share_key(share: float) -> str:
    return f"sbert_above_{round(100 * share)}"
