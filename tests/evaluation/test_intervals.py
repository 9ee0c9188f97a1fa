import math

import numpy as np
import pytest
import scipy.sparse
import scipy.stats

from mecap_jax.evaluation.intervals import (
    Statistic,
    bootstrap,
    bootstrap_difference,
    difference_over_seeds,
    mean,
)


def _types(presence: np.ndarray) -> Statistic:
    values = scipy.sparse.csr_array(presence.astype(float))
    return Statistic(values, lambda sums: (sums > 0).sum(axis=-1).astype(float), counts_types=True)


def test_bootstrap_of_a_mean_equals_a_plain_loop_over_speakers():
    rng = np.random.default_rng(0)
    speakers = rng.integers(0, 9, size=70)
    scores = rng.normal(size=70) + speakers
    found = bootstrap({"m": mean(scores)}, speakers.tolist(), resamples=4000, seed=1)["m"]
    loop = np.random.default_rng(7)
    groups = [scores[speakers == s] for s in np.unique(speakers)]
    means = [np.concatenate([groups[k] for k in loop.integers(0, 9, size=9)]).mean() for _ in range(4000)]
    np.testing.assert_allclose(found, np.quantile(means, [0.025, 0.975]), atol=0.15)


def test_intervals_cover_a_known_mean():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        effects = rng.normal(size=40)  # variance between speakers 1, within .25; the true mean is 0
        scores = np.repeat(effects, 4) + 0.5 * rng.normal(size=160)
        low, high = bootstrap({"m": mean(scores)}, np.repeat(np.arange(40), 4).tolist(), 400, 0.9, trial)["m"]
        covered += low <= 0 <= high
    assert 0.84 <= covered / 300 <= 0.95


def test_resampling_clips_instead_of_speakers_would_be_too_narrow():
    rng = np.random.default_rng(0)
    scores = np.repeat(rng.normal(size=30), 10)
    by_speaker = bootstrap({"m": mean(scores)}, np.repeat(np.arange(30), 10).tolist())["m"]
    by_clip = bootstrap({"m": mean(scores)}, list(range(300)))["m"]
    ratio = (by_speaker[1] - by_speaker[0]) / (by_clip[1] - by_clip[0])
    assert ratio == pytest.approx(math.sqrt(10), rel=0.25)


def test_intervals_of_a_vocabulary_cover_the_true_one():
    rng = np.random.default_rng(0)
    words, speakers, tokens = 300, 12, 150
    chances = 1 / np.arange(1, words + 1)
    chances /= chances.sum()
    expected = (1 - (1 - chances) ** (speakers * tokens)).sum()
    covered = percentile = 0
    for trial in range(150):
        presence = rng.multinomial(tokens, chances, size=speakers) > 0
        vocabulary = _types(presence)
        low, high = bootstrap({"v": vocabulary}, list(range(speakers)))["v"]
        covered += low <= expected <= high
        naive = Statistic(vocabulary.values, vocabulary.aggregate)
        low, high = bootstrap({"v": naive}, list(range(speakers)), 200, seed=trial)["v"]
        percentile += low <= expected <= high
    assert covered / 150 >= 0.9
    assert percentile / 150 < 0.2  # why such metrics do not get a percentile interval


def test_jackknife_of_a_mean_is_its_standard_error():
    scores = np.random.default_rng(0).normal(size=25)
    statistic = Statistic(mean(scores).values, mean(scores).aggregate, counts_types=True)
    low, high = bootstrap({"m": statistic}, list(range(25)))["m"]
    assert (low + high) / 2 == pytest.approx(scores.mean())
    assert (high - low) / 2 == pytest.approx(1.959964 * scores.std(ddof=1) / 5, rel=1e-5)


def test_paired_difference_cancels_what_both_share():
    rng = np.random.default_rng(0)
    hard = np.repeat(rng.normal(size=20), 5)
    first, second = {"m": mean(hard + 0.1), "only": mean(hard)}, {"m": mean(hard)}
    difference = bootstrap_difference(first, second, np.repeat(np.arange(20), 5).tolist())
    assert set(difference) == {"m"}
    assert difference["m"].value == pytest.approx(0.1)
    np.testing.assert_allclose(difference["m"].interval, [0.1, 0.1], atol=1e-12)


def test_one_speaker_gives_no_interval():
    assert bootstrap({"m": mean([1.0, 2.0])}, ["a", "a"]) == {"m": None}
    assert bootstrap_difference({"m": mean([1.0, 2.0])}, {"m": mean([1.0, 1.0])}, ["a", "a"])["m"].interval is None


def test_a_metric_that_some_resamples_miss_stays_defined():
    included = np.array([True, False, False, False])
    statistic = mean([2.0, math.nan, math.nan, math.nan], included)
    assert bootstrap({"m": statistic}, list("abcd"))["m"] == (2.0, 2.0)
    undefined = mean([1.0, 1.0], np.array([False, False]))
    assert math.isnan(undefined.value)
    assert bootstrap({"m": undefined}, ["a", "b"]) == {"m": None}


