"""A study's figures for a paper, as SVG, PNG and PDF. `mean_curve` and `statistics` compute the values."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negaware.runs.mean_curve import FEWEST_RUNS, MeanPoint, mean_curve
from negaware.runs.palette import look
from negaware.studies.canvas import (
    GREY,
    PALE,
    add_legend,
    legend_line,
    new_figure,
    paper_style,
    printable,
    write_figure,
)
from negaware.studies.forest import differences_figure, finals_figure
from negaware.studies.results import StudyResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ONE_PANEL = 4  # at most so many curves, with their intervals, are drawn in one panel
_PANELS_A_ROW = 3
_MARKS = 8  # at most, on a curve


@dataclass(frozen=True, slots=True)
class Curves:
    """One figure of curves: the metric's key, the axis' name, and whether values are fractions, shown in %."""

    name: str
    key: str
    axis: str
    fraction: bool = False


CURVES = (
    Curves("learning_curves", "evaluation/accuracy", "held-out accuracy (%)", fraction=True),
    Curves("entropy", "train/entropy", "entropy (nats per token)"),
)


def write_figures(results: StudyResults, folder: str | os.PathLike[str]) -> list[Path]:
    """Writes `folder`/figures/*.{svg,png,pdf} and returns the paths. UntestedVersionError without matplotlib."""
    written = []
    with paper_style():
        figures: list[tuple[str, Figure | None]] = [(curves.name, _curves_figure(results, curves)) for curves in CURVES]
        figures += [("final_accuracy", finals_figure(results)), ("differences", differences_figure(results))]
        for name, figure in figures:
            if figure is not None:
                written += write_figure(figure, Path(folder) / "figures" / name)
    return written


class _VariantCurve:
    """A variant's curve: its number in the study, its mean, and the line of each seed, in the axis' unit."""

    def __init__(self, results: StudyResults, number: int, curves: Curves) -> None:
        factor = 100.0 if curves.fraction else 1.0
        self.number, self.name = number, results.variants[number]
        runs = [run.metrics for run in results.of(self.name)]
        self.seeds = [
            [(int(line["step"]), factor * line[curves.key]) for line in run if curves.key in line] for run in runs
        ]
        self.mean = [
            MeanPoint(one.step, *(None if end is None else factor * end for end in (one.value, one.low, one.high)))  # type: ignore[arg-type]
            for one in mean_curve(runs, curves.key, fraction=curves.fraction)
        ]


def _curves_figure(results: StudyResults, curves: Curves) -> Figure | None:
    drawn = [
        one for one in (_VariantCurve(results, number, curves) for number in range(len(results.variants))) if one.mean
    ]
    if not drawn:
        return None
    return _one_panel(drawn, curves) if len(drawn) <= _ONE_PANEL else _panels(drawn, curves, results.reference)


def _draw(axes: Axes, one: _VariantCurve, width: float = 1.2) -> Any:
    """Draws the mean with its interval, or with each seed if they are too few for one; returns the line of the mean."""
    style = look(one.number)
    if len(one.seeds) >= FEWEST_RUNS:
        low, high = ([getattr(point, end) for point in one.mean] for end in ("low", "high"))
        axes.fill_between([point.step for point in one.mean], low, high, color=style.light, alpha=0.18, linewidth=0)
    elif len(one.seeds) > 1:
        for seed in one.seeds:
            axes.plot(*zip(*seed, strict=True), color=style.light, linewidth=0.5, alpha=0.6)
    (line,) = axes.plot(
        [point.step for point in one.mean],
        [point.value for point in one.mean],
        color=style.light,
        linestyle=(0, [length / 2 for length in style.dashes]) if style.dashes else "-",
        linewidth=width,
        marker=style.marker,
        markevery=max(1, -(-len(one.mean) // _MARKS)),
    )
    return line


def _explained(drawn: Sequence[_VariantCurve]) -> list[tuple[Any, str]]:
    """The legend's entries for bands, thin lines, and curves of one seed."""
    from matplotlib.patches import Patch

    entries: list[tuple[Any, str]] = []
    if any(len(one.seeds) >= FEWEST_RUNS for one in drawn):
        entries.append((Patch(color=GREY, alpha=0.25, linewidth=0), "95 % interval over seeds"))
    if any(1 < len(one.seeds) < FEWEST_RUNS for one in drawn):
        entries.append((legend_line(color=GREY, linewidth=0.5), "one seed"))
    if any(len(one.seeds) == 1 for one in drawn):
        entries.append((legend_line(linestyle="none"), "one seed alone: no interval"))
    return entries


def _one_panel(drawn: Sequence[_VariantCurve], curves: Curves) -> Figure:
    entries_below = _explained(drawn)
    rows = -(-len(drawn) // 2) + -(-len(entries_below) // 2)
    figure = new_figure(2.0 + 0.15 * rows)
    axes = figure.add_subplot()
    lines = [(_draw(axes, one), printable(one.name)) for one in drawn]
    _name_axes(axes, curves)
    axes.set_xlabel("training step")
    axes.set_ylabel(curves.axis)
    add_legend(figure, [*lines, *entries_below])
    return figure


def _panels(drawn: Sequence[_VariantCurve], curves: Curves, reference: str) -> Figure:
    """One panel a variant, with the means of the other variants in pale grey and of the reference in dark grey."""
    rows = -(-len(drawn) // _PANELS_A_ROW)
    figure = new_figure(0.7 + 1.05 * rows)
    panels = figure.subplots(rows, _PANELS_A_ROW, sharex=True, sharey=True, squeeze=False)
    base = next((one for one in drawn if one.name == reference), None)
    for number, (axes, one) in enumerate(zip(panels.flat, drawn, strict=False)):
        for other in drawn:
            if other not in (one, base):
                axes.plot(*_xy(other), color=PALE, linewidth=0.6)
        if base is not None and one is not base:
            axes.plot(*_xy(base), color=GREY, linewidth=0.9, linestyle=(0, (3, 1.5)))
        _draw(axes, one)
        axes.set_title(printable(one.name), loc="left", pad=2, fontsize=7)
        _name_axes(axes, curves)
        if number + _PANELS_A_ROW >= len(drawn):
            axes.tick_params(labelbottom=True)
    for axes in list(panels.flat)[len(drawn) :]:
        axes.set_axis_off()
    # On a panel: the figure's own label would lie on the legend.
    panels[-1, min(_PANELS_A_ROW, len(drawn)) // 2].set_xlabel("training step")
    figure.supylabel(curves.axis, fontsize=7.5)
    entries = [(legend_line(color=PALE, linewidth=0.6), "the other variants")]
    if base is not None:
        dashed = legend_line(color=GREY, linewidth=0.9, linestyle=(0, (3, 1.5)))
        entries.insert(0, (dashed, f"{printable(reference)}, the reference"))
    mean = legend_line(color=look(0).light, marker=look(0).marker)
    add_legend(figure, [(mean, "this variant's mean"), *entries, *_explained(drawn)])
    return figure


def _xy(one: _VariantCurve) -> tuple[list[int], list[float]]:
    return [point.step for point in one.mean], [point.value for point in one.mean]


def _name_axes(axes: Axes, curves: Curves) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.margins(x=0.03)
    if not curves.fraction:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
