"""The judge by retrieval: right captions win, empty ones draw, and what it says is what a plain count says."""

import functools
import math

import numpy as np
import pytest

from mecap_jax.evaluation.retrieval import retrieval

REFERENCES = [
    ("A furious man shouts.", "The angry man yells loudly."),
    ("An angry woman snaps at him.",),
    ("A sad voice, close to tears.", "She mourns quietly, in tears."),
    ("He is happy and laughs.",),
]
GOLD = ("angry", "angry", "sad", "happy")
ENGLISH = ("en",) * 4


def value(captions, references=REFERENCES, gold=GOLD, languages=ENGLISH):
    return retrieval(captions, references, gold, languages).value


def test_references_of_ones_own_win_and_those_of_others_lose():
    assert value([texts[0] for texts in REFERENCES]) == 1
    assert value(["He is happy and laughs."] * 3 + ["A furious man shouts."]) < 0.3


def test_nothing_and_what_nobody_says_are_chance():
    assert value([""] * 4) == 0.5 and value(["xylophone quartz"] * 4) == 0.5


def test_a_clip_of_the_same_emotion_is_no_rival():
    captions = ["An angry woman snaps at him.", *[texts[0] for texts in REFERENCES[1:]]]
    assert value(captions) > value(captions, gold=("angry", "disgusted", "sad", "happy"))


def test_clips_without_label_or_without_rivals_are_left_out():
    statistic = retrieval(["a", "b", "c", "d"], REFERENCES, (None, "angry", "angry", "angry"), ENGLISH)
    assert math.isnan(statistic.value)
    mixed = retrieval(
        ["A furious man shouts.", "", "她很难过", "他在笑"],
        [REFERENCES[0], REFERENCES[2], ("她很难过，快哭了",), ("他很高兴，在笑",)],
        ("angry", "sad", "sad", "happy"),
        ("en", "en", "zh", "zh-CN"),
    )
    assert mixed.value == pytest.approx((1 + 0.5 + 1 + 1) / 4)


def test_it_is_what_a_plain_count_says():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(12)]
    draw = lambda: " ".join(rng.choice(words, rng.integers(3, 9)))  # noqa: E731
    references = [[draw() for _ in range(rng.integers(1, 4))] for _ in range(9)]
    captions, gold = [draw() for _ in range(8)] + ["new words only"], list("aabbbcabc")

    def grams(text, n):
        tokens = text.split()
        return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]

    def vector(text, n):
        found = {}
        for gram in grams(text, n):
            found[gram] = found.get(gram, 0) + rarity(gram, n)
        return found

    @functools.cache
    def rarities(n):
        known = {gram for texts in references for text in texts for gram in grams(text, n)}
        holders = {gram: sum(any(gram in grams(t, n) for t in texts) for texts in references) for gram in known}
        return {gram: math.log(len(references) / count) for gram, count in holders.items()}

    def rarity(gram, n):
        return rarities(n).get(gram, max(rarities(n).values()))

    def cosine(a, b):
        norm = math.sqrt(sum(x * x for x in a.values())) * math.sqrt(sum(x * x for x in b.values()))
        return sum(x * b.get(gram, 0) for gram, x in a.items()) / norm if norm else 0.0

    def likeness(caption, texts):
        return np.mean([[cosine(vector(caption, n), vector(text, n)) for n in (1, 2, 3, 4)] for text in texts])

    expected = []
    for i, caption in enumerate(captions):
        scores = [likeness(caption, texts) for texts in references]
        rivals = [score for score, label in zip(scores, gold) if label != gold[i]]
        expected.append(np.mean([(scores[i] > r + 1e-9) + 0.5 * (abs(scores[i] - r) <= 1e-9) for r in rivals]))
    assert value(captions, references, gold, ["en"] * 9) == pytest.approx(np.mean(expected), abs=1e-9)
