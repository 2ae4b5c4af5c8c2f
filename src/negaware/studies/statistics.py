"""What a study says: each variant's figures, and their differences to the reference with intervals and tests.

All from `StudyResults` alone. Seeds and problems are both a sample (`components.py`, decision 0039); problems with
equal questions are one cluster. docs/studies.md has the assumptions and how often the intervals hold the truth.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from negaware.estimates import Estimate, fraction_interval, student_interval, student_t
from negaware.studies.components import crossed_change, crossed_mean, equivalence_p, interval, quantile, two_sided_p
from negaware.studies.results import RunResult, StudyResults

if TYPE_CHECKING:
    import numpy as np

LEAST_SEEDS = 3
"""With fewer seeds a difference is shown, and proves nothing."""
LEVEL = 0.05
"""Of the tests, after Holm's correction."""
LAST_PART = 0.1
""" "At the end" is the mean of this part of the steps: the last one alone is noisy."""

Verdict = Literal["better", "worse", "matches", "undecided"]
Moment = Literal["before", "after"]
"""Of an evaluation: before training, or after it."""


@dataclass(frozen=True, slots=True)
class VariantFigures:
    """What the finished runs of a variant came to."""

    variant: str
    seeds: tuple[int, ...]
    accuracy: Mapping[str, Estimate]
    """By measure, over seeds and problems."""
    means: Mapping[str, Estimate]
    """By SEED_FIGURES' names, the mean over seeds; those that a run doesn't have are left out."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A variant's difference to the reference in one measure, over their common seeds."""

    measure: str
    variant: str
    reference: str
    seeds: tuple[int, ...]
    change: Estimate
    """Variant less reference, the same seeds and problems paired."""
    improvement: Estimate
    """The probability that a run of the variant is better than one of the reference, over seeds."""
    noise: float
    """The smallest margin within which two equal variants would have been said to match, before correction."""
    components: tuple[float, float, float]
    """Variances of the difference: between seeds, between problems, what is left. NaN where unknown."""
    seed_share: float
    """How much of the variance of the difference is known by the seeds alone, in [0, 1]."""
    margin: float | None = None
    p_value: float | None = None
    """Of no difference, two-sided; None with fewer than LEAST_SEEDS seeds, as all that follows."""
    p_holm: float | None = None
    """After Holm's correction for all variants compared in this measure."""
    equivalence: float | None = None
    """Of a difference beyond the margin (two one-sided tests); None without a margin."""
    equivalence_holm: float | None = None

    @property
    def verdict(self) -> Verdict | None:
        """One word, from the corrected p-values; None with fewer than LEAST_SEEDS seeds.

        A difference that is both beyond chance and within the margin is "better" or "worse": the interval says by how
        little.
        """
        if self.p_holm is None:
            return None
        if self.p_holm < LEVEL:
            return "better" if self.change.value > 0 else "worse"
        return "matches" if self.equivalence_holm is not None and self.equivalence_holm < LEVEL else "undecided"


def variant_figures(results: StudyResults) -> list[VariantFigures]:
    """Of every variant that has a finished run, in the study's order.

    ValueError where runs were measured on different problems.
    """
    shown = []
    for variant in results.variants:
        if runs := results.of(variant):
            means = {
                name: seed_mean([figure(run) for run in runs], most=1.0 if name in SHARES else math.inf)
                for name, figure in SEED_FIGURES.items()
            }
            shown.append(
                VariantFigures(
                    variant,
                    tuple(run.seed for run in runs),
                    {measure: accuracy(results, runs, measure) for measure in results.measures()},
                    {name: mean for name, mean in means.items() if mean is not None},
                )
            )
    return shown


def before_training(results: StudyResults) -> dict[str | None, dict[str, Estimate]]:
    """The accuracy before training by variant and measure; under None alone where all variants of a seed began alike.

    Runs that began alike share one evaluation, so its interval is that of the problems. Those that didn't, of a variant
    or of several seeds, are taken as seeds. ValueError where runs were measured on different problems.
    """
    by_seed = {run.seed: run for run in results.runs}
    if all(run.before == by_seed[run.seed].before for run in results.runs):
        one_a_seed = [*by_seed.values()]
        return {None: _before(results, one_a_seed)} if one_a_seed and one_a_seed[0].before else {}
    return {variant: _before(results, runs) for variant in results.variants if (runs := results.of(variant))}


def _began_alike(runs: Sequence[RunResult]) -> bool:
    return all(run.before == runs[0].before for run in runs)


