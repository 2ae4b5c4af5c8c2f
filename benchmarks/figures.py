"""From measurements to figures: ratios pair by pair, medians, tables. Pure: it runs nothing and reads no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Measured = Mapping[str, Sequence[Mapping[str, Any]]]
"""A row's measurements by contestant, one a repetition, in order."""


@dataclass(frozen=True)
class Figure:
    """A figure of the JSON line: the median over repetitions of `over` / `under`, or of `over` alone.

    Both are (contestant, key) of the row's measurements.
    """

    name: str
    over: tuple[str, str]
    under: tuple[str, str] | None = None

    def pairs(self, measured: Measured) -> list[float]:
        """One value a repetition."""
        values = [float(one[self.over[1]]) for one in measured[self.over[0]]]
        if self.under is None:
            return values
        others = [float(one[self.under[1]]) for one in measured[self.under[0]]]
        return pairwise_ratios(values, others)

    def value(self, measured: Measured) -> float:
        """The median."""
        return median(self.pairs(measured))


def pairwise_ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """value / other for each repetition. ValueError if they were not repeated equally often."""
    if len(values) != len(others):
        raise ValueError(f"{len(values)} measurements can't be paired with {len(others)}.")
    return [value / other for value, other in zip(values, others, strict=True)]


def median_measurement(measurements: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The median of every number that all repetitions measured."""
    keys = [key for key, value in measurements[0].items() if isinstance(value, int | float)]
    return {key: median(float(one[key]) for one in measurements) for key in keys if all(key in m for m in measurements)}


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; all but the first are aligned to the right."""
    widths = [max(len(line[column]) for line in (header, *lines)) for column in range(len(header))]

    def row(cells: Sequence[str]) -> str:
        parts = [cells[0].ljust(widths[0])]
        parts += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join(parts) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([row(header), rule, *map(row, lines)])


def number(value: float) -> str:
    """A number with about three significant digits."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def measurement_table(measured: Measured, columns: Mapping[str, str]) -> str:
    """Medians by contestant; `columns` maps a measurement's key to its heading."""
    medians = {label: median_measurement(measurements) for label, measurements in measured.items()}
    shown = {key: heading for key, heading in columns.items() if any(key in values for values in medians.values())}
    lines = [
        [label, *(number(values[key]) if key in values else "–" for key in shown)] for label, values in medians.items()
    ]
    return table(["median", *shown.values()], lines)


def ratio_table(figures: Sequence[Figure], measured: Measured) -> str:
    """Each figure with its value in every repetition and the median."""
    lines = [
        [figure.name, *(number(value) for value in figure.pairs(measured)), number(figure.value(measured))]
        for figure in figures
    ]
    repeats = len(figures[0].pairs(measured))
    return table(["figure", *(f"pair {index + 1}" for index in range(repeats)), "median"], lines)
