"""What the corpus says of its clips is true by this measure; what is said of other clips is often not."""

import numpy as np
import pytest

from mecap_jax.config import SyntheticConfig
from mecap_jax.data.synthetic.corpus import attributes_of, captions_of, labels_of, plan, rationale_of
from mecap_jax.evaluation.claims import ASPECTS, AT_REST, claim_accuracy, claims_of, is_true

CLIP = (
    {"tempo": "fast", "pitch": "low", "loudness": "normal", "face": "brows lowered, eyes wide"},
    {"multimodal": "angry"},
)


@pytest.mark.parametrize(
    "text, claims",
    [
        ("He speaks quickly in a low voice.", [("tempo", "high"), ("pitch", "low")]),
        ("She has raised eyebrows and a raised voice.", [("brows", "brows raised"), ("pitch", "high")]),
        ("A frown and a relaxed mouth.", [("brows", "brows lowered"), ("mouth", AT_REST)]),
        ("Widened eyes.", []),
        ("It sounds angry. It looks happy, not sad.", [("emotion", "angry"), ("emotion", "happy")]),
        ("Low, low, low. Very loud!", [("pitch", "low"), ("loudness", "high")]),
        ("", []),
    ],
)
def test_claims(text, claims):
    assert claims_of(text, "en") == claims


def test_chinese_claims():
    text = "语速很快，音调偏低，眉头紧锁，听起来愤怒。"
    assert claims_of(text, "zh") == [
        ("tempo", "high"),
        ("pitch", "low"),
        ("brows", "brows lowered"),
        ("emotion", "angry"),
    ]


@pytest.mark.parametrize(
    "claim, true",
    [
        (("tempo", "high"), True),
        (("tempo", "medium"), False),
        (("pitch", "low"), True),
        (("loudness", "medium"), True),
        (("loudness", "high"), False),
        (("brows", "brows lowered"), True),
        (("brows", "brows raised"), False),
        (("brows", AT_REST), False),
        (("mouth", AT_REST), True),
        (("mouth", "jaw dropped"), False),
        (("emotion", "angry"), True),
        (("emotion", "sad"), False),
    ],
)
def test_truth(claim, true):
    assert is_true(claim, *CLIP) is true


def test_nothing_is_seen_where_there_is_no_face():
    attributes = {key: value for key, value in CLIP[0].items() if key != "face"}
    assert not is_true(("mouth", AT_REST), attributes, {})
    assert is_true(("pitch", "low"), attributes, {})


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_corpus_says_what_is_true_and_not_what_is_true_of_any_clip(language):
    specs = plan(SyntheticConfig(clips=400, caption_language=language))
    records = [(attributes_of(spec), labels_of(spec)) for spec in specs]
    for texts in ([rationale_of(spec) for spec in specs], [captions_of(spec)["style"][0] for spec in specs]):
        told = claim_accuracy(texts, records, language)
        assert told["claims"].value >= 1
        by_aspect = np.array([told[f"claims_true/{aspect}"].value for aspect in ASPECTS])
        assert (by_aspect[np.isfinite(by_aspect)] == 1).all(), by_aspect
        shuffled = claim_accuracy(texts[1:] + texts[:1], records, language)
        assert shuffled["claims_true"].value < 0.7
    rationales = claim_accuracy([rationale_of(spec) for spec in specs], records, language)
    assert rationales["claims_true"].value == 1
    assert rationales["claims"].value > 3


def test_a_text_that_claims_nothing_is_not_true():
    scores = claim_accuracy(["He speaks quickly.", ""], [CLIP, CLIP], "en")
    assert scores["claims_true"].value == 1 / 2
    assert scores["claims_true/tempo"].value == 1
    assert np.isnan(scores["claims_true/mouth"].value)
    with pytest.raises(ValueError, match="1 texts for 0 clips"):
        claim_accuracy([""], [], "en")
