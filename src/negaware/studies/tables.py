"""A study's tables, for terminal, Markdown and LaTeX. `statistics.py` computes the values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from negaware.estimates import Estimate
from negaware.files import replace_file
from negaware.runs.summary import Table, cautions, measure_name
from negaware.studies.results import StudyResults
from negaware.studies.statistics import (
    LEAST_SEEDS,
    Comparison,
    before_training,
    comparisons,
    variant_figures,
)


def write_tables(results: StudyResults, folder: Path) -> tuple[Table, ...]:
    """Writes `tables.md` and `tables.tex` into a study's folder, and returns tables with fewer columns for a terminal.

    They have accuracy and processor time, difference and verdict, and the notes that are about this study.
    ValueError if runs were measured on different problems.
    """
    tables = (variants_table(results), differences_table(results))
    markdown = (f"## {table.title}\n\n{table.markdown()}\n" for table in tables)
    replace_file(folder / "tables.md", "\n".join(markdown))
    latex = ("% needs \\usepackage{booktabs,graphicx}", *(table.latex() for table in tables))
    replace_file(folder / "tables.tex", "\n\n".join(latex) + "\n")
    variants, differences = tables
    return (
        _columns(variants, *range(2 + len(results.measures())), -1),
        _columns(differences, *map(differences.columns.index, _BRIEF)),
    )


_BRIEF = ("variant", "measure", "seeds", "difference [95%, paired]", "p (Holm)", "verdict")


def _columns(table: Table, *places: int) -> Table:
    """Some columns of a table, without the notes that all studies' tables have."""
    columns, *rows = (tuple(line[place] for place in places) for line in (table.columns, *table.rows))
    return Table(table.title, columns, tuple(rows), tuple(note for note in table.notes if note not in _ALWAYS))


def variants_table(results: StudyResults) -> Table:
    """One row a variant: final accuracy in every measure, and the means of its other figures."""
    measures, figures = results.measures(), variant_figures(results)
    before = before_training(results)
    rows = []
    for variant, accuracies in before.items():
        shown = (str(accuracies.get(measure, "–")) for measure in measures)
        name = "before training" if variant is None else f"{variant}, before training"
        rows.append((name, "–", *shown, *["–"] * len(_SEED_COLUMNS)))
    for one in figures:
        means = (_shown(one.means.get(name), show) for name, (_, show) in _SEED_COLUMNS.items())
        rows.append((one.variant, str(len(one.seeds)), *(str(one.accuracy[measure]) for measure in measures), *means))
    columns = ("variant", "seeds", *(f"{measure_name(measure)} [95%]" for measure in measures))
    notes = (
        *_ALWAYS[:2],
        *_missing(results),
        *_machines(results),
        *cautions([value for one in (*before.values(), *(one.accuracy for one in figures)) for value in one.values()]),
    )
    return Table(
        f"{results.name}: variants", (*columns, *(title for title, _ in _SEED_COLUMNS.values())), tuple(rows), notes
    )


def differences_table(results: StudyResults) -> Table:
    """One row a variant and measure: the paired difference to the reference, with tests and a verdict."""
    found = comparisons(results)
    columns = (
        *("variant", "measure", "seeds", "difference [95%, paired]", "deviation between seeds"),
        *("probability of improvement [95%]", "p", "p (Holm)", "p of matching", "p of matching (Holm)", "verdict"),
    )
    rows = tuple(
        (
            *(one.variant, measure_name(one.measure), str(len(one.seeds)), one.change.points),
            "–" if len(one.seeds) < 2 else f"{100 * one.components[0] ** 0.5:.1f} points",
            _shown(one.improvement, "{:.0%}".format),
            *map(_p, (one.p_value, one.p_holm, one.equivalence, one.equivalence_holm)),
            one.verdict or "–",
        )
        for one in found
    )
    return Table(f"{results.name}: differences to {results.reference}", columns, rows, tuple(_notes(results, found)))


