"""The statistics of a study: each variant's figures, and differences to the reference with intervals and tests.

Seeds and problems are both samples (`components.py`, decision 0039); problems with equal questions are one cluster.
docs/studies.md lists the assumptions, and says how often the intervals contain the truth.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from negaware.estimates import Estimate, fraction_interval, student_interval, student_t
from negaware.studies.components import crossed_change, crossed_mean, equivalence_p, interval, quantile, two_sided_p
from negaware.studies.results import RunResult, StudyResults

LEAST_SEEDS = 3
"""With fewer seeds a difference is shown, but not tested."""
LEVEL = 0.05  # of the tests, after Holm's correction
LAST_PART = 0.1
"""A value "at the end" is the mean over this fraction of the steps, since one step alone is noisy."""

Verdict = Literal["better", "worse", "matches", "undecided"]
Moment = Literal["before", "after"]  # training


@dataclass(frozen=True, slots=True)
class VariantFigures:
    """The figures of a variant's finished runs."""

    variant: str
    seeds: tuple[int, ...]
    accuracy: Mapping[str, Estimate]
    """Measure → accuracy, over seeds and problems."""
    means: Mapping[str, Estimate]
    """Name in SEED_FIGURES → mean over seeds; without figures that a run lacks."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A variant's difference to the reference in one measure, over their common seeds."""

    measure: str
    variant: str
    reference: str
    seeds: tuple[int, ...]
    change: Estimate
    """Variant minus reference, paired by seed and problem."""
    improvement: Estimate
    """The probability that a run of the variant is better than one of the reference, over seeds."""
    noise: float
    """The smallest margin at which two equal variants would match, before Holm's correction."""
    components: tuple[float, float, float]
    """Variances of the difference: between seeds, between problems, the rest. NaN where unknown."""
    seed_fraction: float
    """The fraction of the difference's variance that seeds alone show, in [0, 1]."""
    margin: float | None = None
    p_value: float | None = None
    """p of no difference, two-sided. This field and the next three are None with fewer than LEAST_SEEDS seeds."""
    p_holm: float | None = None
    """p_value after Holm's correction for all variants compared in this measure."""
    equivalence: float | None = None
    """p of a difference beyond the margin (two one-sided tests); None without a margin."""
    equivalence_holm: float | None = None

    @property
    def verdict(self) -> Verdict | None:
        """One word, from the corrected p-values; None with fewer than LEAST_SEEDS seeds.

        A difference that is significant and also within the margin is "better" or "worse".
        """
        if self.p_holm is None:
            return None
        if self.p_holm < LEVEL:
            return "better" if self.change.value > 0 else "worse"
        return "matches" if self.equivalence_holm is not None and self.equivalence_holm < LEVEL else "undecided"


