"""Draws growth.py's figure as plain SVG: a panel a factor, time above memory, all log-log. It measures nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from growth_counts import FACTORS, upper_half

PANEL_WIDTH, PANEL_HEIGHT, LEFT, TOP, GAP, ROW_GAP = 232, 214, 84, 84, 30, 112
GRID, FRAME = "#d8d8d8", "#555"
LABEL_DISTANCE = 34


@dataclass(frozen=True)
class Series:
    """How a half of the step is drawn; the two part by marker and dashes without colour too."""

    label: str
    colour: str
    dashes: str
    round_marker: bool


SERIES = {
    "sampling": Series("sampling", "#0b5fa5", "2 4", True),
    "training": Series("training", "#b3450b", "9 4", False),
}
ROWS = (("seconds", "seconds a step"), ("mib", "peak memory, MiB"))

Slopes = Mapping[str, Mapping[str, tuple[float, float]]]


@dataclass(frozen=True)
class Scale:
    """A log axis: `low` is drawn at `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)


def text(x: float, y: float, words: str, size: int = 13, anchor: str = "middle", extra: str = "") -> str:
    """One line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" {extra}>{words}</text>'


def decades(values: Sequence[float]) -> tuple[float, float]:
    """The 1-2-5 steps around all values, so that every row's panels share an axis."""
    low, high = min(values), max(values)
    steps = [factor * 10.0**power for power in range(-7, 8) for factor in (1, 2, 5)]
    return max(s for s in steps if s <= low * 1.0001), min(s for s in steps if s >= high * 0.9999 and s > low)


def ticks(low: float, high: float) -> list[float]:
    """Powers of ten; the steps between them as well where there are few."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    factors = (1,) if high / low > 150 else (1, 2, 5)
    every = [factor * 10.0**power for power in powers for factor in factors]
    return [tick for tick in every if low * 0.999 <= tick <= high * 1.001]


def labelled(values: Sequence[int], across: Scale) -> list[int]:
    """The values that get a label: from the last down, those that are not too near to the one before."""
    chosen: list[int] = []
    for value in reversed(values):
        if not chosen or across(chosen[-1]) - across(value) >= LABEL_DISTANCE:
            chosen.append(value)
    return chosen


def curve(series: Series, points: Sequence[tuple[float, float]]) -> list[str]:
    """The measured line with its markers."""
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    parts = [f'<path d="{path}" fill="none" stroke="{series.colour}" stroke-width="2"/>']
    for x, y in points:
        shape = (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6"'
            if series.round_marker
            else f'<rect x="{x - 3.4:.1f}" y="{y - 3.4:.1f}" width="6.8" height="6.8"'
        )
        parts.append(f'{shape} fill="{series.colour}"/>')
    return parts


def expected_line(
    series: Series, values: Sequence[float], costs: Sequence[float], slope: float, across: Scale, up: Scale
) -> str:
    """The expected slope through the geometric middle of the upper half, as far as that half reaches."""
    places = upper_half(values)
    middle = [math.exp(sum(math.log(axis[place]) for place in places) / len(places)) for axis in (values, costs)]
    ends = [values[places[0]], values[-1]]
    points = [(across(end), up(middle[1] * (end / middle[0]) ** slope)) for end in ends]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    style = f'stroke="{series.colour}" stroke-width="4.5" stroke-opacity="0.5" stroke-dasharray="{series.dashes}"'
    return f'<path d="M{path}" fill="none" {style}/>'


def panel(
    name: str,
    points: Sequence[Mapping[str, Any]],
    slopes: Mapping[str, tuple[float, float]],
    unit: str,
    left: float,
    top: float,
    limits: tuple[float, float],
    first: bool,
) -> list[str]:
    """Axes, grid, both halves of the step, and their slopes in words above."""
    values = [point["value"] for point in points]
    bottom, right = top + PANEL_HEIGHT, left + PANEL_WIDTH
    across = Scale(values[0], values[-1], left + 12, right - 12)
    up = Scale(*limits, bottom, top)
    parts = []
    for tick in ticks(*limits):
        y = up(tick)
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="{GRID}"/>')
        if first:
            parts.append(text(left - 8, y + 4, f"{tick:,g}", 12, "end"))
    shown = labelled(values, across)
    for value in values:
        x = across(value)
        parts.append(f'<path d="M{x:.1f} {top}V{bottom}" stroke="{GRID}"/>')
        if value in shown:
            parts.append(text(x, bottom + 17, f"{value:,}", 12))
    lines: list[str] = []
    for index, (half, series) in enumerate(SERIES.items()):
        key = f"{half}_{unit}"
        costs = [max(point[key], limits[0]) for point in points]
        found, expected = slopes[key]
        parts.append(expected_line(series, values, costs, expected, across, up))
        lines += curve(series, [(across(value), up(cost)) for value, cost in zip(values, costs, strict=True)])
        words = f"{half}: slope {found:.2f}, expected {expected:.2f}"
        parts.append(text(left, top - 24 + 16 * index, words, 12, "start", f'fill="{series.colour}"'))
    frame = f'<rect x="{left}" y="{top}" width="{PANEL_WIDTH}" height="{PANEL_HEIGHT}" fill="none" stroke="{FRAME}"/>'
    return [*parts, *lines, frame, text(left + PANEL_WIDTH / 2, bottom + 37, FACTORS[name].axis)]


def legend(top: float) -> list[str]:
    """Both halves, measured and expected, in one line."""
    parts = []
    for index, series in enumerate(SERIES.values()):
        x = LEFT + 500 * index
        parts += curve(series, [(x, top), (x + 44, top)])
        parts.append(text(x + 56, top + 4, f"{series.label}, measured", 13, "start"))
        style = f'stroke="{series.colour}" stroke-width="4.5" stroke-opacity="0.5" stroke-dasharray="{series.dashes}"'
        parts.append(f'<path d="M{x + 220} {top}h44" fill="none" {style}/>')
        parts.append(text(x + 276, top + 4, f"{series.label}, expected slope", 13, "start"))
    return parts


def figure(measured: Mapping[str, Mapping[str, Any]], slopes: Slopes) -> str:
    """The whole drawing, on white so that it is legible on a dark page too."""
    width = LEFT + len(measured) * PANEL_WIDTH + (len(measured) - 1) * GAP + 24
    width = max(width, LEFT + 1000)
    height = TOP + 2 * PANEL_HEIGHT + ROW_GAP + 84
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" fill="#222" '
        'role="img" aria-labelledby="growth-title">',
        '<title id="growth-title">Time and peak memory of one step, sampling and training, against '
        + "; ".join(FACTORS[name].title for name in measured)
        + "; all axes logarithmic</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for row, (unit, title) in enumerate(ROWS):
        top = TOP + row * (PANEL_HEIGHT + ROW_GAP)
        keys = [f"{half}_{unit}" for half in SERIES]
        # Memory that a short step takes from what lies free may measure as nothing: an axis needs a floor.
        floor = 1e-4 if unit == "seconds" else 1.0
        costs = [max(point[key], floor) for found in measured.values() for point in found["points"] for key in keys]
        middle = top + PANEL_HEIGHT / 2
        parts.append(text(22, middle, title, 14, extra=f'transform="rotate(-90 22 {middle:.1f})"'))
        for column, (name, found) in enumerate(measured.items()):
            left = LEFT + column * (PANEL_WIDTH + GAP)
            if row == 0:
                parts.append(text(left + PANEL_WIDTH / 2, top - 50, FACTORS[name].title, 15, extra='font-weight="600"'))
            parts += panel(name, found["points"], slopes[name], unit, left, top, decades(costs), first=column == 0)
    return "\n".join([*parts, *legend(height - 22), "</svg>"]) + "\n"
