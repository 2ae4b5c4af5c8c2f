"""The figures that a finished run is judged by, as tables: before and after, and runs side by side.

A table is made once, as text cells, and shown on a terminal, as Markdown or in the report. Nothing is measured here.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table as RichTable
from rich.text import Text

from negaware.runs.folder import RunFolder
from negaware.runs.progress import format_seconds

# Student's t at 97.5 % by degrees of freedom; beyond the last, the last serves, which is a little too wide.
_STUDENT_T = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text: the first column names its row, the others hold figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def rich(self) -> RichTable:
        """For a terminal."""
        table = RichTable(title=self.title, title_justify="left")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def markdown(self) -> str:
        """For a log or a page: a Markdown table."""
        lines = [self.columns, ("---", *["---:"] * (len(self.columns) - 1)), *self.rows]
        cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
        return "\n".join(f"| {' | '.join(line)} |" for line in cells)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share with its 95 % interval, where one is known, and the number of problems behind it."""

    value: float
    low: float | None = None
    high: float | None = None
    num_problems: int | None = None

    def __str__(self) -> str:
        interval = f" [{self.low:.1%}, {self.high:.1%}]" if self.low is not None and self.high is not None else ""
        return f"{self.value:.1%}{interval}"


def read_estimates(summary: Mapping[str, Any] | None, moment: str) -> dict[str, Estimate]:
    """The estimates of summary.json's "before" or "after", by name; those without a finite value are left out."""
    found = (summary or {}).get(moment) or {}
    return {
        name: Estimate(figures["value"], figures.get("low"), figures.get("high"), figures.get("num_problems"))
        for name, figures in found.items()
        if isinstance(figures, Mapping) and figures.get("value") is not None
    }


def measure_name(name: str) -> str:
    """ "greedy_accuracy" → "accuracy at temperature 0", "avg_at_4" → "avg@4"."""
    if name == "greedy_accuracy":
        return "accuracy at temperature 0"
    return re.sub(r"^(avg|pass|maj)_at_(\d+)$", r"\1@\2", name).replace("_", " ")


def points(before: Estimate, after: Estimate) -> str:
    """The change in percentage points, with its sign."""
    return f"{100 * (after.value - before.value):+.1f} points"


def before_after_table(summary: Mapping[str, Any]) -> Table:
    """What training changed on held-out problems, from summary.json's content."""
    before, after = read_estimates(summary, "before"), read_estimates(summary, "after")
    rows = []
    for name in dict.fromkeys([*before, *after]):
        first, last = before.get(name), after.get(name)
        number = (last or first or Estimate(0.0)).num_problems
        rows.append(
            (
                measure_name(name),
                str(first or "–"),
                str(last or "–"),
                points(first, last) if first and last else "–",
                "–" if number is None else f"{number:,}",
            )
        )
    columns = ("measure", "before [95%]", "after [95%]", "change", "problems")
    return Table("Held-out problems, before and after training", columns, tuple(rows))


def compare_table(runs: Mapping[str, Sequence[RunFolder]]) -> Table:
    """Runs side by side, by the name of what they try (an objective), each the same but for its seed.

    One row a run, with the interval of its own evaluation; below several, their mean with Student's interval over them.
    """
    rows = []
    for name, folders in runs.items():
        finals = [_final(folder) for folder in folders]
        rows += [(name, *final.cells(folder.path.name)) for final, folder in zip(finals, folders, strict=True)]
        if len(folders) > 1 and all(final.accuracy for final in finals):
            rows.append((name, *_mean(finals).cells(f"mean of {len(finals)}")))
    columns = ("objective", "run", "final held-out accuracy [95%]", "last entropy", "training", "whole run")
    return Table("Runs compared", columns, tuple(rows))


@dataclass(frozen=True, slots=True)
class _Final:
    """What a run came to; None: not known, or not yet."""

    accuracy: Estimate | None
    entropy: float | None
    train_seconds: float | None
    total_seconds: float | None

    def cells(self, run: str) -> tuple[str, ...]:
        return (
            run,
            str(self.accuracy or "–"),
            "–" if self.entropy is None else f"{self.entropy:.3f}",
            "–" if self.train_seconds is None else format_seconds(self.train_seconds),
            "not finished" if self.total_seconds is None else format_seconds(self.total_seconds),
        )


def _final(folder: RunFolder) -> _Final:
    """From the summary, or from the last evaluation where the run wrote none."""
    summary, metrics = folder.read_summary() or {}, folder.read_metrics()
    after = read_estimates(summary, "after")
    entropies = [line["train/entropy"] for line in metrics if line.get("train/entropy") is not None]
    return _Final(
        accuracy=after.get("greedy_accuracy") or next(iter(after.values()), None) or _last(logged_estimates(metrics)),
        entropy=entropies[-1] if entropies else None,
        train_seconds=summary.get("train_seconds"),
        total_seconds=summary.get("total_seconds"),
    )


def logged_estimates(metrics: Sequence[Mapping[str, Any]]) -> list[Estimate]:
    """The held-out accuracies that were measured on the way, in order."""
    key = "evaluation/accuracy"
    return [
        Estimate(line[key], line.get(f"{key}_low"), line.get(f"{key}_high"))
        for line in metrics
        if line.get(key) is not None
    ]


def _last(estimates: Sequence[Estimate]) -> Estimate | None:
    return estimates[-1] if estimates else None


def _mean(finals: Sequence[_Final]) -> _Final:
    accuracies = [final.accuracy.value for final in finals if final.accuracy]
    mean, degrees = statistics.fmean(accuracies), len(accuracies) - 1
    half = _STUDENT_T[min(degrees, len(_STUDENT_T) - 1)] * statistics.stdev(accuracies) / math.sqrt(len(accuracies))

    def average(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if len(known) == len(values) else None

    return _Final(
        accuracy=Estimate(mean, max(0.0, mean - half), min(1.0, mean + half)),
        entropy=average([final.entropy for final in finals]),
        train_seconds=average([final.train_seconds for final in finals]),
        total_seconds=average([final.total_seconds for final in finals]),
    )
