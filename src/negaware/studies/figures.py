"""A study's figures for a paper: curves over training, and where the variants ended, as SVG, PNG and PDF.

What is drawn was computed elsewhere: by `mean_curve` over seeds, by `statistics` over seeds and problems.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negaware.runs.mean_curve import FEWEST_RUNS, MeanPoint, mean_curve
from negaware.runs.palette import look
from negaware.studies.canvas import GREY, PALE, add_legend, new_figure, paper_style, printable, write_figure
from negaware.studies.forest import differences_figure, finals_figure
from negaware.studies.results import StudyResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ONE_PANEL = 4  # so many curves with their intervals can be followed in one panel
_PANELS_A_ROW = 3
_MARKS = 8  # on a curve, at most
_INTERVAL = "95 % interval over seeds"


@dataclass(frozen=True, slots=True)
class Curves:
    """One figure of curves: which metric, what its axis is called, and whether its numbers are shares, shown in %."""

    name: str
    key: str
    axis: str
    share: bool = False


CURVES = (
    Curves("learning_curves", "evaluation/accuracy", "held-out accuracy (%)", share=True),
    Curves("entropy", "train/entropy", "entropy (nats per token)"),
)


def write_figures(results: StudyResults, folder: str | os.PathLike[str]) -> list[Path]:
    """Writes `folder`/figures/*.{svg,png,pdf} and gives their paths; what no run has measured is left out.

    UntestedVersionError (a ValueError) without matplotlib.
    """
    written = []
    with paper_style():
        figures: list[tuple[str, Figure | None]] = [(curves.name, _curves_figure(results, curves)) for curves in CURVES]
        figures += [("final_accuracy", finals_figure(results)), ("differences", differences_figure(results))]
        for name, figure in figures:
            if figure is not None:
                written += write_figure(figure, Path(folder) / "figures" / name)
    return written


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A variant's curve: its number in the study, its mean, and each seed's own line, in the axis' unit."""

    number: int
    name: str
    mean: list[MeanPoint]
    seeds: list[list[tuple[int, float]]]


def _curves_figure(results: StudyResults, curves: Curves) -> Figure | None:
    drawn = [one for one in (_drawn(results, number, curves) for number in range(len(results.variants))) if one.mean]
    if not drawn:
        return None
    return _one_panel(drawn, curves) if len(drawn) <= _ONE_PANEL else _panels(drawn, curves, results.reference)


def _drawn(results: StudyResults, number: int, curves: Curves) -> _Drawn:
    factor = 100.0 if curves.share else 1.0
    name = results.variants[number]
    runs = [run.metrics for run in results.of(name)]
    mean = mean_curve(runs, curves.key, share=curves.share)
    scaled = [
        MeanPoint(one.step, *(None if value is None else factor * value for value in (one.value, one.low, one.high)))  # type: ignore[arg-type]
        for one in mean
    ]
    seeds = [[(int(line["step"]), factor * line[curves.key]) for line in run if curves.key in line] for run in runs]
    return _Drawn(number, name, scaled, seeds)


def _draw(axes: Axes, one: _Drawn, width: float = 1.2) -> Any:
    """The mean with its interval, or with its seeds where they are too few for one; gives what the legend shows."""
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


def _explained(drawn: Sequence[_Drawn]) -> list[tuple[Any, str]]:
    """What bands and thin lines are, for the legend; of a single seed that it is one."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[tuple[Any, str]] = []
    if any(len(one.seeds) >= FEWEST_RUNS for one in drawn):
        entries.append((Patch(color=GREY, alpha=0.25, linewidth=0), _INTERVAL))
    if any(1 < len(one.seeds) < FEWEST_RUNS for one in drawn):
        entries.append((Line2D([], [], color=GREY, linewidth=0.5), "one seed"))
    if any(len(one.seeds) == 1 for one in drawn):
        entries.append((Line2D([], [], linestyle="none"), "one seed alone: no interval"))
    return entries


def _one_panel(drawn: Sequence[_Drawn], curves: Curves) -> Figure:
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


def _panels(drawn: Sequence[_Drawn], curves: Curves, reference: str) -> Figure:
    """A panel a variant, before the means of all others in pale grey and that of the reference in dark grey."""
    from matplotlib.lines import Line2D

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
    panels[-1, min(_PANELS_A_ROW, len(drawn)) // 2].set_xlabel(
        "training step"
    )  # a figure's own would lie on the legend
    figure.supylabel(curves.axis, fontsize=7.5)
    entries = [(Line2D([], [], color=PALE, linewidth=0.6), "the other variants")]
    if base is not None:
        dashed = Line2D([], [], color=GREY, linewidth=0.9, linestyle=(0, (3, 1.5)))
        entries.insert(0, (dashed, f"{printable(reference)}, the reference"))
    mean = Line2D([], [], color=look(0).light, marker=look(0).marker)
    add_legend(figure, [(mean, "this variant's mean"), *entries, *_explained(drawn)])
    return figure


def _xy(one: _Drawn) -> tuple[list[int], list[float]]:
    return [point.step for point in one.mean], [point.value for point in one.mean]


def _name_axes(axes: Axes, curves: Curves) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.margins(x=0.03)
    if not curves.share:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]) if axes.get_ylim()[0] < 0 else 0.0)
