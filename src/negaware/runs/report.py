"""Writes one self-contained HTML page about runs: outcome, curves, config, sampled answers.

Few runs have a card each; many are grouped to variants in a table. `report_data` reads the runs, report.js draws curves
and answers, tables.js sorts tables. Every text of a run or a model is escaped here. The page loads nothing, which a
policy in its head enforces.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import yaml

from negaware.estimates import Estimate
from negaware.files import replace_file, would_lose
from negaware.runs.overview import runs_table, variants_table
from negaware.runs.palette import look
from negaware.runs.progress import format_seconds
from negaware.runs.report_data import (
    FEW_RUNS,
    RUN_FIELDS,
    RunData,
    Variant,
    charts_of,
    flatten,
    group_runs,
    mean_series,
    read_runs,
    sampled_answers,
    series,
)
from negaware.runs.summary import Table, before_after_table, measure_name, read_changes, read_estimates

_TITLE_END = " – negaware report"


def write_report(run_paths: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> Path:
    """Writes the report of these runs to `output` and returns its path. ValueError if a path isn't a run folder."""
    if not run_paths:
        raise ValueError("report: no run folder was given; name at least one")
    runs = read_runs([Path(path) for path in run_paths])
    variants = group_runs(runs)
    content = Content(
        title=", ".join(run.label for run in runs)[:80],
        heading=_outcome_sentence(runs[0]) if len(runs) == 1 else f"{len(runs)} runs compared",
        source=f"{len(runs)} run folder{'s' * (len(runs) > 1)}",
        variants=tuple(variants),
        tables=(variants_table(variants),) if len(runs) > FEW_RUNS else (),
    )
    return write_content(content, Path(output))


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a page. Without tables each run has a card. The first table has one row a variant, in order."""

    title: str
    heading: str
    source: str
    """What the page was made from."""
    variants: tuple[Variant, ...]
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    documents: Mapping[str, str] = field(default_factory=dict)
    """Name → a further text for the section on the config."""


def write_content(content: Content, output: Path) -> Path:
    """Writes the page and returns its path."""
    from plotly.offline import get_plotlyjs

    variants = content.variants
    runs = [run for variant in variants for run in variant.runs]
    numbers = [number for number, variant in enumerate(variants) for _ in variant.runs]
    answers, questions, left_out = sampled_answers(runs)
    data = {
        "charts": [asdict(chart) for chart in charts_of(line for run in runs for line in run.metrics)],
        "runs": [
            {"label": run.label, "variant": number, "seed": run.seed, "series": series(run.metrics, len(runs))}
            for run, number in zip(runs, numbers, strict=True)
        ],
        "variants": [
            {"name": variant.name, "look": asdict(look(number)), "mean": mean_series(variant, len(runs))}
            for number, variant in enumerate(variants)
        ],
        "study": content.title,
        "answers": answers,
        "questions": questions,
    }
    cards = "".join(_card(run, number) for number, run in enumerate(runs))
    page = Template(_asset("report.html")).substitute(
        title=escape(f"{content.title}{_TITLE_END}"),
        heading=escape(content.heading),
        subheading=escape(f"Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC from {content.source}."),
        outcome=_tables(content) if content.tables else f'<div class="cards">{cards}</div>{_before_after(runs)}',
        config=_config(content),
        left_out=_notes(f"Left out of this page – {text}" for text in left_out),
        data=_embed(data),
        css=_asset("report.css"),
        script=_asset("report.js"),
        tables_script=_asset("tables.js"),
        plotly=get_plotlyjs(),
    )
    replace_file(output, page)
    return output


def require_report(output: Path) -> None:
    """ValueError if there is something at `output` that isn't a report page."""
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
    """JSON for a script element. `<`, `>` and `&` are escaped, so no text can end the element or start a comment."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _verdict(before: Estimate | None, change: Estimate | None) -> tuple[str, str]:
    """A run's outcome: a CSS class, and words that claim no more than the interval of the change allows."""
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


def _tables(content: Content) -> str:
    """Sortable tables; then, folded, the table of single runs with their notes."""
    runs = [run for variant in content.variants for run in variant.runs]
    labels: dict[str, list[str]] = {}
    for run in runs:
        for note in run.notes:
            labels.setdefault(note, []).append(run.label)
    notes = [
        note if len(names) == len(runs) else f"{', '.join(names[:3])}{' …' * (len(names) > 3)}: {note}"
        for note, names in labels.items()
    ]
    first, *others = content.tables
    return (
        _notes(content.notes)
        + _html_table(first, "variants sortable")
        + "".join(_html_table(table, "sortable") for table in others)
        + f"<details><summary>Each of the {len(runs)} runs</summary>"
        + f"{_html_table(runs_table(content.variants), 'runs sortable')}{_notes(notes)}</details>"
    )


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
    """Steps, times, versions and commit of a run, as far as they are known."""
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
    """One table for all finished runs; with several, each row names its run."""
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
    below = "".join(f'<p class="quiet">{escape(note)}</p>' for note in table.notes) if "sortable" in kind else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}"><table class="{kind}">'
        f"<caption>{escape(table.title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{below}"
    )


def _config(content: Content) -> str:
    """The differences between variants as a table; then, folded, each one's config and environment."""
    parts = []
    first = [(variant.name, variant.runs[0]) for variant in content.variants if variant.runs]
    flat = [flatten(run.config) for _, run in first if run.config]
    if len(flat) == len(first) > 1:
        many = any(len(variant.runs) > 1 for variant in content.variants)
        names = dict.fromkeys(name for config in flat for name in config if not (many and name in RUN_FIELDS))
        cells = {name: tuple(_value(config, name) for config in flat) for name in names}
        rows = tuple((name, *values) for name, values in cells.items() if len(set(values)) > 1)
        if rows:
            title = f"Where the configs differ ({len(rows)} of {len(names)} fields)"
            parts.append(_html_table(Table(title, ("field", *(name for name, _ in first)), rows), "config"))
        else:
            parts.append('<p class="quiet">The configs do not differ.</p>')
    for name, text in content.documents.items():
        parts.append(f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>")
    for _, run in first:
        if not run.config:
            continue
        config = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
        environment = yaml.safe_dump(run.environment, sort_keys=False, allow_unicode=True)
        parts.append(
            f"<details><summary>{escape(run.label)}: config and environment</summary><h4>config.yaml</h4>"
            f"<pre>{escape(config)}</pre><h4>environment.json</h4><pre>{escape(environment)}</pre></details>"
        )
    return "".join(parts)


def _value(config: Mapping[str, Any], name: str) -> str:
    return json.dumps(config[name], ensure_ascii=False, default=str) if name in config else "–"
