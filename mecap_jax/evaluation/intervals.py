"""Confidence intervals by resampling clusters: speakers, or dialogues.

Clips of one speaker are not independent, so whole speakers are drawn with replacement (cluster bootstrap, Davison and
Hinkley 1997, section 3.8). Every metric is written as a function of a *sum over clips* (`Statistic`): a resample is
then one matrix product, and a thousand of them over hundreds of clips take milliseconds.

Metrics that count distinct types (vocabulary, distinct-n) get a delete-one-cluster jackknife interval instead: a
resample leaves out a third of the speakers and so misses the types that only they use, which puts a percentile interval
below the estimate. In a simulation with 8 to 20 speakers and Zipf-distributed words the percentile interval covered the
true vocabulary in under 6 % of the runs, the jackknife in 95 to 99 %.

With few clusters percentile intervals are too narrow: 95 % intervals of a normal mean cover it in 81 % of the runs with
4 clusters, 87 % with 8, 93 % with 20 and 94.5 % with 40. The report therefore states the number of clusters. Seeds are
fewer still: over several of them intervals are Student's (`difference_over_seeds`).
"""

from __future__ import annotations

import dataclasses
import statistics as normal_statistics
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import scipy.sparse
import scipy.special

_CHUNK = 250  # resamples summed at once; bounds the memory of wide statistics such as the vocabulary


@dataclasses.dataclass(frozen=True)
class Statistic:
    """A metric as a function of the sum over clips of per-clip statistics.

    Attributes:
      values: float `[clips, D]`, dense or sparse. A clip that the metric leaves out (no label) is a row of zeros.
      aggregate: maps sums `[..., D]` to the metric `[...]`; NaN where it is undefined.
      counts_types: the metric counts distinct types, and a resample with repeated clips underestimates it.
    """

    values: np.ndarray | scipy.sparse.csr_array
    aggregate: Callable[[np.ndarray], np.ndarray]
    counts_types: bool = False

    @property
    def value(self) -> float:
        """The metric over all clips."""
        return float(self.aggregate(np.asarray(self.values.sum(axis=0), dtype=np.float64)))


@dataclasses.dataclass(frozen=True)
class Difference:
    """First system minus second on the same clips, with its interval (None: undefined)."""

    value: float
    interval: tuple[float, float] | None


def mean(scores: Sequence[float] | np.ndarray, included: np.ndarray | None = None) -> Statistic:
    """Returns the mean of per-clip scores `[clips]`, over the clips where `included` is true (all by default)."""
    scores = np.asarray(scores, dtype=np.float64)
    included = np.ones(len(scores), dtype=bool) if included is None else included
    return Statistic(np.stack([np.where(included, scores, 0.0), included], axis=1), _ratio)


def _ratio(sums: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return sums[..., 0] / sums[..., 1]


def bootstrap(
    statistics: Mapping[str, Statistic],
    clusters: Sequence[Hashable],
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float] | None]:
    """Returns an interval `(low, high)` for every statistic; all see the same resamples.

    Args:
      statistics: metrics by name, each over the same clips.
      clusters: the speaker (or dialogue) of each clip.
      resamples: bootstrap resamples.
      confidence: level of the interval, in (0, 1).
      seed: seed of the resamples.

    Returns:
      Percentile intervals; jackknife intervals where a statistic `counts_types`. None where the metric is undefined or
      there is only one cluster, which says nothing about the spread between clusters.

    Raises:
      ValueError: lengths differ, or `resamples` or `confidence` is out of range.
    """
    groups = _Clusters(clusters, confidence)
    weights = groups.resample(resamples, seed)
    return {name: groups.interval(name, (statistic,), (1.0,), weights) for name, statistic in statistics.items()}


