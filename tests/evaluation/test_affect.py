"""Errors of valence and arousal, and divergences of label distributions."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from mecap_jax.evaluation.affect import affect_error, label_divergence
from mecap_jax.evaluation.intervals import bootstrap

PLACES = {"happy": np.array([1.0, 1.0]), "calm": np.array([1.0, -1.0]), "sad": np.array([-1.0, -1.0])}


def test_distances_and_what_cannot_be_placed():
    gold = ["happy", "happy", "sad", "happy", "odd", None]
    predicted = ["happy", "calm", None, "odd", "happy", "happy"]
    worst = math.hypot(2, 2)
    assert affect_error(predicted, gold, PLACES).value == pytest.approx((0 + 2 + worst + worst) / 4)
    assert math.isnan(affect_error(["happy"], ["happy"], {}).value)


def test_divergences_equal_those_of_scipy():
    rng = np.random.default_rng(0)
    classes = ("happy", "sad", "calm")
    gold = [classes[k] for k in rng.choice(3, 300, p=(0.5, 0.3, 0.2))]
    predicted = [(*classes, None)[k] for k in rng.choice(4, 300, p=(0.7, 0.1, 0, 0.2))]
    p, q = (np.array([names.count(name) + 0.5 for name in (*classes, None)]) / 302 for names in (predicted, gold))
    found = label_divergence(predicted, gold, classes)
    assert found.kl.value == pytest.approx(entropy(q, p))
    assert found.js.value == pytest.approx(jensenshannon(p, q) ** 2)
    low, high = bootstrap({"kl": found.kl}, [i % 30 for i in range(300)])["kl"]
    assert low < found.kl.value < high


def test_the_same_distribution_diverges_by_nothing_and_one_without_answers_most():
    gold = ["happy", "sad"] * 20
    assert label_divergence(gold[::-1], gold, ("happy", "sad")).kl.value == pytest.approx(0)
    silent, lopsided = (label_divergence(guess, gold, ("happy", "sad")) for guess in ([None] * 40, ["happy"] * 40))
    assert silent.kl.value > lopsided.kl.value > 0
    assert math.log(2) > silent.js.value > lopsided.js.value > 0


def test_unlabelled_clips_are_left_out_and_bad_input_is_named():
    assert math.isnan(label_divergence(["sad"], [None], ("sad",)).js.value)
    with pytest.raises(ValueError, match=r"labels \['odd'\] are not among"):
        label_divergence(["odd"], ["sad"], ("sad",))
    for function in (affect_error, label_divergence):
        with pytest.raises(ValueError, match="1 predicted labels but 0"):
            function(["sad"], [], PLACES)
