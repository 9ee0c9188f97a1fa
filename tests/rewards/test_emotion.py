import numpy as np
import pytest

from mecap_jax.config import RewardConfig, RewardSpec
from mecap_jax.rewards.anchors import Anchors, build_anchors
from mecap_jax.rewards.emotion import (
    FORMS,
    DistinctivenessReward,
    EmotionReward,
    SemanticReward,
    emotion_coordinates,
    emotion_similarity,
)
from mecap_jax.tasks.base import Judges
from mecap_jax.tasks.captioning import Captioning
from tests.data.clips import record
from tests.rewards.captions import CAPTIONS
from tests.rewards.conftest import TableEncoder, sample

LABELS = tuple(CAPTIONS)
TEXTS = [text for label in LABELS for text in CAPTIONS[label]]
CLASSES = np.array([k for k, label in enumerate(LABELS) for _ in CAPTIONS[label]])


# --- what the reward must tell apart ------------------------------------------------------------------------------


def separation(similarity):
    """Returns the AUC over pairs of captions, and the share of triples (reference, same emotion, other emotion) whose
    caption of the same emotion is closer to the reference."""
    same = CLASSES[:, None] == CLASSES
    others = ~np.eye(len(CLASSES), dtype=bool)
    negative = np.sort(similarity[~same])
    auc = np.searchsorted(negative, similarity[same & others]).mean() / len(negative)
    triples = [
        (row[kin & other][:, None] > row[~kin][None]).mean() for row, kin, other in zip(similarity, same, others)
    ]
    return auc, np.mean(triples)


def test_captions_are_many_and_varied():
    assert len(LABELS) == 7 and all(len(group) >= 16 for group in CAPTIONS.values())
    assert len(set(TEXTS)) == len(TEXTS) >= 112


# Least separation on the held-out captions, measured and then rounded down to the next half per cent.
@pytest.mark.parametrize(
    "kind, form, least_auc, least_triples",
    [
        ("templates", "softmax", 0.965, 0.95),
        ("captions", "softmax", 0.975, 0.965),
        ("templates", "text_centred", 0.925, 0.92),
        ("captions", "text_centred", 0.935, 0.93),
        ("templates", "centred", 0.92, 0.92),
        ("captions", "centred", 0.93, 0.925),
    ],
)
def test_same_emotion_earns_more_than_another(encoder, anchors, kind, form, least_auc, least_triples):
    coordinates = emotion_coordinates(encoder.encode(TEXTS), anchors[kind], form)
    auc, triples = separation(emotion_similarity(coordinates[:, None], coordinates[None]))
    assert auc >= least_auc and triples >= least_triples


def test_every_form_tells_more_than_the_plain_cosine(encoder, anchors):
    embeddings = encoder.encode(TEXTS)
    semantic, _ = separation(embeddings @ embeddings.T)
    for form in FORMS:
        coordinates = emotion_coordinates(embeddings, anchors["templates"], form)
        assert separation(emotion_similarity(coordinates[:, None], coordinates[None]))[0] > semantic + 0.1


def test_centring_spreads_the_reward(encoder, anchors):
    def spread(form):
        coordinates = emotion_coordinates(encoder.encode(TEXTS), anchors["captions"], form)
        return emotion_similarity(coordinates[:, None], coordinates[None]).std()

    assert spread("centred") > 5 * spread("raw")


def test_nearest_anchor_is_mostly_right(encoder, anchors):
    for kind in anchors:
        coordinates = emotion_coordinates(encoder.encode(TEXTS), anchors[kind])
        assert (coordinates.argmax(axis=1) == CLASSES).mean() > 0.9


# --- against hand-computed values ---------------------------------------------------------------------------------


@pytest.fixture
def toy():
    """Two anchors at right angles, with the text mean off their centre."""
    return Anchors(("a", "b"), np.eye(2, dtype="f"), np.array([0.5, 0], "f"), "table", "0" * 64, "captions", "", (1, 1))


