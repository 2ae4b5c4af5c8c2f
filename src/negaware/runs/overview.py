"""Tables of many runs, as text: one row a variant, and one row a run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from negaware.estimates import Estimate
from negaware.runs.mean_curve import mean_over_runs
from negaware.runs.progress import format_seconds
from negaware.runs.report_data import RunData, Variant
from negaware.runs.summary import Table, measure_name, read_estimates

_LAST = {"train/entropy": "last entropy", "rollout/answer_tokens": "answer tokens"}
_LAST |= {"rollout/informative_share": "informative share"}


def variants_table(variants: Sequence[Variant]) -> Table:
    """One row a variant: the means over its runs, with Student's interval over three runs or more."""
    measures = _measures([run for variant in variants for run in variant.runs])
    rows = []
    for variant in variants:
        cells = [str(len(variant.runs))]
        for measure in measures:
            finals = [_final(run, measure) for run in variant.runs]
            known = [final for final in finals if final is not None]
            if len(known) < len(finals):
                cells.append("–")
                continue
            mean = known[0] if len(finals) == 1 else mean_over_runs([one.value for one in known], fraction=True)
            cells.append(str(mean))
        for key in _LAST:
            cells.append(_number(_average([_last(run, key) for run in variant.runs])))
        cells.append(_time(_average([(run.summary or {}).get("train_seconds") for run in variant.runs])))
        rows.append((variant.name, *cells))
    columns = ("variant", "runs", *map(_column, measures), *_LAST.values(), "training")
    return Table("Variants, mean over their runs", columns, tuple(rows))


def runs_table(variants: Sequence[Variant]) -> Table:
    """One row a run, with the intervals of its evaluations."""
    measures = _measures([run for variant in variants for run in variant.runs])
    rows = []
    for variant in variants:
        for run in variant.runs:
            summary = run.summary or {}
            cells = [str(_final(run, measure) or "–") for measure in measures]
            cells += [_number(_last(run, key)) for key in _LAST]
            cells += [_time(summary.get(key)) for key in ("train_seconds", "total_seconds")]
            rows.append((run.label, variant.name, *cells))
    columns = ("run", "variant", *map(_column, measures), *_LAST.values(), "training", "whole run")
    return Table("Runs", columns, tuple(rows))


def _measures(runs: Sequence[RunData]) -> list[str]:
    """The measures at the end of the runs; "" for the last accuracy during training, if a run isn't finished."""
    names = dict.fromkeys(name for run in runs for name in read_estimates(run.summary, "after"))
    return [*names, *([] if all(run.summary for run in runs) else [""])]


def _column(measure: str) -> str:
    return f"{measure_name(measure)} [95%]" if measure else "accuracy so far [95%]"


def _final(run: RunData, measure: str) -> Estimate | None:
    return read_estimates(run.summary, "after").get(measure) if measure else (run.headline()[2] or run.headline()[1])


def _last(run: RunData, key: str) -> float | None:
    return next((line[key] for line in reversed(run.metrics) if line.get(key) is not None), None)


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _time(seconds: float | None) -> str:
    return "–" if seconds is None else format_seconds(seconds)
