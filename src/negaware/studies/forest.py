"""Forest plots: the final accuracy of each variant, and its difference to the reference. It computes no estimate."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from negaware.estimates import Estimate
from negaware.runs.palette import look
from negaware.runs.summary import measure_name
from negaware.studies.canvas import GREY, PALE, add_legend, legend_line, new_figure, printable
from negaware.studies.results import StudyResults
from negaware.studies.statistics import before_training, comparisons, variant_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW, _PANEL = 0.145, 0.3  # inches


@dataclass(frozen=True, slots=True)
class ForestRow:
    """One line of a forest plot: a variant's name and estimate, and the value of each seed."""

    name: str
    estimate: Estimate
    seeds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """The rows of one measure. A vertical line is drawn at `line`, and a band from −`margin` to `margin`."""

    title: str
    rows: tuple[ForestRow, ...]
    line: float | None = None
    margin: float | None = None


def finals_figure(results: StudyResults) -> Figure | None:
    """Final accuracy of every variant, a panel a measure, a line at the common accuracy before; None without a run."""
    figures, before = variant_figures(results), before_training(results).get(None, {})
    panels = []
    for measure in results.measures():
        rows = []
        for one in figures:
            seeds = tuple(statistics.fmean(run.after[measure].values()) for run in results.of(one.variant))
            rows.append(ForestRow(one.variant, one.accuracy[measure], seeds))
        line = before[measure].value if measure in before else None
        panels.append(Panel(measure_name(measure), tuple(rows), line))
    entries = [
        (legend_line(color=GREY, marker="o", linewidth=1.1), "mean, 95 % interval"),
        (legend_line(color=GREY, marker="|", linestyle="none"), "one seed"),
    ]
    if any(panel.line is not None for panel in panels):
        entries.append((legend_line(color=GREY, linewidth=0.8, linestyle=(0, (3, 1.5))), "before training"))
    return _forest(panels, "final held-out accuracy (%)", entries, results) if panels else None


def differences_figure(results: StudyResults) -> Figure | None:
    """Paired differences to the reference, with the margin of equivalence; None if there is nothing to compare."""
    from matplotlib.patches import Patch

    found = comparisons(results)
    panels = []
    for measure in results.measures():
        rows = tuple(ForestRow(one.variant, one.change) for one in found if one.measure == measure)
        if rows:
            panels.append(Panel(measure_name(measure), rows, 0.0, results.margins.get(measure)))
    axis = f"difference to {printable(results.reference)} (points)"
    entries = [(legend_line(color=GREY, marker="o", linewidth=1.1), "paired difference, 95 % interval")]
    if any(panel.margin is not None for panel in panels):
        entries.append((Patch(color=PALE, alpha=0.5, linewidth=0), "margin of equivalence"))
    return _forest(panels, axis, entries, results) if panels else None


def _forest(panels: Sequence[Panel], axis: str, entries: Sequence[tuple[Any, str]], results: StudyResults) -> Figure:
    heights = [len(panel.rows) * _ROW + _PANEL for panel in panels]
    figure = new_figure(sum(heights) + 0.75)
    figures = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)
    for axes, panel in zip(figures.flat, panels, strict=True):
        _draw(axes, panel, results.variants)
    figures.flat[-1].set_xlabel(axis)
    add_legend(figure, entries)
    return figure


def _draw(axes: Axes, panel: Panel, variants: Sequence[str]) -> None:
    axes.set_title(panel.title, loc="left", pad=3)
    axes.set_yticks(range(len(panel.rows)), [printable(row.name) for row in panel.rows])
    axes.set_ylim(len(panel.rows) - 0.4, -0.6)  # the first on top
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    if panel.margin is not None:
        axes.axvspan(-100 * panel.margin, 100 * panel.margin, color=PALE, alpha=0.5, linewidth=0, zorder=0)
    if panel.line is not None:
        axes.axvline(100 * panel.line, color=GREY, linewidth=0.8, linestyle=(0, (3, 1.5)), zorder=1)
    for place, row in enumerate(panel.rows):
        style, estimate = look(variants.index(row.name)), row.estimate
        axes.plot(
            [100 * seed for seed in row.seeds], [place] * len(row.seeds), "|",
            color=style.light, alpha=0.65, markersize=5, markeredgewidth=0.7,
        )  # fmt: skip
        if estimate.low is not None and estimate.high is not None:
            axes.plot([100 * estimate.low, 100 * estimate.high], [place] * 2, color=style.light, linewidth=1.1)
        axes.plot(100 * estimate.value, place, style.marker, color=style.light, markersize=4.5, markeredgewidth=0)
