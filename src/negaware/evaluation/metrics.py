"""What K answers to each of n problems say of a model: avg@k, pass@k, maj@k, each with a 95 % interval.

Pure functions on counts and votes; they know neither engines nor texts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

Z_95 = 1.959963984540054
"""The normal distribution's 97.5 % quantile."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share in [0, 1], its 95 % interval, and the number of problems (clusters) behind it."""

    value: float
    low: float
    high: float
    num_problems: int


@dataclass(frozen=True, slots=True)
class Vote:
    """What one answer brings to a majority: its value in one spelling (None: no vote), and whether that is right."""

    value: str | None
    correct: bool


def avg_at_k(num_correct: Sequence[int], num_completions: int) -> Estimate:
    """Mean share of right answers: mean_i c_i / K. With K = 1 it is plain accuracy."""
    return clustered_estimate([count / num_completions for count in num_correct], num_completions)


def pass_at_k(num_correct: Sequence[int], num_completions: int, k: int) -> Estimate:
    """Chance that one of k answers is right, without bias from K ≥ k answers (Chen et al. 2021):
    mean_i 1 − C(K − c_i, k) / C(K, k)."""
    if not 1 <= k <= num_completions:
        raise ValueError(f"pass@k needs 1 <= k <= {num_completions} (answers a problem), got k={k}")
    draws = math.comb(num_completions, k)
    values = [1 - math.comb(num_completions - count, k) / draws for count in num_correct]
    return clustered_estimate(values, num_completions)


def maj_at_k(votes: Sequence[Sequence[Vote]]) -> Estimate:
    """Share of problems whose most frequent value is right. Of values with equally many votes the one given first
    counts: answers are drawn independently, so that is a fair draw, and the same one each time. No vote is wrong."""
    values = []
    for answers in votes:
        cast = [vote for vote in answers if vote.value is not None]
        counts = Counter(vote.value for vote in cast)  # in order of first appearance, and max takes the first
        winner = max(counts, key=counts.__getitem__, default=None)
        values.append(float(next((vote.correct for vote in cast if vote.value == winner), False)))
    return clustered_estimate(values, 1)


def clustered_estimate(values: Sequence[float], answers_per_problem: int) -> Estimate:
    """The mean of one value in [0, 1] a problem, with Wilson's interval at the effective number of answers.

    Answers to one problem resemble each other, so n problems with K answers are not n·K independent ones. Their
    effective number is n_eff = p (1 − p) / v, with v = Σ (x_i − p)² / n², the cluster-robust variance of the
    mean; at K = 1 it is n, and the interval is Wilson's own. Unlike p ± 1.96 √v it stays inside [0, 1] and keeps
    its width when every value is 0 or 1, where v = 0 says nothing and n_eff is taken as n.
    """
    num_problems = len(values)
    if not num_problems:
        raise ValueError("an estimate needs at least one problem, got none")
    mean = math.fsum(values) / num_problems
    variance = math.fsum((value - mean) ** 2 for value in values) / num_problems**2
    num_effective = float(num_problems)
    if variance > 1e-15:
        num_effective = min(mean * (1 - mean) / variance, float(num_problems * answers_per_problem))
    low, high = wilson_interval(mean, num_effective)
    return Estimate(mean, low, high, num_problems)


def wilson_interval(share: float, number: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share seen in `number` independent trials (a real number ≥ 1 will do)."""
    square = Z_95**2 / number
    centre = (share + square / 2) / (1 + square)
    half = Z_95 * math.sqrt(share * (1 - share) / number + square / (4 * number)) / (1 + square)
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
