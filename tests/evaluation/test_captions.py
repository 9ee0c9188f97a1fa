import math
import sys
import types

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from mecap_jax.evaluation.captions import caption_metrics
from mecap_jax.evaluation.intervals import bootstrap
from mecap_jax.evaluation.java_tools import ptb_tokenize
from tests.evaluation.conftest import encode, tokenized


def _word_metrics(candidates, references, language="en"):
    return caption_metrics(candidates, references, language, encode=encode).metrics


def test_overlap_metrics_equal_those_of_pycocoevalcap(meteor, corpus):
    clips, captions = corpus
    captions = ["", "zebra", *captions[2:]]
    references = [clip.references for clip in clips]
    scores = caption_metrics(captions, references, encode=encode, meteor=meteor)
    truth = dict(enumerate(tokenized(references)))
    results = {i: [text] for i, text in enumerate(ptb_tokenize(captions))}
    bleu, _ = Bleu().compute_score(truth, results, verbose=0)
    for n in range(4):
        assert scores.metrics[f"bleu_{n + 1}"] == pytest.approx(bleu[n], abs=1e-12)
    assert scores.metrics["rouge_l"] == pytest.approx(Rouge().compute_score(truth, results)[0], abs=1e-12)
    assert scores.metrics["cider_d"] == pytest.approx(Cider().compute_score(truth, results)[0], abs=1e-12)
    assert 0 < scores.metrics["meteor"] < 1
    assert scores.tokenisation == "ptb" and not scores.unavailable


def test_bleu_of_a_resample_equals_bleu_of_the_drawn_clips(no_java, corpus):
    clips, captions = corpus
    references = [clip.references for clip in clips]
    statistic = caption_metrics(captions, references).statistics["bleu_4"]
    drawn = [3, 3, 17, 40, 59, 0, 0, 0]
    again = caption_metrics([captions[i] for i in drawn], [references[i] for i in drawn])
    assert statistic.aggregate(statistic.values[drawn].sum(axis=0)) == pytest.approx(again.metrics["bleu_4"], abs=1e-12)


def test_bleu_by_hand(no_java):
    # 4 of 5 words occur in a reference, "the" only once; bigrams: 2 of 4. The closest reference has 6 words.
    metrics = _word_metrics(["the the voice sounds sad"], [["the voice sounds very sad today", "a b c d e f g h"]])
    brevity = math.exp(1 - 6 / 5)
    assert metrics["bleu_1"] == pytest.approx(brevity * 4 / 5, rel=1e-6)
    assert metrics["bleu_2"] == pytest.approx(brevity * math.sqrt(4 / 5 * 2 / 4), rel=1e-6)


def test_rouge_l_by_hand(no_java):
    # Longest common subsequence "she is sad": precision 3/4, recall 3/5, beta 1.2.
    metrics = _word_metrics(["she really is sad"], [["she is now so sad"]])
    assert metrics["rouge_l"] == pytest.approx((1 + 1.44) * 0.75 * 0.6 / (0.6 + 1.44 * 0.75))


def test_cider_is_the_d_variant_by_hand(no_java):
    # Two clips, so a word that only one clip's references hold weighs log 2. First clip: "sad" is repeated in the
    # candidate, but clipping counts it once; unigram cosine 1·1 / (2·1), all longer n-grams 0. The lengths in bigrams
    # differ by 1: Gaussian exp(-1/72). The second clip's caption shares nothing. Times 10, over four orders.
    metrics = _word_metrics(["sad sad", "zebra"], [["sad"], ["happy voice"]])
    assert metrics["cider_d"] == pytest.approx(10 * 0.5 * math.exp(-1 / 72) / 4 / 2)


def test_diversity_and_repetition_by_hand(no_java):
    captions = ["she is sad and sad", "she is sad and sad", "he is so so glad", "A low voice; a low voice!", "calm", ""]
    metrics = _word_metrics(captions, [["she is sad"]] * 6)
    words = 5 + 5 + 5 + 6 + 1
    assert metrics["vocabulary_size"] == len(
        {"she", "is", "sad", "and", "he", "so", "glad", "a", "low", "voice", "calm"}
    )
    assert metrics["distinct_1"] == pytest.approx(11 / words)
    bigrams = {"she is", "is sad", "sad and", "and sad", "he is", "is so", "so so", "so glad", "a low", "low voice"}
    assert metrics["distinct_2"] == pytest.approx((len(bigrams) + 1) / (words - 5))  # and "voice a"
    assert metrics["distinct_captions"] == 5
    assert metrics["repetition"] == pytest.approx(4 / 6)
    assert metrics["mean_length"] == pytest.approx(words / 6)