def _notes(results: StudyResults, found: Sequence[Comparison]) -> Iterable[str]:
    few = _names(one.variant for one in found if one.verdict is None)
    if few:
        yield f"{few}: fewer than {LEAST_SEEDS} seeds. These differences prove nothing."
    lacking = [name for name in results.variants if name not in {one.variant for one in found} | {results.reference}]
    if lacking:
        yield f"{_names(lacking)}: no finished run yet with a seed that {results.reference} has finished too."
    yield from _ALWAYS[2:]
    for measure in results.measures():
        margin = results.margins.get(measure)
        if margin is None:
            yield f"{measure_name(measure)}: no margin was chosen, so no variant can be said to match."
            continue
        yield f"{measure_name(measure)}: “matches” is a difference within {100 * margin:.3g} points."
        late = sum(run.margins is not None and run.margins.get(measure) != margin for run in results.runs)
        if late:
            yield (
                f"{measure_name(measure)}: this margin was chosen or changed after {late} of {len(results.runs)} "
                "results had been made; it should have been chosen before."
            )
        blind = [one for one in found if one.measure == measure and one.verdict and one.noise >= margin]
        if blind:
            noise = max(one.noise for one in blind)
            yield (
                f"{measure_name(measure)}: this margin is below the noise of {_names(one.variant for one in blind)} "
                f"(up to {100 * noise:.1f} points), so “undecided” says nothing about them."
            )
    reference = len(results.of(results.reference))
    for name, seeds in {one.variant: one.seeds for one in found}.items():
        if len(seeds) < max(reference, len(results.of(name))):
            yield f"{name}: over the seeds that both have, {', '.join(map(str, seeds))}."
    yield from cautions(one.change for one in found)


_ALWAYS = (
    "Accuracy at the end of training: the interval is over seeds and problems, both taken as samples; before "
    "training, and with one seed, over problems alone. The other intervals are over seeds, for these problems; there "
    "is none for one seed, or where all seeds are equal.",
    "The area under the held-out curve is the mean accuracy during training. Entropy (nats a token) and answer length "
    "are means of the last tenth of the steps; the informative share is of the whole run.",
    "Differences are paired by seed and problem; the interval is over both, taken as samples. It assumes that the "
    "effects of seeds are about normal: it doesn't include a rare collapse that no seed has shown.",
    "p is of no difference, two-sided; p of matching is of a difference beyond the margin (two one-sided tests). "
    "Holm's correction is for all variants of one measure, not for several measures. Verdict: corrected p below 5 %.",
)
"""Notes for every study: two for the table of variants, then two for the table of differences."""


def _missing(results: StudyResults) -> Iterable[str]:
    for name in results.variants:
        if (number := len(results.of(name))) < len(results.seeds):
            yield f"{name}: {number} of {len(results.seeds)} seeds are done."


def _machines(results: StudyResults) -> Iterable[str]:
    """Notes on which seeds ran on which kind of machine, if there were several, since processors round differently."""
    seeds: dict[str, set[int]] = {}
    for run in results.runs:
        seeds.setdefault(run.machine, set()).add(run.seed)
    if len(seeds) > 1:
        parts = (
            f"{machine or 'not recorded'}: seeds {', '.join(map(str, sorted(seeds[machine])))}" for machine in seeds
        )
        yield f"{'; '.join(parts)}."
    for seed in sorted(seed for seed in results.seeds if sum(seed in ones for ones in seeds.values()) > 1):
        yield f"seed {seed}: its variants ran on different kinds of machine, which round differently."


def _names(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _shown(estimate: Estimate | None, show: Callable[[float], str]) -> str:
    if estimate is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return show(estimate.value)
    return f"{show(estimate.value)} [{show(estimate.low)}, {show(estimate.high)}]"


def _p(value: float | None) -> str:
    return "–" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


_SEED_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "area": ("area under the held-out curve [95%]", "{:.1%}".format),
    "entropy": ("entropy at the end [95%]", "{:.3f}".format),
    "answer_tokens": ("answer length, tokens [95%]", "{:.1f}".format),
    "informative_share": ("informative share [95%]", "{:.1%}".format),
    "train_seconds": ("training time, s [95%]", "{:,.0f}".format),
    "processor_seconds": ("processor time, s [95%]", "{:,.0f}".format),
}
"""Name in `statistics.SEED_FIGURES` → title of its column, and the function that formats a value."""
