"""Forest plots: where each variant ended, and how far it lies from the reference. Estimates are made elsewhere."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from negaware.estimates import Estimate
from negaware.runs.palette import look
from negaware.runs.summary import measure_name
from negaware.studies.canvas import GREY, PALE, add_legend, new_figure, printable
from negaware.studies.results import StudyResults
from negaware.studies.statistics import before_training, comparisons, variant_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW, _PANEL = 0.145, 0.3  # inches


@dataclass(frozen=True, slots=True)
class ForestRow:
    """One line of a forest plot, in per cent or points: a variant's number and name, its estimate, and its seeds."""

    number: int
    name: str
    estimate: Estimate
    seeds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """The rows of one measure. `line` is drawn across them; `margin` is the half width of the margin of equivalence."""

    title: str
    rows: tuple[ForestRow, ...]
    line: float | None = None
    margin: float | None = None


def finals_figure(results: StudyResults) -> Figure | None:
    """Final accuracy of every variant, a panel a measure, with a line where all were before; None without a run."""
    if not results.runs:
        return None
    numbers = {variant: number for number, variant in enumerate(results.variants)}
    figures, before = variant_figures(results), before_training(results).get(None, {})
    panels = []
    for measure in results.measures():
        rows = []
        for one in figures:
            seeds = tuple(statistics.fmean(run.after[measure].values()) for run in results.of(one.variant))
            rows.append(ForestRow(numbers[one.variant], one.variant, one.accuracy[measure], seeds))
        line = before[measure].value if measure in before else None
        panels.append(Panel(measure_name(measure), tuple(rows), line))
    return _forest(panels, "final held-out accuracy (%)", _finals_legend) if panels else None


def differences_figure(results: StudyResults) -> Figure | None:
    """Paired differences to the reference, with the margin of equivalence; None where there is nothing to compare."""
    if not results.runs:
        return None
    numbers = {variant: number for number, variant in enumerate(results.variants)}
    found = comparisons(results)
    panels = []
    for measure in results.measures():
        rows = tuple(
            ForestRow(numbers[one.variant], one.variant, one.change) for one in found if one.measure == measure
        )
        if rows:
            panels.append(Panel(measure_name(measure), rows, 0.0, results.margins.get(measure)))
    axis = f"difference to {printable(results.reference)} (points)"
    return _forest(panels, axis, _differences_legend) if panels else None


def _forest(panels: Sequence[Panel], axis: str, entries: Any) -> Figure:
    heights = [len(panel.rows) * _ROW + _PANEL for panel in panels]
    figure = new_figure(sum(heights) + 0.75)
    figures = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)
    for axes, panel in zip(figures.flat, panels, strict=True):
        _draw(axes, panel)
    figures.flat[-1].set_xlabel(axis)
    add_legend(figure, entries(panels))
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
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
        style, estimate = look(row.number), row.estimate
        axes.plot(
            [100 * seed for seed in row.seeds], [place] * len(row.seeds), "|",
            color=style.light, alpha=0.65, markersize=5, markeredgewidth=0.7,
        )  # fmt: skip
        if estimate.low is not None and estimate.high is not None:
            axes.plot([100 * estimate.low, 100 * estimate.high], [place] * 2, color=style.light, linewidth=1.1)
        axes.plot(100 * estimate.value, place, style.marker, color=style.light, markersize=4.5, markeredgewidth=0)


def _line(**style: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=GREY, **style)


def _finals_legend(panels: Sequence[Panel]) -> list[tuple[Any, str]]:
    entries = [
        (_line(marker="o", linewidth=1.1), "mean, 95 % interval"),
        (_line(marker="|", linestyle="none"), "one seed"),
    ]
    if any(panel.line is not None for panel in panels):
        entries.append((_line(linewidth=0.8, linestyle=(0, (3, 1.5))), "before training"))
    return entries


def _differences_legend(panels: Sequence[Panel]) -> list[tuple[Any, str]]:
    from matplotlib.patches import Patch

    entries: list[tuple[Any, str]] = [(_line(marker="o", linewidth=1.1), "paired difference, 95 % interval")]
    if any(panel.margin is not None for panel in panels):
        entries.append((Patch(color=PALE, alpha=0.5, linewidth=0), "margin of equivalence"))
    return entries