def test_similarity_takes_the_best_reference(no_java):
    vectors = {"c": [1, 0], "near": [0.9, math.sqrt(1 - 0.81)], "far": [0, 1], "half": [0.55, math.sqrt(1 - 0.55**2)]}
    scores = caption_metrics(
        ["c", "c", " "],
        [["far", "near"], ["half"], ["c"]],
        encode=lambda ts: np.array([vectors.get(t, [1, 0]) for t in ts]),
    )
    assert scores.metrics["sbert_similarity"] == pytest.approx((0.9 + 0.55 + 0) / 3)  # an empty caption is like nothing
    assert [scores.metrics[f"sbert_above_{k}"] for k in (50, 60, 80)] == pytest.approx([2 / 3, 1 / 3, 1 / 3])


def test_without_java_meteor_is_unavailable_and_nothing_takes_its_place(no_java, corpus):
    clips, captions = corpus
    scores = caption_metrics(captions, [clip.references for clip in clips])
    assert scores.metrics["meteor"] is None
    assert "no `java` on the PATH" in scores.unavailable["meteor"]
    assert scores.tokenisation == "words"
    assert scores.metrics["sbert_similarity"] is None and "encoder" in scores.unavailable["sbert_similarity"]
    assert scores.metrics["bleu_1"] > 0.5


def test_degenerate_captions(no_java):
    references = [["a sad voice"], ["a glad voice"]]
    empty = _word_metrics(["", "  \n"], references)
    assert all(empty[key] == 0 for key in ("bleu_1", "bleu_4", "rouge_l", "cider_d", "vocabulary_size", "distinct_2"))
    assert empty["distinct_captions"] == 1
    same = caption_metrics(["a voice"] * 4, references * 2)
    assert same.metrics["distinct_captions"] == 1
    assert bootstrap(same.statistics, list("abcd"))["vocabulary_size"] == (2, 2)
    alone = _word_metrics(["a sad voice"], [["a sad voice"]])
    assert alone["bleu_1"] == pytest.approx(1) and alone["rouge_l"] == pytest.approx(1)
    assert alone["cider_d"] == 0  # a single clip tells nothing about document frequencies


def test_empty_captions_with_java(meteor):
    metrics = caption_metrics(["", ""], [["a sad voice"], ["a glad voice"]], meteor=meteor).metrics
    assert metrics["meteor"] == 0 and metrics["bleu_1"] == 0


def test_chinese_is_scored_by_characters():
    scores = caption_metrics(["她听起来很愤怒。", "语气平静"], [["她听起来非常愤怒！"], ["语气，平静"]], "zh")
    assert scores.tokenisation == "characters"
    assert "English captions only" in scores.unavailable["meteor"]
    # 她 听 起 来 愤 怒 of seven, and all four of the second; lengths 11 against 8 + 4.
    assert scores.metrics["bleu_1"] == pytest.approx(math.exp(1 - 12 / 11) * 10 / 11, rel=1e-6)
    assert scores.metrics["mean_length"] == 5.5
    assert scores.metrics["distinct_captions"] == 2


def test_chinese_reduplication_is_no_repetition():
    references = [["声音"]] * 4
    captions = ["她慢慢地说", "愤怒和愤怒", "说话者悲伤，说话者低声", "低沉低沉的声音"]
    assert caption_metrics(captions, references, "zh").metrics["repetition"] == 0.5


