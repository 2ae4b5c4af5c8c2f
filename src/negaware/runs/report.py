"""Run folders → one self-contained HTML page: outcome, curves, config, sampled answers.

What the runs hold comes from `report_data`; curves and the answer browser are drawn by report.js. This module only
puts the page together, and everything that came out of a run or a model is escaped here. The page loads nothing: a
policy in its head forbids it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import yaml

from negaware.estimates import Estimate
from negaware.output_file import would_lose
from negaware.runs.folder import replace_file
from negaware.runs.progress import format_seconds
from negaware.runs.report_data import CHARTS, RunData, flatten, read_runs, sampled_answers, series
from negaware.runs.summary import Table, before_after_table, measure_name, read_changes, read_estimates

_TITLE_END = " – negaware report"


def write_report(run_paths: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> Path:
    """Writes the report of these runs to `output` and gives its path. ValueError where a path isn't a run folder."""
    if not run_paths:
        raise ValueError("report: no run folder was given; name at least one")
    from plotly.offline import get_plotlyjs

    runs = read_runs([Path(path) for path in run_paths])
    answers, questions, left_out = sampled_answers(runs)
    data = {
        "charts": [asdict(chart) for chart in CHARTS],
        "runs": [{"label": run.label, "series": series(run)} for run in runs],
        "answers": answers,
        "questions": questions,
    }
    heading = _outcome_sentence(runs[0]) if len(runs) == 1 else f"{len(runs)} runs compared"
    page = Template(_asset("report.html")).substitute(
        title=escape(f"{', '.join(run.label for run in runs)[:80]}{_TITLE_END}"),
        heading=escape(heading),
        subheading=f"Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC from {len(runs)} run folder{'s' * (len(runs) > 1)}.",
        cards="".join(_card(run, number) for number, run in enumerate(runs)),
        tables=_before_after(runs),
        config=_config(runs),
        left_out=_notes(f"Left out of this page – {text}" for text in left_out),
        data=_embed(data),
        css=_asset("report.css"),
        script=_asset("report.js"),
        plotly=get_plotlyjs(),
    )
    output = Path(output)
    replace_file(output, page)
    return output


def require_report(output: Path) -> None:
    """ValueError if something lies at `output` that isn't a page of `write_report`."""
    if not output.exists():
        return
    if output.is_file():
        with output.open("rb") as file:
            if _TITLE_END.encode() in file.read(4096):
                return
    raise would_lose(output, f"{output}, which is no page that `negaware report` wrote")


def _asset(name: str) -> str:
    return files("negaware.runs").joinpath(name).read_text(encoding="utf-8")


def _embed(data: Mapping[str, Any]) -> str:
    """JSON for a script element: without `<`, `>` and `&` no text can end the element or start a comment in it."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _verdict(before: Estimate | None, change: Estimate | None) -> tuple[str, str]:
    """How the run came out: a class for the style, and words that claim no more than the change's interval allows."""
    if before is None:
        return "level", "no held-out evaluation"
    if change is None:
        return "level", "one held-out evaluation so far"
    if change.low is None or change.high is None:
        return "level", change.points
    if change.low > 0:
        return "up", f"▲ {change.points}"
    if change.high < 0:
        return "down", f"▼ {change.points}"
    return "level", f"{change.points}, which may be chance"


def _outcome_sentence(run: RunData) -> str:
    _, before, after, _ = run.headline()
    if before is None:
        return f"{run.label}: no held-out evaluation yet"
    if after is None:
        return f"{run.label}: held-out accuracy {before.value:.1%} before training"
    so_far = "" if run.summary else " so far"
    first, last = f"{before.value:.1%}", f"{after.value:.1%}"
    if first == last:
        return f"{run.label}: held-out accuracy stayed{so_far} at {last}"
    verb = "rose" if after.value > before.value else "fell"
    return f"{run.label}: held-out accuracy {verb}{so_far} from {first} to {last}"


