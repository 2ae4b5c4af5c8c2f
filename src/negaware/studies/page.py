"""A study's report page, from its results and, if they still exist, the sampled answers in its run folders."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from negaware.estimates import Estimate, paired_change
from negaware.runs.folder import RunFolder
from negaware.runs.progress import format_seconds
from negaware.runs.report import Content, write_content
from negaware.runs.report_data import RunData, Variant
from negaware.runs.summary import Table, cautions, measure_name
from negaware.studies.folder import STUDY
from negaware.studies.results import RunResult, StudyResults
from negaware.studies.statistics import LEAST_SEEDS, Comparison, VariantFigures, comparisons, variant_figures
from negaware.studies.tables import differences_table, variants_table

_FIGURES = {  # name in `statistics.SEED_FIGURES` → title of its column, and the function that formats a value
    "area": ("area under curve", lambda value: f"{value:.1%}"),
    "entropy": ("entropy, nats", lambda value: f"{value:.3f}"),
    "answer_tokens": ("answer tokens", lambda value: f"{value:.1f}"),
    "informative_share": ("informative", lambda value: f"{value:.1%}"),
    "train_seconds": ("training", format_seconds),
}


def write_page(
    results: StudyResults, folder: str | os.PathLike[str], output: str | os.PathLike[str] | None = None
) -> Path:
    """Writes the page of the study in a folder, by default to report.html there. ValueError without a finished run."""
    folder = Path(folder)
    done, planned = len(results.runs), len(results.variants) * len(results.seeds)
    if not results.runs:
        raise ValueError(f"{folder} holds no finished run of the study {results.name} yet; there is nothing to show")
    variants = (Variant(name, tuple(_run_data(run, folder) for run in results.of(name))) for name in results.variants)
    path = folder / STUDY
    content = Content(
        title=results.name[:80],
        heading=f"{results.name}: {len(results.variants)} variants, {len(results.seeds)} seeds",
        source=f"the results of {done} of {planned} runs",
        variants=tuple(variants),
        tables=(_overview(results), differences_table(results), variants_table(results)),
        notes=() if done == planned else (f"{planned - done} of {planned} runs are not done yet.",),
        documents={STUDY: path.read_text(encoding="utf-8", errors="replace")} if path.is_file() else {},
    )
    return write_content(content, Path(output or folder / "report.html"))


def _run_data(run: RunResult, folder: Path) -> RunData:
    kept = None
    try:
        kept = RunFolder.open(folder / "runs" / run.name)
        config, environment = kept.read_config(), kept.read_environment()
    except ValueError:  # the run folder is gone or damaged
        kept, config, environment = None, {}, {}
    before, after = ({name: run.estimate(name, which[name]) for name in which} for which in (run.before, run.after))
    summary = {
        "before": {name: asdict(one) for name, one in before.items()},
        "after": {name: asdict(one) for name, one in after.items()},
        "change": {name: asdict(_change(run, name)) for name in run.after if run.before.get(name)},
        "steps": run.steps,
        "train_seconds": run.train_seconds,
        "total_seconds": run.total_seconds,
    }
    notes = cautions([*before.values(), *after.values()])
    metrics = [dict(line) for line in run.metrics]
    return RunData(run.name, kept, config, environment, summary, metrics, notes, run.seed)


def _change(run: RunResult, measure: str) -> Estimate:
    before, after = run.before[measure], run.after[measure]
    names = [name for name in after if name in before]
    questions = [run.questions.get(name, name) for name in names]
    return paired_change([before[name] for name in names], [after[name] for name in names], questions)


def _overview(results: StudyResults) -> Table:
    """One row a variant: accuracies, the difference to the reference in the first measure, and means over seeds."""
    measures = results.measures()
    shown = {figures.variant: figures for figures in variant_figures(results)}
    first = {one.variant: one for one in comparisons(results) if one.measure in measures[:1]}
    names = [name for name in _FIGURES if any(name in figures.means for figures in shown.values())]
    rows = []
    for variant in results.variants:
        figures = shown.get(variant) or VariantFigures(variant, (), {}, {})
        cells = [str(len(figures.seeds))]
        cells += [str(figures.accuracy.get(measure) or "–") for measure in measures]
        cells.append("the reference" if variant == results.reference else _difference(first.get(variant)))
        cells += [_FIGURES[name][1](figures.means[name].value) if name in figures.means else "–" for name in names]
        rows.append((variant, *cells))
    accuracies = [f"{measure_name(measure)} [95%]" for measure in measures]
    measure = f" in {measure_name(measures[0])}" if len(measures) > 1 else ""
    difference = f"points above {results.reference}{measure} [95%]"
    columns = ("variant", "seeds", *accuracies, difference, *(_FIGURES[name][0] for name in names))
    few = min((len(figures.seeds) for figures in shown.values()), default=LEAST_SEEDS) < LEAST_SEEDS
    notes = (f"With fewer than {LEAST_SEEDS} seeds the differences prove nothing.",) if few else ()
    return Table("Variants, mean over seeds", columns, tuple(rows), notes)


def _difference(one: Comparison | None) -> str:
    if one is None:
        return "–"
    shown = one.change.points.replace(" points", "")
    return f"{shown} {one.verdict}" if one.verdict else shown
