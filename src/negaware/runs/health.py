"""Why isn't a run learning? Sentences on a pass rate that fell or rose, from the run's metrics alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_LEAST = 0.05  # smaller changes of the pass rate aren't reported


def vital_signs(line: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a step that the functions below read."""
    return {key: line.get(key) for key in ("step", "rollout/pass_rate", "train/grad_norm")}


def what_became_of_it(metrics: Sequence[Mapping[str, Any]], pass_rate: float, learning_rate: float) -> str | None:
    """A sentence on how the pass rate came to `pass_rate`, for a step in which nothing could be learnt.

    None if it neither rose nor fell: then the questions were too hard or too easy from the beginning.
    """
    rates = _pass_rates(metrics)
    if not rates:
        return None
    first, best = rates[0], max(rates, key=lambda line: line[1])
    if best[1] - pass_rate >= _LEAST and pass_rate < best[1] / 2:
        return (
            f"{_fall(metrics, best, pass_rate, learning_rate)} Training caused this, not the questions: in a new run, "
            "lower training.learning_rate"
        )
    if pass_rate - first[1] >= _LEAST and pass_rate > 0.5:
        return (
            f"The pass rate was {first[1]:.1%} at step {first[0]} and is {pass_rate:.1%} now, so the model has learnt "
            f"these questions: in a new run, set run.steps to {rates[-1][0]} or choose a harder task"
        )
    return None


def collapse(metrics: Sequence[Mapping[str, Any]], learning_rate: float) -> str | None:
    """A sentence if the pass rate fell below a quarter of the best one in this step and not before, else None."""
    *before, last = _pass_rates(metrics) or [(0, 1.0)]
    if not before:
        return None
    best = max(before, key=lambda line: line[1])
    fallen = [rate < best[1] / 4 and best[1] - rate >= _LEAST for _, rate in (before[-1], last)]
    if fallen != [False, True]:
        return None
    return f"{_fall(metrics, best, last[1], learning_rate)} Lower training.learning_rate in a new run."


def _fall(metrics: Sequence[Mapping[str, Any]], best: tuple[int, float], pass_rate: float, learning_rate: float) -> str:
    norms = [line["train/grad_norm"] for line in metrics if line["step"] >= best[0] and line.get("train/grad_norm")]
    norm = f", gradient norms up to {max(norms):.3g}" if norms else ""
    return (
        f"The pass rate was {best[1]:.1%} at step {best[0]} and is {pass_rate:.1%} now, after the weights moved at "
        f"training.learning_rate {learning_rate:g}{norm}."
    )


def _pass_rates(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Step and pass rate of each step that sampled."""
    return [(line["step"], line["rollout/pass_rate"]) for line in metrics if line.get("rollout/pass_rate") is not None]