def _card(run: RunData, number: int) -> str:
    name, before, after, change = run.headline()
    kind, words = _verdict(before, change)
    arrow, intervals = "–", ""
    if before:
        last = f"<span>{after.value:.1%}</span>" if after else "…"
        arrow = f'<span class="from">{before.value:.1%} →</span> {last}'
        intervals = f'<p class="intervals">95% intervals: {before}{f" → {after}" if after else ""}</p>'
    return (
        f'<article class="card"><div class="name"><span data-swatch="{number}"></span>{escape(run.label)}</div>'
        f'<p class="measure">held-out, {escape(measure_name(name).removeprefix("held-out "))}</p>'
        f'<div class="change">{arrow}</div><span class="verdict {kind}">{escape(words)}</span>'
        f"{_other_measures(run, name)}{intervals}"
        f'<p class="facts">{escape(" · ".join(_facts(run)))}</p>{_notes(run.notes)}</article>'
    )


def _other_measures(run: RunData, shown: str) -> str:
    before, after = read_estimates(run.summary, "before"), read_estimates(run.summary, "after")
    lines = [
        f"{measure_name(name)}: {before[name].value:.1%} → {after[name].value:.1%} ({change.points})"
        for name, change in read_changes(run.summary).items()
        if name in before and name in after and name != shown
    ]
    return "".join(f'<p class="others">{escape(line)}</p>' for line in lines)


def _facts(run: RunData) -> list[str]:
    """Steps, times and what the run ran with, as far as they are known."""
    summary = run.summary or {}
    facts = []
    if run.metrics:
        last = run.metrics[-1]["step"]
        facts.append(f"{last:,} step{'s' * (last != 1)}")
    if summary.get("train_seconds") is not None:
        facts.append(f"training {format_seconds(summary['train_seconds'])}")
    seconds = summary.get("total_seconds") or (run.metrics[-1].get("seconds") if run.metrics else None)
    if seconds is not None:
        facts.append(f"in all {format_seconds(seconds)}")
    packages = run.environment.get("packages") or {}
    facts += [f"{name} {packages[name]}" for name in ("negaware", "torch") if packages.get(name)]
    code = run.environment.get("code") or {}
    if code.get("commit"):
        facts.append(f"commit {code['commit'][:10]}{' with changes' if code.get('dirty') else ''}")
    return facts


def _notes(texts: Iterable[str]) -> str:
    return "".join(f'<p class="note">{escape(text)}</p>' for text in texts)


def _before_after(runs: Sequence[RunData]) -> str:
    """One table for all finished runs; each row says which run it is of where there are several."""
    tables = [(run.label, before_after_table(run.summary)) for run in runs if run.summary]
    rows = [(label, *row) if len(runs) > 1 else row for label, table in tables for row in table.rows]
    if not rows:
        return ""
    first = tables[0][1]
    columns = ("run", *first.columns) if len(runs) > 1 else first.columns
    return _html_table(Table(first.title, columns, tuple(rows)), "runs" if len(runs) > 1 else "figures")


def _html_table(table: Table, kind: str) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in table.rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}"><table class="{kind}">'
        f"<caption>{escape(table.title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _config(runs: Sequence[RunData]) -> str:
    """The differences between runs as a table, then the whole config and environment of each, folded."""
    parts = []
    if len(runs) > 1:
        flat = [flatten(run.config) for run in runs]
        names = dict.fromkeys(name for config in flat for name in config)
        cells = {name: tuple(_value(config, name) for config in flat) for name in names}
        rows = tuple((name, *values) for name, values in cells.items() if len(set(values)) > 1)
        if rows:
            title = f"Where the configs differ ({len(rows)} of {len(names)} fields)"
            parts.append(_html_table(Table(title, ("field", *(run.label for run in runs)), rows), "config"))
        else:
            parts.append('<p class="quiet">The configs do not differ.</p>')
    for run in runs:
        config = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
        environment = yaml.safe_dump(run.environment, sort_keys=False, allow_unicode=True)
        parts.append(
            f"<details><summary>{escape(run.label)}: config and environment</summary><h4>config.yaml</h4>"
            f"<pre>{escape(config)}</pre><h4>environment.json</h4><pre>{escape(environment)}</pre></details>"
        )
    return "".join(parts)


def _value(config: Mapping[str, Any], name: str) -> str:
    return json.dumps(config[name], ensure_ascii=False, default=str) if name in config else "–"