def _before(results: StudyResults, runs: Sequence[RunResult]) -> dict[str, Estimate]:
    measures = [name for name in results.measures() if all(run.before.get(name) for run in runs)]
    return {name: accuracy(results, runs[:1] if _began_alike(runs) else runs, name, "before") for name in measures}


def accuracy(results: StudyResults, runs: Sequence[RunResult], measure: str, moment: Moment = "after") -> Estimate:
    """The mean of some runs in a measure, with an interval for seeds and problems both; it stays inside [0, 1].

    With one seed it is that of these problems alone.
    """
    sizes = [len(cluster) for cluster in _clusters(results, measure)]
    mean = crossed_mean(_sums(results, runs, measure, moment), sizes)
    answers = sum(sizes) * len(runs) * min(run.completions.get(measure, 1) for run in runs)
    return share_estimate(float(mean.value), float(mean.variance), float(quantile(mean, 0.025)), sizes, answers)


def share_estimate(
    share: float, variance: float, standard_errors: float, sizes: Sequence[int], num_answers: int
) -> Estimate:
    """`estimates.fraction_interval` of a table's mean: a table of clusters of these `sizes`, `num_answers` in all."""
    number = sum(sizes)
    if len(sizes) == 1:
        return Estimate(share, 0.0, 1.0, number, 1)
    low, high = fraction_interval(
        share,
        variance,
        standard_errors,
        size=number**2 / sum(size**2 for size in sizes),
        num_answers=num_answers,
    )
    return Estimate(share, low, high, number, len(sizes))


def comparisons(results: StudyResults) -> list[Comparison]:
    """Every variant's difference to the reference, by measure and then in the study's order; over common seeds.

    Holm's correction is for all variants of one measure that have seeds enough. Variants without a seed in common with
    the reference are left out. ValueError where runs were measured on different problems.
    """
    found = []
    for measure in results.measures():
        compared = [_compare(results, measure, one) for one in results.variants if one != results.reference]
        found += _corrected([one for one in compared if one is not None])
    return found


def _compare(results: StudyResults, measure: str, variant: str) -> Comparison | None:
    of = {run.seed: run for run in results.of(variant)}
    to = {run.seed: run for run in results.of(results.reference)}
    seeds = tuple(sorted(of.keys() & to.keys()))
    if not seeds:
        return None
    first, second = ([runs[seed] for seed in seeds] for runs in (of, to))
    sizes = [len(cluster) for cluster in _clusters(results, measure)]
    change = _sums(results, first, measure) - _sums(results, second, measure)
    mean = crossed_change(change, sizes)
    low, high = (float(end) for end in interval(mean))
    _, above = interval(mean, LEVEL)
    value = float(change.sum() / (len(seeds) * sum(sizes)))
    margin, enough = results.margins.get(measure), len(seeds) >= LEAST_SEEDS
    seed, problem, left = crossed_mean(change, sizes).components()
    return Comparison(
        measure,
        variant,
        results.reference,
        seeds,
        Estimate(value, min(max(-1.0, low), value), max(min(1.0, high), value), sum(sizes), len(sizes)),
        improvement([_mean(run, measure) for run in first], [_mean(run, measure) for run in second]),
        noise=float(above - mean.value),
        components=(float(seed), float(problem), float(left)),
        seed_share=float(mean.seed_share),
        margin=margin,
        p_value=float(two_sided_p(mean)) if enough else None,
        equivalence=float(equivalence_p(mean, margin)) if enough and margin is not None else None,
    )


