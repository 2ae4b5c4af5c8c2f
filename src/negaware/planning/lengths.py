"""The lengths of answers, as equally likely values: from the answers of a run, or from a mean and a median."""

from __future__ import annotations

from contextlib import suppress
from math import nan
from pathlib import Path
from statistics import NormalDist

import numpy as np

from negaware.files import read_json_lines

QUANTILES = 2_000  # the number of values that stand for a log-normal distribution


class Lengths:
    """Lengths of answers in tokens, equally likely, in ascending order."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.longest = values, int(values[-1])
        self.mean = float(values.mean())
        self.mean_square = float(np.square(values, dtype=float).mean())

    def survival(self, ages: np.ndarray) -> np.ndarray:
        """P(L > age) for each age."""
        return 1 - np.searchsorted(self.values, ages, side="right") / len(self.values)

    def drawn(self, ages: np.ndarray) -> np.ndarray:
        """E[min(L, age)]: the mean number of tokens of an answer, `age` decode steps after it began."""
        summed = np.concatenate([[0.0], np.cumsum(self.values, dtype=float)])
        shorter = np.searchsorted(self.values, ages, side="right")
        return (summed[shorter] + ages * (len(self.values) - shorter)) / len(self.values)


def read_lengths(text: str, limit: int) -> Lengths:
    """Lengths from `MEAN,MEDIAN`, or from a JSONL file of a run folder's answers/. ValueError for anything else."""
    mean, comma, median = text.partition(",")
    if comma and not Path(text).exists():
        numbers = nan, nan
        with suppress(ValueError):
            numbers = float(mean), float(median)
        try:
            return log_normal(*numbers, limit)
        except ValueError as error:
            raise ValueError(f"--lengths is {text!r}: {error}") from None
    return _recorded(Path(text), limit)


def log_normal(mean: float, median: float, limit: int) -> Lengths:
    """A log-normal distribution cut at the limit, with this median, and this mean after it. ValueError if none has."""
    if not 1 <= median < mean < limit:
        raise ValueError(
            f"give two numbers, the mean and the median of answers' lengths, with 1 ≤ median < mean < {limit} "
            "(rollout.max_new_tokens)"
        )
    normal = NormalDist()
    deviations = np.array([normal.inv_cdf((index + 0.5) / QUANTILES) for index in range(QUANTILES)])

    def cut(sigma: float) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.minimum(median * np.exp(sigma * deviations), limit)

    sigmas = np.linspace(0, 10, 1_001)  # the mean rises with σ; near the limit it may fall again
    enough = next((index for index, sigma in enumerate(sigmas) if cut(sigma).mean() >= mean), None)
    if enough is None:
        raise ValueError(f"no log-normal distribution with that median has that mean when it is cut at {limit} tokens")
    low, high = sigmas[enough - 1], sigmas[enough]
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cut(middle).mean() < mean else (low, middle)
    return Lengths(np.maximum(np.rint(cut(float(high))), 1).astype(int))


def _recorded(path: Path, limit: int) -> Lengths:
    remedy = "give a file of a run's answers/, or MEAN,MEDIAN, two numbers of tokens"
    if not path.is_file():
        raise ValueError(f"--lengths is {str(path)!r}, which is no file; {remedy}")
    records, is_torn = read_json_lines(path)
    values = [record.get("num_tokens") for record in records]
    for number, value in enumerate(values, 1):
        if type(value) is not int or value < 1:
            raise ValueError(f"{path}, answer {number}: num_tokens is {value!r}, no whole number above 0; {remedy}")
        if value > limit:
            raise ValueError(
                f"{path}, answer {number}: it has {value} tokens, but rollout.max_new_tokens is {limit}; plan with "
                f"--rollout.max_new_tokens {value} or more"
            )
    if is_torn or not values:
        raise ValueError(f"{path} {'ends in the middle of an answer' if is_torn else 'has no answers'}; {remedy}")
    return Lengths(np.sort(np.array(values)))
