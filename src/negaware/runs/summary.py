"""Tables of text for terminal, Markdown, LaTeX and report, and the results in summary.json as such a table."""

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
    """A table of text: the first column names the row, the others hold figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    """Sentences below the table."""

    def rich(self) -> RichTable:
        """The table for a terminal, printed as Markdown if no cell must be broken."""
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
        """The table as Markdown."""
        lines = [self.columns, ("---", *["---:"] * (len(self.columns) - 1)), *self.rows]
        cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
        return "\n".join([*(f"| {' | '.join(line)} |" for line in cells), *(f"\n{note}" for note in self.notes)])

    def latex(self) -> str:
        """The table as LaTeX, over both columns of a paper; needs the packages booktabs and graphicx."""
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
    **{sign: f"{{{sign}}}" for sign in "[]*"},  # at the start of a row they would be an option of the \\ before it
    **{sign: f"${sign}$" for sign in "<>|"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"−": "$-$", "–": "--", "×": r"$\times$", "±": r"$\pm$", "“": "``", "”": "''", "\n": " "},
    **{"α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "δ": r"$\delta$", "ε": r"$\varepsilon$", "λ": r"$\lambda$"},
    **{"μ": r"$\mu$", "π": r"$\pi$", "ρ": r"$\rho$", "σ": r"$\sigma$", "τ": r"$\tau$", "ω": r"$\omega$"},
}


def latex_text(text: str) -> str:
    """Text with the signs of LaTeX escaped; a hyphen before a number becomes a minus."""
    signed = re.sub(r"(?<![\w.])-(?=[\d.])", "−", text)
    return "".join(_LATEX.get(sign, sign) for sign in signed)


def read_estimates(summary: Mapping[str, Any] | None, part: str) -> dict[str, Estimate]:
    """Name → estimate in the "before", "after" or "change" of summary.json; without those that aren't finite."""
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
    """Name → change of everything measured before and after; without an interval if summary.json has none."""
    before, after = read_estimates(summary, "before"), read_estimates(summary, "after")
    plain = {name: Estimate(after[name].value - before[name].value) for name in before if name in after}
    return plain | read_estimates(summary, "change")


def cautions(estimates: Iterable[Estimate | None]) -> tuple[str, ...]:
    """The cautions of these estimates, each once."""
    return tuple(dict.fromkeys(one.caution for one in estimates if one and one.caution))


def before_after_table(summary: Mapping[str, Any]) -> Table:
    """The table of held-out problems before and after training, from the content of summary.json."""
    before, after = read_estimates(summary, "before"), read_estimates(summary, "after")
    changes = read_changes(summary)
    rows = []
    for name in dict.fromkeys([*before, *after]):
        first, last = before.get(name), after.get(name)
        number = (last or first or Estimate(0.0)).num_problems
        change = changes[name].points if name in changes else "–"
        problems = "–" if number is None else f"{number:,}"
        rows.append((measure_name(name), str(first or "–"), str(last or "–"), change, problems))
    columns = ("measure", "before [95%]", "after [95%]", "change [95%, paired]", "problems")
    notes = cautions([*before.values(), *after.values()])
    return Table("Held-out problems, before and after training", columns, tuple(rows), notes)


def logged_estimates(metrics: Sequence[Mapping[str, Any]]) -> list[Estimate]:
    """The held-out accuracies measured during training, in order of steps; the first is that of step 0."""
    key = "evaluation/accuracy"
    numbers = [line.get("evaluation/num_questions") for line in metrics]
    return [
        Estimate(line[key], line.get(f"{key}_low"), line.get(f"{key}_high"), *[number and int(number)] * 2)
        for line, number in zip(metrics, numbers, strict=True)
        if line.get(key) is not None
    ]
