"""The figures that a finished run is judged by, as tables: before and after, and runs side by side.

A table is made once, as text cells, and shown on a terminal, as Markdown or in the report. Nothing is measured here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from negaware.estimates import Estimate


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


def logged_estimates(metrics: Sequence[Mapping[str, Any]]) -> list[Estimate]:
    """The held-out accuracies that were measured on the way, in order: one measure, from step 0 to the last."""
    key = "evaluation/accuracy"
    numbers = [line.get("evaluation/num_questions") for line in metrics]
    return [
        Estimate(line[key], line.get(f"{key}_low"), line.get(f"{key}_high"), *[number and int(number)] * 2)
        for line, number in zip(metrics, numbers, strict=True)
        if line.get(key) is not None
    ]