def bootstrap_difference(
    first: Mapping[str, Statistic],
    second: Mapping[str, Statistic],
    clusters: Sequence[Hashable],
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """Returns `first - second` with its paired interval for every metric that both have.

    Both systems must have captioned the same clips in the same order: each resample draws the same clusters for both,
    so what is common to both (an easy or a hard speaker) cancels. Arguments and errors as in `bootstrap`.
    """
    groups = _Clusters(clusters, confidence)
    weights = groups.resample(resamples, seed)
    return {
        name: Difference(
            statistic.value - second[name].value, groups.interval(name, (statistic, second[name]), (1.0, -1.0), weights)
        )
        for name, statistic in first.items()
        if name in second
    }


def difference_over_seeds(
    first: Sequence[Mapping[str, Statistic]],
    second: Sequence[Mapping[str, Statistic]],
    clusters: Sequence[Hashable],
    confidence: float = 0.95,
) -> dict[str, Difference]:
    """Returns the mean over training seeds of `first - second`, with an interval over clusters and seeds.

    Seeds and clusters are crossed: every seed meets the same clusters, as every reader meets the same cases where
    several read them. The variance is that between seeds plus that between clusters (jackknife) less what both count,
    and no less than either (two-way clustering, Cameron, Gelbach and Miller 2011, J. Bus. Econ. Stat. 29:238); the
    interval is Student's with Satterthwaite's degrees of freedom, as for readers and cases (Satterthwaite 1946,
    Biometrics Bull. 2:110; Hillis 2007, Stat. Med. 26:596). Percentiles of resampled seeds never leave the range of the
    seeds, which of three holds the true mean three times in four (1 - 2 / 2^3). With three seeds and 12 clusters, and
    effects of seeds up to twice and of clusters up to three times the rest, it held the truth in 93 to 99 % of
    simulated cases, and percentiles in 79 to 99; with two seeds in 87 to 98, and percentiles in 69 to 98. One seed has
    the interval of its clusters, which knows nothing of other seeds.

    Args:
      first, second: two systems, metrics by name a seed; all over the same clips, in the same order of seeds.
      clusters, confidence: as in `bootstrap`.

    Raises:
      ValueError: as in `bootstrap`, or the two systems have not the same number of seeds.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} seeds do not compare")
    groups = _Clusters(clusters, confidence)
    named = [name for name in first[0] if all(name in found for found in (*first, *second))]
    return {name: groups.over_seeds(name, [(a[name], b[name]) for a, b in zip(first, second)]) for name in named}


class _Clusters:
    """Which clips stand together, and the intervals that follow."""

    def __init__(self, clusters: Sequence[Hashable], confidence: float):
        if not clusters:
            raise ValueError("a bootstrap needs at least one clip")
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
        index = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
        rows = [index[cluster] for cluster in clusters]
        self.count, self.clips = len(index), len(rows)
        self.tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
        self.membership = scipy.sparse.csr_array(
            (np.ones(self.clips), (rows, np.arange(self.clips))), shape=(self.count, self.clips)
        )
        self.leave_one_out = 1 - np.eye(self.count)

    def resample(self, resamples: int, seed: int) -> np.ndarray:
        """Returns how often each cluster counts in each resample, int `[resamples, clusters]`."""
        if resamples < 1:
            raise ValueError(f"resamples must be positive, got {resamples}")
        rng = np.random.default_rng(seed)
        return rng.multinomial(self.count, np.full(self.count, 1 / self.count), size=resamples)

    def interval(
        self, name: str, terms: tuple[Statistic, ...], signs: tuple[float, ...], resamples: np.ndarray
    ) -> tuple[float, float] | None:
        """Returns the interval of the signed sum of `terms`."""
        self._check(name, terms)
        value = sum(sign * term.value for sign, term in zip(signs, terms))
        if self.count < 2 or not np.isfinite(value):
            return None
        jackknife = terms[0].counts_types
        weights = self.leave_one_out if jackknife else resamples
        draws = sum(sign * self._draws(term, weights) for sign, term in zip(signs, terms))
        draws = draws[np.isfinite(draws)]  # a resample can miss every clip that the metric is defined on
        if not draws.size:
            return None
        if jackknife:
            reach = normal_statistics.NormalDist().inv_cdf(self.tails[1]) * np.sqrt(self._jackknife(draws))
            return float(value - reach), float(value + reach)
        low, high = np.quantile(draws, self.tails)
        return float(low), float(high)

    def over_seeds(self, name: str, compared: Sequence[tuple[Statistic, Statistic]]) -> Difference:
        """Returns the mean over seeds of first minus second, with its interval over clusters and seeds."""
        for pair in compared:
            self._check(name, pair)
        values = np.array([a.value - b.value for a, b in compared])
        value, seeds = float(values.mean()), len(values)
        draws = np.stack([self._draws(a, self.leave_one_out) - self._draws(b, self.leave_one_out) for a, b in compared])
        if self.count < 2 or not np.isfinite(value) or not np.isfinite(draws).all():
            return Difference(value, None)
        of_clusters = self._jackknife(draws.mean(axis=0))
        of_seeds = both = 0.0
        if seeds > 1:
            of_seeds = values.var(ddof=1) / seeds
            # What clusters vary by beyond what all seeds share is chance in which seeds and clusters meet.
            both = (np.mean([self._jackknife(row) for row in draws]) - of_clusters) / (seeds - 1)
        variance = max(of_seeds + of_clusters - both, of_seeds, of_clusters)
        if variance == 0:
            return Difference(value, (value, value))
        # In shares of the variance, whose square may be smaller than any number (BLEU of texts that share no word).
        shares = (of_seeds / variance) ** 2 / max(1, seeds - 1) + (of_clusters / variance) ** 2 / (self.count - 1)
        freedom = 1 / shares if shares else 1.0
        reach = float(scipy.special.stdtrit(freedom, self.tails[1]) * np.sqrt(variance))
        return Difference(value, (value - reach, value + reach))

    def _jackknife(self, draws: np.ndarray) -> float:
        """The variance of an estimate from those that leave out one cluster each `[clusters]`."""
        return float((self.count - 1) * np.mean((draws - draws.mean()) ** 2))

    def _check(self, name: str, terms: Sequence[Statistic]) -> None:
        for term in terms:
            if term.values.shape[0] != self.clips:
                raise ValueError(
                    f"metric {name!r} covers {term.values.shape[0]} clips, but {self.clips} have a cluster"
                )

    def _draws(self, term: Statistic, weights: np.ndarray) -> np.ndarray:
        sums = self.membership @ term.values
        if scipy.sparse.issparse(sums):
            sums = sums.toarray()
        return np.concatenate([term.aggregate(weights[i : i + _CHUNK] @ sums) for i in range(0, len(weights), _CHUNK)])
