"""The results on held-out problems before and after training, and the change, paired by problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from negaware.estimates import paired_change
from negaware.evaluation.metrics import avg_at_k

Counts = Mapping[str, Any]
"""Counts of one measure: `num_completions` (K) and `num_correct` (c_i of each problem), ready for JSON."""


def outcome(
    before: Mapping[str, Counts], after: Mapping[str, Counts], questions: Sequence[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """The estimates "before" and "after" and the "change", each by measure, ready for JSON."""
    found: dict[str, dict[str, dict[str, Any]]] = {"before": {}, "after": {}, "change": {}}
    for moment, measures in ("before", before), ("after", after):
        for name, counts in measures.items():
            found[moment][name] = asdict(avg_at_k(counts["num_correct"], counts["num_completions"], questions))
    for name in after:
        first, last = (
            [number / counts["num_completions"] for number in counts["num_correct"]]
            for counts in (before[name], after[name])
        )
        found["change"][name] = asdict(paired_change(first, last, questions))
    return found