def variant_figures(results: StudyResults) -> list[VariantFigures]:
    """Figures of each variant with a finished run, in the study's order. ValueError if runs differ in problems."""
    shown = []
    for variant in results.variants:
        if runs := results.of(variant):
            means = {
                name: seed_mean([figure(run) for run in runs], most=1.0 if name in FRACTIONS else math.inf)
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
    """Variant → measure → accuracy before training. If all variants of a seed began alike, the only key is None.

    Runs that began alike have one evaluation in common, so its interval is over problems alone; otherwise it is over
    seeds too. ValueError if runs were measured on different problems.
    """
    by_seed = {run.seed: run for run in results.runs}
    if all(run.before == by_seed[run.seed].before for run in results.runs):
        one_a_seed = [*by_seed.values()]
        return {None: _before(results, one_a_seed)} if one_a_seed and one_a_seed[0].before else {}
    return {variant: _before(results, runs) for variant in results.variants if (runs := results.of(variant))}


def _before(results: StudyResults, runs: Sequence[RunResult]) -> dict[str, Estimate]:
    measures = [name for name in results.measures() if all(run.before.get(name) for run in runs)]
    if all(run.before == runs[0].before for run in runs):
        runs = runs[:1]
    return {name: accuracy(results, runs, name, "before") for name in measures}


def accuracy(results: StudyResults, runs: Sequence[RunResult], measure: str, moment: Moment = "after") -> Estimate:
    """A measure's mean over runs in [0, 1], with an interval over seeds and problems; of one run over problems."""
    sizes = [len(cluster) for cluster in _clusters(results, measure)]
    mean = crossed_mean(_sums(results, runs, measure, moment), sizes)
    answers = sum(sizes) * len(runs) * min(run.completions.get(measure, 1) for run in runs)
    return fraction_estimate(float(mean.value), float(mean.variance), float(quantile(mean, 0.025)), sizes, answers)


def fraction_estimate(
    mean: float, variance: float, standard_errors: float, sizes: Sequence[int], num_answers: int
) -> Estimate:
    """A table's mean with `estimates.fraction_interval`: `sizes` of its clusters, `num_answers` in all."""
    number = sum(sizes)
    if len(sizes) == 1:
        return Estimate(mean, 0.0, 1.0, number, 1)
    size = number**2 / sum(size**2 for size in sizes)
    low, high = fraction_interval(mean, variance, standard_errors, size=size, num_answers=num_answers)
    return Estimate(mean, low, high, number, len(sizes))


def comparisons(results: StudyResults) -> list[Comparison]:
    """Every variant's difference to the reference over common seeds, by measure and then in the study's order.

    Holm's correction is for all tested variants of one measure. Variants without a seed in common with the reference
    are left out. ValueError if runs were measured on different problems.
    """
    found = []
    for measure in results.measures():
        compared = [_compare(results, measure, one) for one in results.variants if one != results.reference]
        found += _corrected([one for one in compared if one is not None])
    return found


def _compare(results: StudyResults, measure: str, variant: str) -> Comparison | None:
    runs, reference = ({run.seed: run for run in results.of(name)} for name in (variant, results.reference))
    seeds = tuple(sorted(runs.keys() & reference.keys()))
    if not seeds:
        return None
    first, second = [runs[seed] for seed in seeds], [reference[seed] for seed in seeds]
    sizes = [len(cluster) for cluster in _clusters(results, measure)]
    change = _sums(results, first, measure) - _sums(results, second, measure)
    mean = crossed_change(change, sizes)
    low, high = (float(end) for end in interval(mean))
    _, above = interval(mean, LEVEL)
    value = float(change.sum() / (len(seeds) * sum(sizes)))
    margin, enough = results.margins.get(measure), len(seeds) >= LEAST_SEEDS
    seed, problem, rest = crossed_mean(change, sizes).components()
    return Comparison(
        measure,
        variant,
        results.reference,
        seeds,
        Estimate(value, min(max(-1.0, low), value), max(min(1.0, high), value), sum(sizes), len(sizes)),
        improvement([_mean(run, measure) for run in first], [_mean(run, measure) for run in second]),
        noise=float(above - mean.value),
        components=(float(seed), float(problem), float(rest)),
        seed_fraction=float(mean.seed_fraction),
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
    """Holm's corrected p-values (1979), in the order given: the k-th smallest of m times m − k + 1, made monotone."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    return corrected


def improvement(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """The probability that a run with a figure of `first` is better than one of `second` (Agarwal et al. 2021).

    It is the fraction p of pairs in which it is better; a tie counts half. The interval is over runs: the score
    interval of Mann and Whitney's statistic (Newcombe 2006, method 5), whose ends θ solve |θ − p| = t √V(θ). Student's
    t replaces Newcombe's 1.96: then the interval excludes 50 % if three runs are all better than three others, which
    happens by chance in one of ten cases. It has a width even where all pairs agree; with one run each it is [0, 1].
    """
    pairs = [(a > b) + (a == b) / 2 for a in first for b in second]
    fraction, more = statistics.fmean(pairs), (len(first) + len(second)) / 2 - 1
    if more == 0:
        return Estimate(fraction, 0.0, 1.0)

    standard_errors = student_t(len(first) + len(second) - 2)

    def outside(end: float) -> bool:
        variance = end * (1 - end) * (1 + more * ((1 - end) / (2 - end) + end / (1 + end))) / len(pairs)
        return abs(end - fraction) > standard_errors * math.sqrt(variance)

    return Estimate(fraction, _border(outside, 0.0, fraction), _border(outside, 1.0, fraction))


def _border(outside: Callable[[float], bool], end: float, inside: float) -> float:
    """The point between `end` and `inside` at which `outside` becomes false, found by bisection."""
    if not outside(end):
        return end
    for _ in range(60):
        middle = (end + inside) / 2
        end, inside = (middle, inside) if outside(middle) else (end, middle)
    return inside


def seed_mean(values: Sequence[float | None], most: float = math.inf) -> Estimate | None:
    """The mean over seeds of a figure in [0, `most`], with Student's interval, inside these bounds too.

    None if a run lacks the figure. There is no interval for one seed, nor if all seeds are equal.
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
    """The area under the held-out curve by trapezia, divided by its steps: the mean accuracy in training, in [0, 1]."""
    curve = [(line["step"], line["evaluation/accuracy"]) for line in run.metrics if "evaluation/accuracy" in line]
    if len(curve) < 2:
        return None
    parts = itertools.pairwise(curve)
    whole = math.fsum((step - before) * (value + last) / 2 for (before, last), (step, value) in parts)
    return whole / (curve[-1][0] - curve[0][0])


def _mean_of(key: str, last: float = 1.0) -> Callable[[RunResult], float | None]:
    """The mean of a metric over this last fraction of the steps that have it."""

    def mean(run: RunResult) -> float | None:
        values = [line[key] for line in run.metrics if key in line]
        return statistics.fmean(values[-max(1, round(last * len(values))) :]) if values else None

    return mean


SEED_FIGURES: dict[str, Callable[[RunResult], float | None]] = {
    "area": area,
    "entropy": _mean_of("train/entropy", LAST_PART),
    "answer_tokens": _mean_of("rollout/answer_tokens", LAST_PART),
    "informative_share": _mean_of("rollout/informative_share"),
    "train_seconds": lambda run: run.train_seconds,
    "processor_seconds": lambda run: run.processor_seconds,
}
"""Figures with one value a run: area under the held-out curve, entropy (nats) and length (tokens) of answers at the
end, fraction of informative groups over the run, and its times."""
FRACTIONS = ("area", "informative_share")
"""Names in SEED_FIGURES whose values can't be above 1."""


def _mean(run: RunResult, measure: str) -> float:
    return math.fsum(run.after[measure].values()) / len(run.after[measure])


def _clusters(results: StudyResults, measure: str) -> list[list[str]]:
    """The ids of a measure's problems, in clusters of equal questions."""
    first = results.runs[0]
    members: dict[Hashable, list[str]] = {}
    for problem in first.after[measure]:
        members.setdefault(first.questions.get(problem, problem), []).append(problem)
    return list(members.values())


def _sums(results: StudyResults, runs: Sequence[RunResult], measure: str, moment: Moment = "after") -> np.ndarray:
    """[seeds, clusters]: the sum of a measure over each cluster's problems. ValueError if problems differ.

    Problems are equal if ids and questions are: an id may be only a file's name and a row.
    """
    first = results.runs[0]
    for run in runs:
        if _problems(run, measure, moment) != _problems(first, measure, "after"):
            raise ValueError(
                f"{run.variant} (seed {run.seed}) and {first.variant} (seed {first.seed}) were measured on different "
                f"problems in {measure}; let all variants of a study have the same task and evaluation."
            )
    clusters = _clusters(results, measure)
    found = [getattr(run, moment)[measure] for run in runs]
    return np.array([[math.fsum(values[one] for one in cluster) for cluster in clusters] for values in found])


def _problems(run: RunResult, measure: str, moment: Moment) -> dict[str, str]:
    """Id → question of the problems that a run was measured on."""
    return {problem: run.questions.get(problem, problem) for problem in getattr(run, moment)[measure]}