def test_coordinates_by_hand(toy):
    # mu = (1/2, 1/2), so a - mu points along (1, -1) and b - mu along (-1, 1).
    text = np.array([[0.6, 0.8]])
    np.testing.assert_allclose(emotion_coordinates(text, toy, "raw"), [[0.6, 0.8]], atol=1e-7)
    cosine = (0.1 - 0.3) / np.hypot(0.1, 0.3) / np.sqrt(2)
    np.testing.assert_allclose(emotion_coordinates(text, toy, "centred"), [[cosine, -cosine]], atol=1e-7)
    cosine = (0.1 - 0.8) / np.hypot(0.1, 0.8) / np.sqrt(2)
    np.testing.assert_allclose(emotion_coordinates(text, toy, "text_centred"), [[cosine, -cosine]], atol=1e-7)
    share = 1 / (1 + np.exp(-20 * cosine))
    np.testing.assert_allclose(emotion_coordinates(text, toy, "softmax"), [[share, 1 - share]], atol=1e-7)


def test_a_text_on_the_centre_has_no_direction(toy):
    np.testing.assert_array_equal(emotion_coordinates(np.array([[0.5, 0.5]]), toy, "centred"), [[0, 0]])
    assert emotion_similarity(np.zeros(2), np.ones(2)) == 0.5


def test_similarity_by_hand():
    phi = np.array([[1.0, 0], [0, 1], [-1, 0], [2, 2]])
    np.testing.assert_allclose(emotion_similarity(phi, phi[0]), [1, 0.5, 0, (1 + 0.5**0.5) / 2])


def test_bad_arguments_are_named(toy):
    with pytest.raises(ValueError, match="'centered'"):
        emotion_coordinates(np.zeros((1, 2)), toy, "centered")
    with pytest.raises(ValueError, match=r"\[N, 2\], got \(1, 3\)"):
        emotion_coordinates(np.zeros((1, 3)), toy)


# --- the terms ----------------------------------------------------------------------------------------------------

TABLE = {"joy": [1, 0], "glee": [0.9, 0.1], "rage": [0, 1], "mixed": [1, 1], "cold": [-1, 0.2]}


@pytest.fixture
def table_anchors():
    return build_anchors(TableEncoder(TABLE), {"happy": ["joy"], "angry": ["rage"]}, kind="captions", source="")


def test_emotion_reward_takes_the_best_reference(table_anchors):
    reward = EmotionReward(TableEncoder(TABLE), table_anchors)
    values = reward([sample("joy", ["rage", "joy"]), sample("joy", ["rage"]), sample("joy", [])])
    assert values == [pytest.approx(1), pytest.approx(0), None]


def test_emotion_reward_against_the_label_needs_no_reference(table_anchors):
    reward = EmotionReward(TableEncoder(TABLE), table_anchors, against="label")
    texts = [("joy", "happy"), ("rage", "happy"), ("mixed", "angry"), ("joy", "bored"), ("joy", None)]
    values = reward([sample(text, ["rage"], label=label) for text, label in texts])
    assert values == [pytest.approx(1), pytest.approx(0), pytest.approx(0.5, abs=1e-3), None, None]
    with pytest.raises(ValueError, match="against must be one of .*, got 'labels'"):
        EmotionReward(TableEncoder(TABLE), table_anchors, against="labels")


def test_a_caption_of_a_silent_clip_is_judged_by_the_label(encoder, anchors):
    terms = (RewardSpec("emotion", 2.0, options={"against": "label"}), RewardSpec("fluency"), RewardSpec("cider_d"))
    task = Captioning("overall", "Describe.", by_label=True)
    train = [record(f"clip-{i}", captions={"overall": texts[:3]}) for i, texts in enumerate(CAPTIONS.values())]
    reward = task.rewards(RewardConfig(terms), Judges(encoder, anchors["captions"], [*train, record("labelled")]))
    samples = [
        sample(text, label=label, group=group)
        for group, label in enumerate(CAPTIONS)
        for text in (CAPTIONS[label][5], CAPTIONS[list(CAPTIONS)[group - 3]][5])
    ]
    judged = reward(samples)
    right, wrong = judged.terms["emotion"].reshape(-1, 2).T
    assert (right > wrong).all() and (right - wrong).mean() > 0.3
    assert np.isnan(judged.terms["cider_d"]).all() and np.isfinite(judged.total).all() and judged.failures == {}


def test_semantic_reward_takes_the_best_reference():
    reward = SemanticReward(TableEncoder(TABLE))
    values = reward([sample("joy", ["rage", "mixed"]), sample("joy", ["rage"]), sample("joy", [])])
    assert values == [pytest.approx(0.5**0.5), pytest.approx(0, abs=1e-6), None]