def _corrected(family: Sequence[Comparison]) -> list[Comparison]:
    differences = iter(holm([one.p_value for one in family if one.p_value is not None]))
    equivalences = iter(holm([one.equivalence for one in family if one.equivalence is not None]))
    return [
        replace(
            one,
            p_holm=None if one.p_value is None else next(differences),
            equivalence_holm=None if one.equivalence is None else next(equivalences),
        )
        for one in family
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p-values (1979), in the order given: of m, the k-th smallest times m − k + 1, never falling."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    return corrected


def improvement(of: Sequence[float], over: Sequence[float]) -> Estimate:
    """The probability that a run with a figure of `of` is better than one of `over` (Agarwal et al. 2021).

    The share of pairs in which it is, ties half. The interval is over runs: the score interval of Mann and Whitney's
    statistic (Newcombe 2006, method 5), whose ends θ solve |θ − share| = t √V(θ), with Student's t for his 1.96: that
    leaves 50 % out wherever three runs are all better than three, which happens in one of ten cases by chance. It has a
    width where all pairs agree; with one run of each it is [0, 1].
    """
    pairs = [(first > second) + (first == second) / 2 for first in of for second in over]
    share, more = statistics.fmean(pairs), (len(of) + len(over)) / 2 - 1
    if more == 0:
        return Estimate(share, 0.0, 1.0)

    standard_errors = student_t(len(of) + len(over) - 2)

    def outside(end: float) -> bool:
        variance = end * (1 - end) * (1 + more * ((1 - end) / (2 - end) + end / (1 + end))) / len(pairs)
        return abs(end - share) > standard_errors * math.sqrt(variance)

    return Estimate(share, _border(outside, 0.0, share), _border(outside, 1.0, share))


def _border(outside: Callable[[float], bool], end: float, inside: float) -> float:
    """Between `end` and `inside`, where `outside` becomes false; by halves."""
    if not outside(end):
        return end
    for _ in range(60):
        middle = (end + inside) / 2
        end, inside = (middle, inside) if outside(middle) else (end, middle)
    return inside


def seed_mean(values: Sequence[float | None], most: float = math.inf) -> Estimate | None:
    """The mean over seeds of a figure that is from 0 to `most`, with Student's interval, which stays inside too.

    None where a run hasn't the figure. No interval for one seed, nor where all are equal: their spread isn't known.
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    mean = statistics.fmean(known)
    if len(set(known)) == 1:
        return Estimate(mean)
    low, high = student_interval(known)
    return Estimate(mean, max(0.0, low), min(most, high))


def area(run: RunResult) -> float | None:
    """The area under the held-out curve by trapezia, over its steps: the mean accuracy on the way, in [0, 1]."""
    curve = [(line["step"], line["evaluation/accuracy"]) for line in run.metrics if "evaluation/accuracy" in line]
    if len(curve) < 2:
        return None
    parts = itertools.pairwise(curve)
    whole = math.fsum((step - before) * (value + last) / 2 for (before, last), (step, value) in parts)
    return whole / (curve[-1][0] - curve[0][0])


def _at_the_end(key: str) -> Callable[[RunResult], float | None]:
    def mean(run: RunResult) -> float | None:
        values = [line[key] for line in run.metrics if key in line]
        return statistics.fmean(values[-max(1, round(LAST_PART * len(values))) :]) if values else None

    return mean


def _over_the_run(key: str) -> Callable[[RunResult], float | None]:
    def mean(run: RunResult) -> float | None:
        values = [line[key] for line in run.metrics if key in line]
        return statistics.fmean(values) if values else None

    return mean


SEED_FIGURES: dict[str, Callable[[RunResult], float | None]] = {
    "area": area,
    "entropy": _at_the_end("train/entropy"),
    "answer_tokens": _at_the_end("rollout/answer_tokens"),
    "informative_share": _over_the_run("rollout/informative_share"),
    "train_seconds": lambda run: run.train_seconds,
    "processor_seconds": lambda run: run.processor_seconds,
}
"""What a run has one of: area under the held-out curve, entropy (nats) and length (tokens) of answers at the end,
share of informative groups over the run, and its times."""
SHARES = ("area", "informative_share")
"""Those of SEED_FIGURES that can't be above 1."""


def _mean(run: RunResult, measure: str) -> float:
    return math.fsum(run.after[measure].values()) / len(run.after[measure])


def _clusters(results: StudyResults, measure: str) -> list[list[str]]:
    """The ids of the problems that a measure was made of, those with equal questions together."""
    first = results.runs[0]
    members: dict[Hashable, list[str]] = {}
    for problem in first.after[measure]:
        members.setdefault(first.questions.get(problem, problem), []).append(problem)
    return list(members.values())


def _sums(results: StudyResults, runs: Sequence[RunResult], measure: str, moment: Moment = "after") -> np.ndarray:
    """[seeds, clusters]: the sum of a measure over each cluster's problems. ValueError where problems differ.

    Problems are equal where their ids and their questions are: an id may be no more than a file's name and a row.
    """
    import numpy as np

    first = results.runs[0]
    for run in runs:
        if _problems(run, measure, moment) != _problems(first, measure, "after"):
            raise ValueError(
                f"{run.variant} (seed {run.seed}) and {first.variant} (seed {first.seed}) were measured on different "
                f"problems in {measure}; let all variants of a study have the same task and evaluation."
            )
    clusters = _clusters(results, measure)
    found = [getattr(run, moment)[measure] for run in runs]
    return np.array([[math.fsum(shares[one] for one in cluster) for cluster in clusters] for shares in found])


def _problems(run: RunResult, measure: str, moment: Moment) -> dict[str, str]:
    """The id of each problem that it was measured on, with its question."""
    return {problem: run.questions.get(problem, problem) for problem in getattr(run, moment)[measure]}