def test_same_seed_same_interval():
    statistics, clusters = {"m": mean(np.arange(10.0))}, list(range(10))
    assert bootstrap(statistics, clusters, seed=3) == bootstrap(statistics, clusters, seed=3)
    assert bootstrap(statistics, clusters, seed=3) != bootstrap(statistics, clusters, seed=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"m": mean([1.0])}, []), "at least one clip"),
        (({"m": mean([1.0])}, ["a", "b"]), "'m' covers 1 clips, but 2"),
        (({"m": mean([1.0])}, ["a"], 0), "resamples must be positive, got 0"),
        (({"m": mean([1.0])}, ["a"], 10, 1.0), r"confidence must lie in \(0, 1\), got 1.0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap(*arguments)


def over_seeds(cells: np.ndarray):
    """The interval of the mean of what seeds and speakers give `[seeds, speakers]`, against nothing."""
    nothing = [{"m": mean(np.zeros(cells.shape[1]))}] * len(cells)
    return difference_over_seeds([{"m": mean(row)} for row in cells], nothing, list(range(cells.shape[1])))["m"]


@pytest.mark.parametrize("of_seeds, of_speakers", [(1.0, 0.5), (0.3, 1.0), (1.0, 2.0)])
def test_few_seeds_and_speakers_are_covered_where_percentiles_fail(of_seeds, of_speakers):
    rng, seeds, speakers, trials = np.random.default_rng(0), 3, 12, 300
    covered = percentile = 0
    for _ in range(trials):
        cells = of_seeds * rng.normal(size=(seeds, 1)) + of_speakers * rng.normal(size=(1, speakers))
        cells = cells + 0.5 * rng.normal(size=(seeds, speakers))  # the true mean is 0
        low, high = over_seeds(cells).interval
        covered += low <= 0 <= high
        drawn = [rng.multinomial(n, np.full(n, 1 / n), size=300) / n for n in (seeds, speakers)]
        low, high = np.quantile(np.einsum("rs,sk,rk->r", drawn[0], cells, drawn[1]), [0.025, 0.975])
        percentile += low <= 0 <= high
    assert covered / trials >= 0.9
    assert percentile < covered - 0.03 * trials


def test_the_interval_over_seeds_is_that_of_the_textbook():
    """Balanced crossed factors: variances of the means from the mean squares of a two-way analysis of variance."""
    cells = np.random.default_rng(3).normal(size=(4, 9)) + np.arange(4)[:, None] + np.arange(9)
    seeds, speakers = cells.shape
    rows, columns, whole = cells.mean(axis=1, keepdims=True), cells.mean(axis=0, keepdims=True), cells.mean()
    of_seeds = speakers * np.sum((rows - whole) ** 2) / (seeds - 1)
    of_speakers = seeds * np.sum((columns - whole) ** 2) / (speakers - 1)
    rest = np.sum((cells - rows - columns + whole) ** 2) / (seeds - 1) / (speakers - 1)
    variance = (of_seeds + of_speakers - rest) / cells.size
    of_both = ((of_seeds / cells.size, seeds), (of_speakers / cells.size, speakers))
    freedom = variance**2 / sum(part**2 / (count - 1) for part, count in of_both)
    reach = scipy.stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    found = over_seeds(cells)
    assert found.value == pytest.approx(whole)
    np.testing.assert_allclose(found.interval, [whole - reach, whole + reach])


def test_what_both_systems_share_cancels_in_every_seed():
    rng = np.random.default_rng(0)
    hard, speakers = np.repeat(rng.normal(size=10), 6), np.repeat(np.arange(10), 6).tolist()
    first = [{"m": mean(hard + 0.1), "only": mean(hard)}] * 3
    found = difference_over_seeds(first, [{"m": mean(hard)}] * 3, speakers)
    assert found.keys() == {"m"}
    np.testing.assert_allclose([found["m"].value, *found["m"].interval], 0.1, atol=1e-7)
    same = difference_over_seeds(first, first, speakers)["m"]
    assert same.value == 0 and same.interval == (0, 0)


def test_one_seed_has_the_interval_of_its_speakers():
    scores = np.random.default_rng(0).normal(size=(2, 40))
    a, b = ({"m": mean(row), "v": _types(row[:, None] > 0)} for row in scores)
    speakers = np.repeat(np.arange(8), 5)
    found = difference_over_seeds([a], [b], speakers.tolist())
    means = (scores[0] - scores[1]).reshape(8, 5).mean(axis=1)
    reach = scipy.stats.t.ppf(0.975, 7) * means.std(ddof=1) / np.sqrt(8)
    np.testing.assert_allclose(found["m"].interval, [means.mean() - reach, means.mean() + reach])
    assert found["v"].interval is not None  # a jackknife can count types
    with pytest.raises(ValueError, match="2 and 1 seeds do not compare"):
        difference_over_seeds([a, a], [b], speakers.tolist())
    assert difference_over_seeds([a], [b], ["one"] * 40)["m"].interval is None
    with pytest.raises(ValueError, match="'m' covers 40 clips, but 39 have a cluster"):
        difference_over_seeds([a], [b], speakers.tolist()[:-1])
