"""The figures that a finished run is judged by, as tables: before and after, and runs side by side.

A table is made once, as text cells, and shown on a terminal, as Markdown or in the report. Nothing is measured here.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from negaware.estimates import Estimate, student_t
from negaware.runs.folder import RunFolder
from negaware.runs.progress import format_seconds


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text: the first column names its row, the others hold figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    """Sentences below it."""

    def rich(self) -> RichTable:
        """For a terminal; what it prints is Markdown, where the terminal is wide enough to break no cell."""
        caption = "\n".join(self.notes) or None
        table = RichTable(
            box=box.MARKDOWN,
            title=self.title,
            title_justify="left",
            caption=caption and Text(caption),
            caption_justify="left",
        )
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def markdown(self) -> str:
        """For a log or a page: a Markdown table."""
        lines = [self.columns, ("---", *["---:"] * (len(self.columns) - 1)), *self.rows]
        cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
        return "\n".join([*(f"| {' | '.join(line)} |" for line in cells), *(f"\n{note}" for note in self.notes)])

    def latex(self) -> str:
        """For a paper: a table over both columns, as wide as the page; needs the packages booktabs and graphicx."""
        head, *rows = (f"{' & '.join(map(latex_text, line))} \\\\" for line in (self.columns, *self.rows))
        return "\n".join(
            [
                r"\begin{table*}",
                r"\centering\small",
                rf"\caption{{{latex_text(self.title)}}}",
                r"\resizebox{\textwidth}{!}{%",
                rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
                *(r"\toprule", head, r"\midrule", *rows, r"\bottomrule"),
                r"\end{tabular}}",
                *(rf"\par\smallskip\footnotesize {latex_text(note)}" for note in self.notes),
                r"\end{table*}",
            ]
        )


_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{sign: f"{{{sign}}}" for sign in "[]*"},  # at the start of a row they would be an option of the line's end
    **{sign: f"${sign}$" for sign in "<>|"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"−": "$-$", "–": "--", "×": r"$\times$", "±": r"$\pm$", "“": "``", "”": "''", "\n": " "},
    **{"α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "δ": r"$\delta$", "ε": r"$\varepsilon$", "λ": r"$\lambda$"},
    **{"μ": r"$\mu$", "π": r"$\pi$", "ρ": r"$\rho$", "σ": r"$\sigma$", "τ": r"$\tau$", "ω": r"$\omega$"},
}


def latex_text(text: str) -> str:
    """Text as LaTeX shows it: signs escaped, and a hyphen before a number the minus that it stands for."""
    signed = re.sub(r"(?<![\w.])-(?=[\d.])", "−", text)
    return "".join(_LATEX.get(sign, sign) for sign in signed)


def read_estimates(summary: Mapping[str, Any] | None, part: str) -> dict[str, Estimate]:
    """The estimates of summary.json's "before", "after" or "change", by name; without those that aren't finite."""
    found = (summary or {}).get(part) or {}
    return {
        name: Estimate(figures["value"], *map(figures.get, ("low", "high", "num_problems", "num_questions")))
        for name, figures in found.items()
        if isinstance(figures, Mapping) and figures.get("value") is not None
    }


def measure_name(name: str) -> str:
    """ "greedy_accuracy" → "accuracy at temperature 0", "avg_at_4" → "avg@4"."""
    if name == "greedy_accuracy":
        return "accuracy at temperature 0"
    return re.sub(r"^(avg|pass|maj)_at_(\d+)$", r"\1@\2", name).replace("_", " ")


def read_changes(summary: Mapping[str, Any] | None) -> dict[str, Estimate]:
    """The changes of all that was measured before and after; without interval where summary.json has none."""
    before, after = read_estimates(summary, "before"), read_estimates(summary, "after")
    plain = {name: Estimate(after[name].value - before[name].value) for name in before if name in after}
    return plain | read_estimates(summary, "change")


def cautions(estimates: Iterable[Estimate | None]) -> tuple[str, ...]:
    """The words of caution that these figures need, each once."""
    return tuple(dict.fromkeys(one.caution for one in estimates if one and one.caution))


def before_after_table(summary: Mapping[str, Any]) -> Table:
    """What training changed on held-out problems, from summary.json's content."""
    before, after = read_estimates(summary, "before"), read_estimates(summary, "after")
    changes = read_changes(summary)
    rows = []
    for name in dict.fromkeys([*before, *after]):
        first, last = before.get(name), after.get(name)
        number = (last or first or Estimate(0.0)).num_problems
        rows.append(
            (
                measure_name(name),
                str(first or "–"),
                str(last or "–"),
                changes[name].points if name in changes else "–",
                "–" if number is None else f"{number:,}",
            )
        )
    columns = ("measure", "before [95%]", "after [95%]", "change [95%, paired]", "problems")
    notes = cautions([*before.values(), *after.values()])
    return Table("Held-out problems, before and after training", columns, tuple(rows), notes)


