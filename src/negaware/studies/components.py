"""The mean of a table of seeds by problems, and its variance when seeds and problems are both random samples.

Every run is asked the same problems, so a mean differs from the truth for three reasons: these seeds, these problems,
and what is particular to one seed at one problem. Decision 0039 gives the reasons for this method; docs/studies.md
says how often its intervals contain the truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class CrossedMean:
    """The mean of a table of seeds by problems. Each field has the shape of the axes before the table's two."""

    value: Array
    variance: Array
    """Variance of the mean, with seeds and problems as samples."""
    seed_fraction: Array
    """The fraction of that variance that seeds alone show, in [0, 1]."""
    seed: Array
    """Mean square of seeds; NaN with one seed."""
    problem: Array
    """Mean square of problems; NaN with one problem."""
    left: Array
    """Mean square of the rest (seed by problem, and chance in answers); NaN with one seed or one problem."""
    num_seeds: int
    num_problems: int

    def components(self) -> tuple[Array, Array, Array]:
        """Variances ≥ 0 between seeds, between problems, of the rest; NaN if one seed or problem leaves it unknown."""
        return (
            np.maximum(self.seed - self.left, 0.0) / self.num_problems,
            np.maximum(self.problem - self.left, 0.0) / self.num_seeds,
            self.left,
        )


def crossed_mean(sums: ArrayLike, sizes: ArrayLike | None = None) -> CrossedMean:
    """The mean of a table [..., S seeds, C clusters], and its variance.

    `sums` are the clusters' sums, `sizes` [C] their numbers of problems (default: 1 each). With the mean squares of
    seeds A, of clusters B and of the rest E (two-way analysis of variance), the variance of the mean is
    (A + B − E) / SC (Searle, Casella and McCulloch 1992, chapter 4). A and B count for at least E, since the variances
    between seeds and between problems can't be negative. Clusters of unequal sizes are linearised: from each sum, size
    times mean is subtracted, and the result is divided by the mean size.

    With one seed the variance is between problems alone; with one cluster, between seeds alone; with one of each, NaN.
    """
    table = np.asarray(sums, dtype=np.float64)
    num_seeds, num_clusters = table.shape[-2:]
    numbers = np.ones(num_clusters) if sizes is None else np.asarray(sizes, dtype=np.float64)
    value = table.sum((-2, -1)) / (num_seeds * numbers.sum())
    deviations = (table - numbers * value[..., None, None]) / numbers.mean()
    by_seed, by_problem = deviations.mean(-1, keepdims=True), deviations.mean(-2, keepdims=True)
    free_a, free_b = num_seeds - 1, num_clusters - 1
    unknown = np.full(value.shape, np.nan)[()]
    a = num_clusters * (by_seed**2).sum((-2, -1)) / free_a if free_a else unknown
    b = num_seeds * (by_problem**2).sum((-2, -1)) / free_b if free_b else unknown
    if free_a and free_b:
        e = ((deviations - by_seed - by_problem) ** 2).sum((-2, -1)) / (free_a * free_b)
        total = np.maximum(a, e) + np.maximum(b, e) - e
        fraction = np.where(total > 0, np.minimum(a / np.where(total > 0, total, 1.0), 1.0), 0.0)[()]
    else:
        e, total = unknown, b if free_b else a
        fraction = np.full(value.shape, 0.0 if free_b else 1.0)[()]
    return CrossedMean(value, total / (num_seeds * num_clusters), fraction, a, b, e, num_seeds, num_clusters)


def crossed_change(sums: ArrayLike, sizes: ArrayLike | None = None) -> CrossedMean:
    """The mean of a table of differences in [−1, 1], adjusted for its interval and its tests.

    Two problems are added, one that rose by 1 in every seed and one that fell by 1 (Bonett and Price 2012, as in
    `estimates.paired_change`). Without them, the interval of rare changes would be too narrow, and changes that are the
    same in all seeds would have none.
    """
    table = np.asarray(sums, dtype=np.float64)
    numbers = np.ones(table.shape[-1]) if sizes is None else np.asarray(sizes, dtype=np.float64)
    size = float((numbers**2).sum() / numbers.sum())  # the effective size of a cluster (Kish 1965)
    more = np.broadcast_to(np.array([size, -size]), (*table.shape[:-1], 2))
    return crossed_mean(np.concatenate([table, more], axis=-1), np.append(numbers, [size, size]))


def quantile(mean: CrossedMean, tail: ArrayLike) -> Array:
    """The distance from the mean, in standard errors, at which this tail begins (Cochran and Cox 1950).

    It is w t(S − 1) + (1 − w) t(C − 1), with Student's t and w = A / (A + B − E), `seed_fraction`. Satterthwaite's
    (1946) degrees of freedom are too many where seeds are few: A is often too small by chance, and the degrees are then
    nearly the problems'. Infinite where one seed and one problem leave the variance unknown.
    """
    from scipy.special import stdtrit

    fraction, free_a, free_b = mean.seed_fraction, mean.num_seeds - 1, mean.num_problems - 1
    if not free_a or not free_b:
        free = max(free_a, free_b)
        return stdtrit(free, 1 - np.asarray(tail)) if free else np.full(np.shape(mean.value), np.inf)[()]
    return fraction * -stdtrit(free_a, tail) - (1 - fraction) * stdtrit(free_b, tail)


def interval(mean: CrossedMean, tail: float = 0.025) -> tuple[Array, Array]:
    """The ends of the interval with this tail on either side. Infinite where the variance isn't known."""
    half = quantile(mean, tail) * np.sqrt(np.nan_to_num(mean.variance, nan=1.0))
    return mean.value - half, mean.value + half


def two_sided_p(mean: CrossedMean, null: float = 0.0) -> Array:
    """The probability of a mean at least this far from `null`, if `null` is true; below 5 % just outside `interval`."""
    return 2 * _tail(abs(mean.value - null), mean)


def equivalence_p(mean: CrossedMean, margin: float) -> Array:
    """The larger p of two one-sided tests against −margin and margin (Schuirmann 1987); small if the mean is within."""
    distance = margin - abs(mean.value)
    tail = _tail(abs(distance), mean)
    return tail * (distance >= 0) + (1 - tail) * (distance < 0)


def _tail(distance: Array, mean: CrossedMean) -> Array:
    """The tail that begins at this distance ≥ 0, found by bisection; 1/2 where the variance is 0 or unknown."""
    with np.errstate(invalid="ignore", divide="ignore"):
        errors = np.nan_to_num(distance / np.sqrt(mean.variance), nan=0.0)
    low, high = np.zeros(np.shape(errors)), np.full(np.shape(errors), 0.5)
    for _ in range(50):
        middle = (low + high) / 2
        beyond = quantile(mean, middle) < errors  # the tail is smaller than `middle`
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    return high[()]
