"""The mean of a metric over the seeds of a variant, step by step, with an interval."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from negaware.estimates import Estimate, student_interval

FEWEST_RUNS = 3
"""With fewer runs a curve has no interval: of two it reaches six times their distance to each side and hides them."""


@dataclass(frozen=True, slots=True)
class MeanPoint:
    """The mean at a step, and its 95 % interval if there are enough runs."""

    step: int
    value: float
    low: float | None = None
    high: float | None = None


def mean_over_runs(values: Sequence[float], *, fraction: bool) -> Estimate:
    """The mean, with Student's interval if there are enough runs; that of a `fraction` is cut to [0, 1]."""
    mean = statistics.fmean(values)
    if len(values) < FEWEST_RUNS:
        return Estimate(mean)
    low, high = student_interval(values)
    return Estimate(mean, max(0.0, low), min(1.0, high)) if fraction else Estimate(mean, low, high)


def mean_curve(runs: Sequence[Sequence[Mapping[str, Any]]], key: str, *, fraction: bool = False) -> list[MeanPoint]:
    """The mean of metric `key` over runs (lists of logged lines), at every step where all runs have the metric.

    At other steps the mean would jump because fewer runs are in it. Its interval is that of `mean_over_runs`.
    """
    logged = [{line["step"]: line[key] for line in lines if line.get(key) is not None} for lines in runs]
    if not logged:
        return []
    points = []
    for step in sorted(set.intersection(*map(set, logged))):
        mean = mean_over_runs([values[step] for values in logged], fraction=fraction)
        points.append(MeanPoint(step, mean.value, mean.low, mean.high))
    return points
