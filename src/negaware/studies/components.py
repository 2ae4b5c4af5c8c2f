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
    degrees: Array
    """The degrees of freedom of that variance."""
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
    (A + B − E) / SC (Searle, Casella and McCulloch 1992, chapter 4); `pooled` has its degrees of freedom. Clusters of
    unequal sizes are linearised: the table is that of sums less size times mean, divided by the mean size.

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
        total, degrees = pooled(a, b, e, free_a, free_b)
    else:
        e, total = unknown, b if free_b else a
        degrees = np.full(value.shape, float(max(free_a, free_b)))[()]
    return CrossedMean(value, total / (num_seeds * num_clusters), degrees, a, b, e, num_seeds, num_clusters)


def pooled(a: Array, b: Array, e: Array, free_a: int, free_b: int) -> tuple[Array, Array]:
    """A + B − E of mean squares with these degrees of freedom (of E: their product), and the degrees of that.

    A and B count for at least E: the variances between seeds and between problems can't be negative. The degrees ν are
    Satterthwaite's (1946), but with 1/ν = Σ share · 1/f, where he has the shares of variance squared: with two or four
    degrees for the seeds his cover 92 and 94 % of the truth, these 94 and 95 %. The shares are those of the mean
    squares as found, so an A that is small by chance costs degrees smoothly.
    """
    import numpy as np

    total = np.maximum(a, e) + np.maximum(b, e) - e
    weighed = a / free_a + b / free_b + e / (free_a * free_b)
    return total, np.where(total > 0, total / np.where(total > 0, weighed, 1.0), float(free_b))[()]


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


def two_sided_p(mean: CrossedMean, null: float = 0.0) -> Array:
    """The probability of a mean at least so far from `null`, were that the truth. 1 where the variance isn't known."""
    return 2 * _tail(abs(mean.value - null), mean)


def equivalence_p(mean: CrossedMean, margin: float) -> Array:
    """The larger p of two one-sided tests against −margin and margin (Schuirmann 1987): small means "within"."""
    return _tail(margin - abs(mean.value), mean)


def interval(mean: CrossedMean, level: float = 0.975) -> tuple[Array, Array]:
    """The ends of Student's interval; `level` is the quantile of its upper end. Infinite where it isn't known."""
    import numpy as np
    from scipy.special import stdtrit

    with np.errstate(invalid="ignore"):
        half = np.where(mean.degrees > 0, stdtrit(mean.degrees, level) * np.sqrt(mean.variance), np.inf)[()]
    return mean.value - half, mean.value + half


def _tail(distance: Array, mean: CrossedMean) -> Array:
    """P(T ≥ distance / standard error); 1/2 where that isn't known."""
    import numpy as np
    from scipy.special import stdtr

    with np.errstate(invalid="ignore", divide="ignore"):
        tail = stdtr(mean.degrees, -distance / np.sqrt(mean.variance))
    return np.where(np.isfinite(tail), tail, 0.5)[()]
