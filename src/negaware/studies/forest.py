"""Forest plots: where each variant ended, and how far it lies from the reference. Estimates are made elsewhere."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from negaware.estimates import Estimate, clustered_estimate, paired_change
from negaware.runs.palette import look
from negaware.runs.summary import measure_name
from negaware.studies.canvas import GREY, PALE, add_legend, new_figure, printable
from negaware.studies.results import StudyResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW, _PANEL = 0.145, 0.3  # inches


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a forest plot, in per cent or points: a variant's number and name, its estimate, and its seeds."""

    number: int
    name: str
    estimate: Estimate
    seeds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """The rows of one measure. `line` is drawn across them; `margin` is the half width of what counts as a match."""

    title: str
    rows: tuple[Row, ...]
    line: float | None = None
    margin: float | None = None


def finals_figure(results: StudyResults) -> Figure | None:
    """Final accuracy of every variant, a panel a measure; None where no run is done."""
    panels = []
    for measure in results.measures():
        rows = []
        for number, variant in enumerate(results.variants):
            runs = results.of(variant)
            if runs:
                seeds = tuple(statistics.fmean(run.after[measure].values()) for run in runs)
                rows.append(Row(number, variant, _final(results, variant, measure), seeds))
        before = next((run.before[measure] for run in results.runs if measure in run.before), None)
        line = statistics.fmean(before.values()) if before else None
        panels.append(Panel(measure_name(measure), tuple(rows), line))
    return _forest(panels, "final held-out accuracy (%)", _finals_legend) if any(one.rows for one in panels) else None


def differences_figure(results: StudyResults) -> Figure | None:
    """Paired differences to the reference, with the margin of equivalence; None where there is nothing to compare."""
    panels = []
    for measure in results.measures():
        rows = [
            Row(number, variant, difference)
            for number, variant in enumerate(results.variants)
            if (difference := _difference(results, variant, measure)) is not None
        ]
        panels.append(Panel(measure_name(measure), tuple(rows), 0.0, results.margins.get(measure)))
    if not any(one.rows for one in panels):
        return None
    axis = f"difference to {printable(results.reference)} (points)"
    return _forest([one for one in panels if one.rows], axis, _differences_legend)


def _final(results: StudyResults, variant: str, measure: str) -> Estimate:
    runs = results.of(variant)
    problems = list(runs[0].after[measure])
    means = [statistics.fmean(run.after[measure][name] for run in runs) for name in problems]
    return clustered_estimate(means, questions=[runs[0].questions.get(name, name) for name in problems])


def _difference(results: StudyResults, variant: str, measure: str) -> Estimate | None:
    base = {run.seed: run for run in results.of(results.reference)}
    runs = [run for run in results.of(variant) if run.seed in base]
    if variant == results.reference or not runs:
        return None
    problems = list(runs[0].after[measure])
    ours = [statistics.fmean(run.after[measure][name] for run in runs) for name in problems]
    theirs = [statistics.fmean(base[run.seed].after[measure][name] for run in runs) for name in problems]
    return paired_change(theirs, ours, [runs[0].questions.get(name, name) for name in problems])


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
        entries.append((Patch(color=PALE, alpha=0.5, linewidth=0), "counts as a match"))
    return entries