def compare_table(runs: Mapping[str, Sequence[RunFolder]]) -> Table:
    """Runs side by side, by the name of what they try (an objective), each the same but for its seed.

    One row a run, with the interval of its own evaluation; below several, their mean with Student's interval over them.
    """
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for name, folders in runs.items():
        finals = [_final(folder) for folder in folders]
        notes += cautions(final.accuracy for final in finals)
        rows += [(name, *final.cells(folder.path.name)) for final, folder in zip(finals, folders, strict=True)]
        if len(folders) > 1 and all(final.accuracy and not final.on_the_way for final in finals):
            rows.append((name, *_mean(finals).cells(f"mean of {len(finals)}")))
    columns = ("objective", "run", "final held-out accuracy [95%]", "last entropy", "training", "whole run")
    return Table("Runs compared", columns, tuple(rows), tuple(dict.fromkeys(notes)))


@dataclass(frozen=True, slots=True)
class _Final:
    """What a run came to; None: not known, or not yet."""

    accuracy: Estimate | None
    entropy: float | None
    train_seconds: float | None
    total_seconds: float | None
    on_the_way: bool = False
    """Whether the accuracy is the last of those measured on the way, another measure than the final one."""

    def cells(self, run: str) -> tuple[str, ...]:
        return (
            run,
            f"{self.accuracy or '–'}{' on the way' if self.on_the_way else ''}",
            "–" if self.entropy is None else f"{self.entropy:.3f}",
            "–" if self.train_seconds is None else format_seconds(self.train_seconds),
            "not finished" if self.total_seconds is None else format_seconds(self.total_seconds),
        )


def _final(folder: RunFolder) -> _Final:
    """From the summary, or from the last evaluation where the run wrote none."""
    summary, metrics = folder.read_summary() or {}, folder.read_metrics()
    after = read_estimates(summary, "after")
    entropies = [line["train/entropy"] for line in metrics if line.get("train/entropy") is not None]
    logged = [] if after else logged_estimates(metrics)
    return _Final(
        accuracy=after.get("greedy_accuracy") or next(iter(after.values()), None) or (logged[-1] if logged else None),
        entropy=entropies[-1] if entropies else None,
        train_seconds=summary.get("train_seconds"),
        total_seconds=summary.get("total_seconds"),
        on_the_way=bool(logged),
    )


def logged_estimates(metrics: Sequence[Mapping[str, Any]]) -> list[Estimate]:
    """The held-out accuracies that were measured on the way, in order: one measure, from step 0 to the last."""
    key = "evaluation/accuracy"
    numbers = [line.get("evaluation/num_questions") for line in metrics]
    return [
        Estimate(line[key], line.get(f"{key}_low"), line.get(f"{key}_high"), *[number and int(number)] * 2)
        for line, number in zip(metrics, numbers, strict=True)
        if line.get(key) is not None
    ]


def _mean(finals: Sequence[_Final]) -> _Final:
    accuracies = [final.accuracy.value for final in finals if final.accuracy]
    mean, degrees = statistics.fmean(accuracies), len(accuracies) - 1
    half = student_t(degrees) * statistics.stdev(accuracies) / math.sqrt(len(accuracies))

    def average(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if len(known) == len(values) else None

    return _Final(
        accuracy=Estimate(mean, max(0.0, mean - half), min(1.0, mean + half)),
        entropy=average([final.entropy for final in finals]),
        train_seconds=average([final.train_seconds for final in finals]),
        total_seconds=average([final.total_seconds for final in finals]),
    )
