"""avg@k, pass@k and maj@k of K answers to each of n problems, each with a 95 % interval.

Pure functions on counts and votes. Problems with equal `questions` are one cluster.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from negaware.estimates import Estimate, clustered_estimate


@dataclass(frozen=True, slots=True)
class Vote:
    """One answer's vote: its value in a normal form (None: no vote), and whether it is right."""

    value: str | None
    correct: bool


def avg_at_k(num_correct: Sequence[int], num_completions: int, questions: Sequence[Hashable] | None = None) -> Estimate:
    """Mean fraction of right answers: mean_i c_i / K. With K = 1 it is accuracy."""
    return clustered_estimate([count / num_completions for count in num_correct], num_completions, questions)


def pass_at_k(
    num_correct: Sequence[int], num_completions: int, k: int, questions: Sequence[Hashable] | None = None
) -> Estimate:
    """Probability that at least one of k answers is right, unbiased from K ≥ k answers (Chen et al. 2021):
    mean_i 1 − C(K − c_i, k) / C(K, k). ValueError for another k."""
    if not 1 <= k <= num_completions:
        raise ValueError(f"pass@k needs 1 <= k <= {num_completions} (answers a problem), got k={k}")
    draws = math.comb(num_completions, k)
    values = [1 - math.comb(num_completions - count, k) / draws for count in num_correct]
    return clustered_estimate(values, num_completions // k, questions)  # so many disjoint draws of k answers


def maj_at_k(votes: Sequence[Sequence[Vote]], questions: Sequence[Hashable] | None = None) -> Estimate:
    """Fraction of problems whose most frequent value is right. Of equally frequent values the first one counts:
    answers are drawn independently, so that choice is fair, and always the same. A problem without votes is wrong."""
    values = []
    for answers in votes:
        cast = [vote for vote in answers if vote.value is not None]
        counts = Counter(vote.value for vote in cast)  # in order of first appearance, and max takes the first
        winner = max(counts, key=counts.__getitem__, default=None)
        values.append(float(next((vote.correct for vote in cast if vote.value == winner), False)))
    return clustered_estimate(values, 1, questions)
