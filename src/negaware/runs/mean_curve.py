"""A metric's mean over the seeds of a variant, step by step, with an interval. It knows neither files nor pictures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from negaware.estimates import student_interval

FEWEST_RUNS = 3
"""Of fewer runs a curve has no interval: that of two is six times as wide as they lie apart, and hides the rest."""


@dataclass(frozen=True, slots=True)
class MeanPoint:
    """The mean at a step, and its 95 % interval where there are runs enough."""

    step: int
    value: float
    low: float | None = None
    high: float | None = None


def mean_curve(runs: Sequence[Sequence[Mapping[str, Any]]], key: str, *, share: bool = False) -> list[MeanPoint]:
    """The mean of metric `key` over runs, each its logged lines, at every step where all of them have it.

    A step that some runs lack is left out: there the mean would jump with who is in it. The interval is Student's, over
    runs alone; that of a `share` stays between 0 and 1.
    """
    logged = [{line["step"]: line[key] for line in lines if line.get(key) is not None} for lines in runs]
    if not logged:
        return []
    points = []
    for step in sorted(set.intersection(*map(set, logged))):
        values = [values[step] for values in logged]
        mean = statistics.fmean(values)
        if len(values) < FEWEST_RUNS:
            points.append(MeanPoint(step, mean))
            continue
        low, high = student_interval(values)
        points.append(
            MeanPoint(step, mean, max(0.0, low), min(1.0, high)) if share else MeanPoint(step, mean, low, high)
        )
    return points
