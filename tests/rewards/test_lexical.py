"""ROUGE-L and CIDEr-D equal the reference implementation in pycocoevalcap."""

import numpy as np
import pytest
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.rouge.rouge import Rouge

from mecap_jax.rewards.lexical import (
    CiderD,
    CiderDReward,
    FluencyReward,
    RougeLReward,
    longest_common_subsequence,
    rouge_l,
    tokenize,
)
from tests.rewards.captions import CAPTIONS
from tests.rewards.conftest import sample


def random_corpus(seed, clips=30, words=12):
    rng = np.random.default_rng(seed)
    vocabulary = [f"w{i}" for i in range(words)]

    def text():
        return list(rng.choice(vocabulary, rng.integers(1, 20)))

    return [(text(), [text() for _ in range(rng.integers(1, 6))]) for _ in range(clips)]


def real_corpus():
    groups = [[tokenize(text) for text in group] for group in CAPTIONS.values()]
    return [(group[i], group[i + 1 : i + 4]) for group in groups for i in range(8)]


@pytest.mark.parametrize("corpus", [random_corpus(0), random_corpus(1, words=3), real_corpus()])
def test_rouge_l_equals_pycocoevalcap(corpus):
    for completion, references in corpus:
        expected = Rouge().calc_score([" ".join(completion)], [" ".join(reference) for reference in references])
        assert rouge_l(completion, references) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("corpus", [random_corpus(2), random_corpus(3, words=3), real_corpus()])
def test_cider_d_equals_pycocoevalcap(corpus):
    scorer = CiderScorer(n=4, sigma=6.0)
    for completion, references in corpus:
        scorer += (" ".join(completion), [" ".join(reference) for reference in references])
    _, expected = scorer.compute_score()
    score = CiderD(references for _, references in corpus)
    np.testing.assert_allclose([score(*pair) for pair in corpus], expected, atol=1e-10)
    assert max(expected) > 0.05


def test_longest_common_subsequence_by_hand():
    assert longest_common_subsequence("abcbdab", "bdcaba") == 4
    assert longest_common_subsequence("abc", "xyz") == 0
    assert longest_common_subsequence("", "abc") == longest_common_subsequence("abc", "") == 0
    assert longest_common_subsequence("ab" * 100, "ba" * 100) == 199  # past one machine word


def test_perfect_and_disjoint_captions():
    references = [["a", "very", "sad", "voice"], ["she", "weeps", "and", "weeps"]]
    score = CiderD([references, [["another", "clip"]]])
    assert rouge_l(references[0], references) == pytest.approx(1)
    assert score(references[0], references[:1]) == pytest.approx(10)
    assert rouge_l(["quite", "other", "words"], references) == score(["quite", "other", "words"], references) == 0
    assert rouge_l([], references) == score([], references) == rouge_l(["a"], []) == score(["a"], []) == 0


def test_document_frequencies_come_from_the_train_captions_alone():
    common, rare = ["the", "voice"], ["sudden", "sobs"]
    score = CiderD([[common]] * 9 + [[rare]])
    assert score(common, [common + rare]) < score(rare, [common + rare])


def test_a_clip_without_references_is_no_document():
    """Or what all captions say would be worth something as soon as clips are silent."""
    told = [[["the", "sad", "voice"]], [["the", "glad", "voice"]]]
    assert CiderD(told)(["the", "voice"], told[0]) == CiderD([*told, [], [], []])(["the", "voice"], told[0]) == 0


@pytest.mark.parametrize("silent", [[], [[]]])
def test_cider_d_needs_more_than_one_clip(silent):
    with pytest.raises(ValueError, match="at least two clips, got 1"):
        CiderD([[["one", "clip"]], *silent])


def test_terms():
    cider = CiderDReward([["a sad voice", "he is sad"], ["a happy voice"], ["an angry face"]])
    samples = [sample("A sad voice!", ["a sad  VOICE"]), sample("a sad voice", []), sample("", ["a sad voice"])]
    assert RougeLReward()(samples) == [pytest.approx(1), None, 0]
    assert cider(samples)[1:] == [None, 0] and cider(samples)[0] > 5


@pytest.mark.parametrize(
    "text, tokens",
    [
        ("A low, halting voice.", ["a", "low", "halting", "voice"]),
        ("  It isn’t MATTER-of-fact -- at all ", ["it", "isn't", "matter-of-fact", "at", "all"]),
        ("她很sad，几乎3次", ["她", "很", "sad", "几", "乎", "3", "次"]),
        ("... !? 😀", []),
        ("Ünïcode_words", ["ünïcode", "words"]),
    ],
)
def test_tokens(text, tokens):
    assert tokenize(text) == tokens


def test_rouge_l_over_all_references():
    references = ["a low voice", "he shouts"]
    alone = [RougeLReward()([sample("a voice", [text])])[0] for text in references]
    assert RougeLReward("mean")([sample("a voice", references)]) == [pytest.approx(np.mean(alone))]
    assert RougeLReward("mean")([sample("a voice")]) == [None]
    with pytest.raises(ValueError, match="over must be best or mean, got 'all'"):
        RougeLReward("all")


def test_fluency_counts_the_pairs_that_training_captions_have():
    reward = FluencyReward([["A low voice.", "He is sad"], [], ["很高兴"]])
    shares = {
        "A low voice!": 1,
        "He is sad voice": 4 / 5,
        "a sad voice": 2 / 4,
        "low": 0,
        "": 0,
        "很高兴": 1,
        "很兴": 2 / 3,
    }
    assert reward([sample(text) for text in shares]) == pytest.approx(list(shares.values()))