def test_chinese_words_need_jieba(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    scores = caption_metrics(["她很愤怒"], [["她愤怒"]], "zh")
    assert scores.metrics["bleu_1_words"] is None and "jieba" in scores.unavailable["bleu_1_words"]


def test_chinese_words_with_a_segmenter(monkeypatch):
    class Tokenizer:
        def lcut(self, text):
            return text.replace("愤怒", " 愤怒 ").replace("。", " 。").split()

    monkeypatch.setitem(sys.modules, "jieba", types.SimpleNamespace(Tokenizer=Tokenizer, setLogLevel=str))
    metrics = caption_metrics(["她很愤怒。", "高兴"], [["他愤怒"], ["高兴"]], "zh").metrics
    assert metrics["mean_length_words"] == 1.5  # 她很 愤怒 | 高兴
    assert metrics["bleu_1_words"] == pytest.approx(2 / 3, rel=1e-6)
    assert metrics["bleu_1"] == pytest.approx(4 / 6, rel=1e-6)


@pytest.mark.parametrize(
    ("candidates", "references", "language", "message"),
    [
        ([], [], "en", "no captions"),
        (["a"], [["a"], ["b"]], "en", "1 candidates but 2 lists"),
        (["a", "b"], [["a"], []], "en", r"references\[1\] must be a non-empty"),
        (["a"], ["a text"], "en", r"references\[0\] must be a non-empty sequence of texts, got 'a text'"),
        (["a", "b"], [["a"], ["a", "..."]], "en", r"references\[1\]\[1\] has no word in it: '...'"),
        (["a", "\ud800"], [["a"], ["a"]], "en", r"candidates\[1\] is not valid Unicode"),
        (["a", "b"], [["a"], ["b"]], ["en"], "2 candidates but 1 languages"),
    ],
)
def test_bad_input_is_named(candidates, references, language, message):
    with pytest.raises(ValueError, match=message):
        caption_metrics(candidates, references, language)


def test_each_clip_of_a_mixed_corpus_is_scored_by_its_own_language(meteor, corpus):
    clips, captions = corpus
    english = [clip.references for clip in clips]
    chinese, said = [("她听起来非常愤怒！",), ("语气平静",)] * 4, ["她听起来很愤怒。", "语气平静"] * 4
    languages = ["en"] * len(english) + ["zh"] * len(chinese)
    both = caption_metrics([*captions, *said], [*english, *chinese], languages, meteor=meteor)
    alone = caption_metrics(captions, english, meteor=meteor), caption_metrics(said, chinese, "zh")
    assert both.tokenisation == "ptb+characters"
    for key in ("bleu_1", "bleu_4", "repetition", "mean_length"):  # sums over clips
        sums = sum(np.asarray(part.statistics[key].values.sum(axis=0)) for part in alone)
        assert both.metrics[key] == pytest.approx(float(alone[0].statistics[key].aggregate(sums))), key
    assert both.metrics["meteor"] == pytest.approx(alone[0].metrics["meteor"])
    assert both.unavailable.keys() - {"meteor"} == alone[1].unavailable.keys() - {"meteor"}
    intervals = bootstrap(both.statistics, [i % 5 for i in range(len(languages))], 50)
    assert intervals["meteor"] is not None and intervals["vocabulary_size"] is not None


def test_perfect_captions_are_perfect_in_every_language():
    references = [["他的声音低沉而悲伤"], ["Her voice is low and sad"], ["Ihre Stimme klingt sehr traurig"]]
    scores = caption_metrics([row[0] for row in references], references, ["zh-CN", "en", "de"])
    assert scores.metrics["bleu_4"] == pytest.approx(1) and scores.metrics["rouge_l"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("vectors", "message"), [(np.ones((2, 3)), "unit vectors, got a norm of 1.732"), (np.ones((5, 1)), "for 2 texts")]
)
def test_embeddings_are_checked(no_java, vectors, message):
    with pytest.raises(ValueError, match=message):
        caption_metrics(["a"], [["b"]], encode=lambda texts: vectors)


def test_japanese_is_counted_by_characters(no_java):
    caption, reference = "彼女はとても怒っているようだ。", "彼女はかなり怒っているようだ。"
    scores = caption_metrics([caption, ""], [[reference], [reference]], "ja")
    assert scores.tokenisation == "characters" and scores.metrics["bleu_4"] > 0.2 and scores.metrics["rouge_l"] > 0.3
    assert not any(key.endswith("_words") for key in scores.metrics)
