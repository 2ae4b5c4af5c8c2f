"""The mean of a table of seeds by problems, and its variance when both are drawn at random.

The same problems are asked in every run, so a figure differs from the truth for three reasons: these seeds, these
problems, and what is particular to a seed at a problem. Functions on numpy arrays; they know neither runs nor files.
Decision 0039 says why it is done so, and docs/studies.md how often the intervals hold the truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    Array = np.ndarray


@dataclass(frozen=True, slots=True)
class CrossedMean:
    """The mean of a table of seeds by problems. Fields have the shape of what came before the table's two axes."""

    value: Array
    variance: Array
    """Of the mean, where seeds and problems are both a sample."""
    seed_share: Array
    """How much of that variance is known by the seeds alone, in [0, 1]."""
    seed: Array
    """Mean square of seeds; NaN with one seed."""
    problem: Array
    """Mean square of problems; NaN with one problem."""
    left: Array
    """Mean square of what is left, seed by problem and the chance in answers; NaN with one of either."""
    num_seeds: int
    num_problems: int

    def components(self) -> tuple[Array, Array, Array]:
        """The variances between seeds, between problems and of what is left: those of analysis of variance, at least 0.

        NaN where one seed or one problem leaves it unknown.
        """
        import numpy as np

        return (
            np.maximum(self.seed - self.left, 0.0) / self.num_problems,
            np.maximum(self.problem - self.left, 0.0) / self.num_seeds,
            self.left,
        )


def crossed_mean(sums: ArrayLike, sizes: ArrayLike | None = None) -> CrossedMean:
    """The mean of a table [..., S seeds, C clusters], with the variance that seeds and clusters give it.

    `sums` are the clusters' sums, `sizes` [C] their numbers of problems (default: 1 each). With the mean squares of
    seeds A, of clusters B and of what is left E (two-way analysis of variance), the variance of the mean is
    (A + B − E) / SC (Searle, Casella and McCulloch 1992, chapter 4). A and B count for at least E, since the variances
    between seeds and between problems can't be negative. Clusters of unequal sizes are linearised: the table is that of
    sums less size times mean, divided by the mean size.

    One seed tells nothing of seeds: the variance is then that of these problems alone. With one cluster it is that of
    seeds alone; with one of each it is NaN.
    """
    import numpy as np

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
        share = np.where(total > 0, np.minimum(a / np.where(total > 0, total, 1.0), 1.0), 0.0)[()]
    else:
        e, total = unknown, b if free_b else a
        share = np.full(value.shape, 0.0 if free_b else 1.0)[()]
    return CrossedMean(value, total / (num_seeds * num_clusters), share, a, b, e, num_seeds, num_clusters)


def crossed_change(sums: ArrayLike, sizes: ArrayLike | None = None) -> CrossedMean:
    """What the interval and the tests of a table of differences in [−1, 1] are made from.

    That is the mean of the table with two problems more, one that rose by 1 in every seed and one that fell by 1
    (Bonett and Price 2012, as in `estimates.paired_change`): without them changes that are rare, or that are the same
    in all seeds, would have an interval that is too narrow, or none.
    """
    import numpy as np

    table = np.asarray(sums, dtype=np.float64)
    numbers = np.ones(table.shape[-1]) if sizes is None else np.asarray(sizes, dtype=np.float64)
    size = float((numbers**2).sum() / numbers.sum())  # of a cluster, were all of one size (Kish 1965)
    more = np.broadcast_to(np.array([size, -size]), (*table.shape[:-1], 2))
    return crossed_mean(np.concatenate([table, more], axis=-1), np.append(numbers, [size, size]))


def quantile(mean: CrossedMean, tail: ArrayLike) -> Array:
    """How many standard errors from the mean such a tail begins: Cochran and Cox's (1950) mean of Student's quantiles.

    w t(S − 1) + (1 − w) t(C − 1), where w is the share of the variance that the seeds alone tell, A / (A + B − E).
    Satterthwaite's (1946) degrees are too many where seeds are few: by chance A is often too small, and they are then
    nearly those of the problems. Infinite where one seed and one problem leave the variance unknown.
    """
    import numpy as np
    from scipy.special import stdtrit

    share, free_a, free_b = mean.seed_share, mean.num_seeds - 1, mean.num_problems - 1
    if not free_a or not free_b:
        free = max(free_a, free_b)
        return stdtrit(free, 1 - np.asarray(tail)) if free else np.full(np.shape(mean.value), np.inf)[()]
    return share * -stdtrit(free_a, tail) - (1 - share) * stdtrit(free_b, tail)


def interval(mean: CrossedMean, tail: float = 0.025) -> tuple[Array, Array]:
    """The ends of the interval with such a tail on either side. Infinite where the variance isn't known."""
    import numpy as np

    half = quantile(mean, tail) * np.sqrt(np.nan_to_num(mean.variance, nan=1.0))
    return mean.value - half, mean.value + half


def two_sided_p(mean: CrossedMean, null: float = 0.0) -> Array:
    """The probability of a mean at least so far from `null`, were that the truth: below 5 % just outside `interval`."""
    return 2 * _tail(abs(mean.value - null), mean)


def equivalence_p(mean: CrossedMean, margin: float) -> Array:
    """The larger p of two one-sided tests against −margin and margin (Schuirmann 1987): small means "within"."""
    distance = margin - abs(mean.value)
    tail = _tail(abs(distance), mean)
    return tail * (distance >= 0) + (1 - tail) * (distance < 0)


def _tail(distance: Array, mean: CrossedMean) -> Array:
    """The tail that begins at this distance of 0 or more, by halves; 1/2 where the variance is 0 or unknown."""
    import numpy as np

    with np.errstate(invalid="ignore", divide="ignore"):
        errors = np.nan_to_num(distance / np.sqrt(mean.variance), nan=0.0)
    low, high = np.zeros(np.shape(errors)), np.full(np.shape(errors), 0.5)
    for _ in range(50):
        middle = (low + high) / 2
        beyond = quantile(mean, middle) < errors  # so far out that the tail is smaller
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    return high[()]
