"""A figure with its 95 % interval: a mean over problems, or its change from one measurement to another.

Pure functions of numbers. docs/evaluation.md has their coverage in simulations.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

LEVEL = 0.975
"""The quantile of a 95 % interval's upper end."""
FEW_QUESTIONS = 50
"""With fewer different questions a figure is shown with a word of caution."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, its 95 % interval if known, and how many problems and different questions it rests on."""

    value: float
    low: float | None = None
    high: float | None = None
    num_problems: int | None = None
    num_questions: int | None = None

    def __str__(self) -> str:
        interval = f" [{self.low:.1%}, {self.high:.1%}]" if self.low is not None and self.high is not None else ""
        return f"{self.value:.1%}{interval}"

    @property
    def points(self) -> str:
        """A change in percentage points, with its sign: "+4.0 points [-1.2, +9.3]"."""
        shown = f"{100 * self.value:+.1f} points"
        if self.low is None or self.high is None:
            return shown
        return f"{shown} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"

    @property
    def caution(self) -> str | None:
        """A word of caution if the figure rests on few questions, else None."""
        number = self.num_questions if self.num_questions is not None else self.num_problems
        if number is None or number >= FEW_QUESTIONS:
            return None
        what = "problem" if number == self.num_problems else "different question"
        return (
            f"only {number} {what}{'s' * (number > 1)}, so one of them is {100 / number:.3g} points: "
            "too few to tell small differences"
        )


def clustered_estimate(
    values: Sequence[float], answers_per_problem: int = 1, questions: Sequence[Hashable] | None = None
) -> Estimate:
    """The mean of one value in [0, 1] for each problem, with an interval inside [0, 1].

    It is `fraction_interval` with the variance between questions (over n − 1) and Student's t with n − 1 degrees of
    freedom. Problems with equal `questions` (all differ by default) are one cluster.
    """
    if not values:
        raise ValueError("an estimate needs at least one problem, got none")
    mean = math.fsum(values) / len(values)
    clusters = _clusters(values, questions)
    if len(clusters) == 1:
        return Estimate(mean, 0.0, 1.0, len(values), 1)
    low, high = fraction_interval(
        mean,
        _variance_of_mean(clusters),
        student_t(len(clusters) - 1),
        size=_effective_number(clusters),
        num_answers=len(values) * answers_per_problem,
    )
    return Estimate(mean, low, high, len(values), len(clusters))


def paired_change(
    before: Sequence[float], after: Sequence[float], questions: Sequence[Hashable] | None = None
) -> Estimate:
    """The change of the mean from one list of values in [0, 1] to another of the same problems, in the same order.

    Student's interval of the differences, with two more questions, one that rose by 1 and one that fell by 1 (Bonett
    and Price 2012, for matched pairs): without them, rare changes that happened not to be seen would count as
    impossible. Problems with equal `questions` (all differ by default) are one cluster. ValueError for lists of unequal
    length.
    """
    differences = [last - first for first, last in zip(before, after, strict=True)]
    if not differences:
        raise ValueError("a change needs at least one problem, got none")
    clusters = _clusters(differences, questions)
    size = len(differences) / _effective_number(clusters)
    total = math.fsum(differences)
    value, centre = total / len(differences), total / (len(differences) + 2 * size)
    half = student_t(len(clusters) - 1) * math.sqrt(_variance_of_mean([*clusters, (size, size), (-size, size)]))
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return Estimate(value, min(low, value), max(high, value), len(differences), len(clusters))


_EQUAL_ANSWERS = 0.25  # c in `fraction_interval`: the weight of assumed questions whose answers are all equal (d = 1)


def _clusters(values: Sequence[float], questions: Sequence[Hashable] | None) -> list[tuple[float, float]]:
    """The sum of each question's values, and their number."""
    members: dict[Hashable, list[float]] = {}
    for question, value in zip(range(len(values)) if questions is None else questions, values, strict=True):
        members.setdefault(question, []).append(value)
    return [(math.fsum(cluster), float(len(cluster))) for cluster in members.values()]


def _effective_number(clusters: Sequence[tuple[float, float]]) -> float:
    """(Σ m)² / Σ m² of the clusters' sizes m (Kish 1965): their number if all have the same size."""
    return math.fsum(size for _, size in clusters) ** 2 / math.fsum(size**2 for _, size in clusters)


def _variance_of_mean(clusters: Sequence[tuple[float, float]]) -> float:
    """Σ_j (S_j − m_j x̄)² / (Σ m)² · g / (g − 1), of g ≥ 2 clusters with sums S, sizes m and x̄ = Σ S / Σ m."""
    total, number = math.fsum(size for _, size in clusters), len(clusters)
    mean = math.fsum(part for part, _ in clusters) / total
    return math.fsum((part - size * mean) ** 2 for part, size in clusters) / total**2 * number / (number - 1)


def fraction_interval(
    fraction: float, variance: float, quantile: float, *, size: float, num_answers: float
) -> tuple[float, float]:
    """The interval of the fraction p of right answers, given the variance of this mean over n = `size` questions.

    It is Wilson's score interval with three changes. Answers to one question resemble each other, so the number of
    trials is n divided by the design effect d = s² / p(1 − p), with s² = n times `variance`. If few answers are right,
    or few are wrong, s² is uncertain and most likely too small: so d is (n s² + c) / (n p(1 − p) + c), which then goes
    to 1, the widest interval. d is at least n / `num_answers`, its value for independent answers. The quantile is
    Student's. And the ends are moved by half an answer, as in the continuity correction.
    """
    design = (size**2 * variance + _EQUAL_ANSWERS) / (size * fraction * (1 - fraction) + _EQUAL_ANSWERS)
    trials = size / max(design, size / num_answers)
    low, _ = wilson_interval(max(0.0, fraction - 0.5 / num_answers), trials, quantile)
    _, high = wilson_interval(min(1.0, fraction + 0.5 / num_answers), trials, quantile)
    return min(low, fraction), max(high, fraction)


def wilson_interval(fraction: float, trials: float, quantile: float) -> tuple[float, float]:
    """Wilson's score interval of a fraction seen in so many independent trials, which may be a real number."""
    square = quantile**2 / trials
    centre = (fraction + square / 2) / (1 + square)
    half = quantile * math.sqrt(fraction * (1 - fraction) / trials + square / (4 * trials)) / (1 + square)
    return max(0.0, min(fraction, centre - half)), min(1.0, max(fraction, centre + half))


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """The ends of Student's interval of the mean of at least two values."""
    mean = fmean(values)
    half = student_t(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def student_t(degrees: int) -> float:
    """Student's t at 97.5 %.

    From three degrees on it is Fisher and Cornish's expansion (Abramowitz and Stegun 26.7.5), whose error is 0.12 % at
    three and 0.0004 % at ten.
    """
    if degrees < 1:
        return math.inf
    if degrees == 1:
        return math.tan(math.pi * (LEVEL - 0.5))
    if degrees == 2:
        return (2 * LEVEL - 1) / math.sqrt(2 * LEVEL * (1 - LEVEL))
    z = NormalDist().inv_cdf(LEVEL)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))