def test_distinctiveness_prefers_the_own_references(table_anchors):
    # The text mean is (1/2, 1/2), from where joy, rage and glee lie at (1, -1), (-1, 1) and nearly (1, -1).
    reward = DistinctivenessReward(TableEncoder(TABLE), table_anchors, [["rage"], [], ["rage", "rage"]])
    own, other, nothing = reward([sample("joy", ["joy"]), sample("joy", ["rage"]), sample("joy", [])])
    assert own == pytest.approx(2, abs=1e-6) and other == pytest.approx(0, abs=1e-6) and nothing is None
    balanced = DistinctivenessReward(TableEncoder(TABLE), table_anchors, [["rage"], ["joy"]])
    assert balanced([sample("joy", ["joy"])]) == [pytest.approx(1, abs=1e-6)]


def test_a_shuffled_reward_means_nothing_and_stays_the_same(encoder, anchors):
    """By itself as spread as the real one, and no likelier to be high for the right emotion."""
    samples = [
        sample(text, [CAPTIONS[label][-1]], group=i)
        for i, label in enumerate(LABELS * 8)
        for text in (CAPTIONS[label][i // 7], CAPTIONS[LABELS[(LABELS.index(label) + 3) % 7]][i // 7])
    ]
    real, shuffled = (
        np.reshape(EmotionReward(encoder, anchors["captions"], "softmax", "best", on)(samples), (-1, 2))
        for on in (False, True)
    )
    assert (real[:, 0] > real[:, 1]).mean() > 0.9 and 0.3 < (shuffled[:, 0] > shuffled[:, 1]).mean() < 0.7
    assert shuffled.std() > 0.5 * real.std()
    again = EmotionReward(encoder, anchors["captions"], "softmax", "best", True)(samples[::-1])
    np.testing.assert_allclose(np.reshape(again[::-1], (-1, 2)), shuffled, atol=1e-6)


def test_distinctiveness_among_the_clips_of_an_emotion(table_anchors):
    """What any clip of the emotion has earns nothing; without a clip of it all count."""
    train, labels = [["joy"], [], ["rage"]], ["happy", "happy", "angry"]
    reward = DistinctivenessReward(TableEncoder(TABLE), table_anchors, train, labels)
    happy, angry, unknown = (sample("joy", ["joy"], label=label) for label in ("happy", "angry", "odd"))
    assert reward([happy, angry, unknown]) == pytest.approx([0, 2, 1], abs=1e-6)


@pytest.mark.parametrize("make", [lambda *o: EmotionReward(*o), lambda encoder, _, *o: SemanticReward(encoder, *o[1:])])
def test_over_all_references_or_the_best(table_anchors, make):
    encoder = TableEncoder(TABLE)
    alone = [make(encoder, table_anchors, "centred")([sample("joy", [text])])[0] for text in ("rage", "glee")]
    both = [sample("joy", ["rage", "glee"])]
    assert make(encoder, table_anchors, "centred", "best")(both) == [max(alone)]
    assert make(encoder, table_anchors, "centred", "mean")(both) == pytest.approx([np.mean(alone)])
    with pytest.raises(ValueError, match="over must be one of best, mean, got 'worst'"):
        make(encoder, table_anchors, "centred", "worst")


def test_distinctiveness_does_not_depend_on_what_is_judged_beside(table_anchors):
    reward = DistinctivenessReward(TableEncoder(TABLE), table_anchors, [["joy"], ["rage"], ["cold", "glee"]])
    samples = [sample(text, [reference], group) for group, (text, reference) in enumerate(zip(TABLE, reversed(TABLE)))]
    assert reward(samples) == pytest.approx([reward([one])[0] for one in samples], abs=1e-12)


def test_terms_ignore_case_and_whitespace(encoder, anchors):
    captions = [group[0] for group in CAPTIONS.values()]
    changes = (str.upper, str.lower, str.title, lambda text: f"\n  {text.replace(' ', '   ')}\t", lambda t: t + " ")
    for term in (
        EmotionReward(encoder, anchors["templates"], "softmax"),
        EmotionReward(encoder, anchors["captions"]),
        SemanticReward(encoder),
        DistinctivenessReward(encoder, anchors["captions"], [captions]),
    ):
        expected = term([sample(text, captions[-2:], group=i) for i, text in enumerate(captions)])
        for change in changes:
            changed = [
                sample(change(text), [change(r) for r in captions[-2:]], group=i) for i, text in enumerate(captions)
            ]
            assert term(changed) == expected
