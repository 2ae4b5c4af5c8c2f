"""What training changed on held-out problems: figures before and after, and the change, paired problem by problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from negaware.estimates import Estimate, paired_change
from negaware.evaluation.metrics import avg_at_k

Counts = Mapping[str, Any]
"""Of one measure: `num_completions` (K) and `num_correct` (c_i of each problem), ready for JSON."""


def estimate(counts: Counts, questions: Sequence[str]) -> Estimate:
    """avg@K of these counts."""
    return avg_at_k(counts["num_correct"], counts["num_completions"], questions)


def change(before: Counts, after: Counts, questions: Sequence[str]) -> Estimate:
    """The change of avg@K from one measurement to another of the same problems."""
    first, last = ([count / one["num_completions"] for count in one["num_correct"]] for one in (before, after))
    return paired_change(first, last, questions)


def outcome(
    before: Mapping[str, Counts], after: Mapping[str, Counts], questions: Sequence[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Estimates "before" and "after" and their "change", each by measure, ready for JSON."""
    return {
        "before": {name: asdict(estimate(counts, questions)) for name, counts in before.items()},
        "after": {name: asdict(estimate(counts, questions)) for name, counts in after.items()},
        "change": {name: asdict(change(before[name], after[name], questions)) for name in after},
    }
