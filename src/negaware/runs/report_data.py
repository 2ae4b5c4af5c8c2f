"""The data of a report page, read from run folders and reduced in size, as plain values for the page's script.

A run may be finished, still going or killed: what is there is read, and notes say what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from negaware.estimates import Estimate
from negaware.files import read_json_lines
from negaware.runs.folder import RunFolder
from negaware.runs.mean_curve import mean_curve
from negaware.runs.summary import cautions, logged_estimates, read_changes, read_estimates

_Item = TypeVar("_Item")
_Line = TypeVar("_Line", bound=Mapping[str, Any])

FEW_RUNS = 4  # so many runs have a card and a curve each; more are grouped to variants by their config
_MAX_ANSWERS = 4000  # in the page of few runs: at most about 10 MB
_MAX_ANSWERS_OF_MANY = 1500  # in the page of more runs
_MAX_ANSWERS_A_STEP = 64
_MIN_ANSWERS_A_STEP = 8
_MAX_POINTS = 1000  # of a curve, besides its evaluations
_MAX_POINTS_OF_ALL = 15_000  # of all runs together
_DIGITS = 6  # of a value in a chart
RUN_FIELDS = ("run.seed", "run.folder")  # the fields in which runs of one variant differ
_MAX_CHARACTERS = 2000  # of a text; its middle is left out


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart: its metric, the metric's interval if there is one, and how the values are read."""

    title: str
    key: str
    explanation: str
    low: str | None = None
    high: str | None = None
    percent: bool = False
    rare: bool = False
    """Left out if no run has a value other than 0."""
    averaged: str = ""
    """The explanation where means over runs are drawn, if the metric has an interval of its own."""


CHARTS = (
    Chart(
        "Held-out accuracy", "evaluation/accuracy",
        "held-out problems, at every step sampled as evaluation.during says; band: 95% interval",
        low="evaluation/accuracy_low", high="evaluation/accuracy_high", percent=True,
        averaged="held-out problems, at every step sampled as evaluation.during says; the same problems in every run",
    ),
    Chart("Train pass rate", "rollout/pass_rate", "right answers among all that were sampled", percent=True),
    Chart("Informative share", "rollout/informative_share", "questions neither all right nor all wrong", percent=True),
    Chart("Entropy", "train/entropy", "nats a token; near 0 the policy no longer explores"),
    Chart("Answer length", "rollout/answer_tokens", "tokens, mean of the sampled answers"),
    Chart("Loss", "train/loss", "the objective's loss"),
    Chart("Gradient norm", "train/grad_norm", "before clipping"),
    Chart("Sampler–trainer difference", "train/sampler_difference", "mean |log-probability difference| of a token"),
    Chart("Staleness", "rollout/staleness_mean", "mean updates that a token's policy is behind", rare=True),
    Chart("Oldest token", "rollout/staleness_max", "updates that the oldest token is behind", rare=True),
    Chart("Dropped for staleness", "rollout/num_dropped_tokens", "tokens too old to be trained on", rare=True),
    Chart("Under way", "rollout/num_tokens_ahead", "tokens drawn of questions asked ahead", rare=True),
    Chart("Tokens per second, sampling", "rollout/tokens_per_second", "tokens sampled a second"),
    Chart("Tokens per second, training", "train/tokens_per_second", "tokens trained on a second"),
)  # fmt: skip


def charts_of(metrics: Iterable[Mapping[str, Any]]) -> list[Chart]:
    """The charts for runs with these metrics."""
    lines = list(metrics)
    return [chart for chart in CHARTS if not chart.rare or any(line.get(chart.key) for line in lines)]


@dataclass(frozen=True, slots=True)
class RunData:
    """One run as the report needs it."""

    label: str
    folder: RunFolder | None
    """None if the folder is gone, and with it the sampled answers."""
    config: dict[str, Any]
    environment: dict[str, Any]
    summary: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    notes: tuple[str, ...]
    seed: int | None = None

    def headline(self) -> tuple[str, Estimate | None, Estimate | None, Estimate | None]:
        """The main measure: its name, its values before training and after it (or so far), and the change."""
        before, after = read_estimates(self.summary, "before"), read_estimates(self.summary, "after")
        names = [name for name in before if name in after]
        if names:
            name = "greedy_accuracy" if "greedy_accuracy" in names else names[0]
            return name, before[name], after[name], read_changes(self.summary)[name]
        logged = logged_estimates(self.metrics)
        name, first = "accuracy on the way", logged[0] if logged else None
        if len(logged) < 2:
            return name, first, None, None
        return name, logged[0], logged[-1], Estimate(logged[-1].value - logged[0].value)


@dataclass(frozen=True, slots=True)
class Variant:
    """Runs that differ only in their seed, or a single run."""

    name: str
    runs: tuple[RunData, ...]


def group_runs(runs: Sequence[RunData]) -> list[Variant]:
    """Few runs are a variant each; of more runs, those whose configs differ only in seed and folder are one."""
    if len(runs) <= FEW_RUNS:
        return [Variant(run.label, (run,)) for run in runs]
    groups: dict[str, list[RunData]] = {}
    for run in runs:
        fields = {name: value for name, value in flatten(run.config).items() if name not in RUN_FIELDS}
        groups.setdefault(repr(sorted(fields.items())), []).append(run)
    variants: list[Variant] = []
    for members in groups.values():
        names = {re.sub(r"-seed[0-9]+$", "", run.label) for run in members}
        name = names.pop() if len(names) == 1 else f"{members[0].label} and {len(members) - 1} more"
        taken = any(name == other.name for other in variants)
        variants.append(Variant(members[0].label if taken else name, tuple(members)))
    return variants


def read_runs(paths: Sequence[Path]) -> list[RunData]:
    """The runs in these folders, each with a different label. ValueError for another folder, or one given twice."""
    given: dict[Path, Path] = {}
    for path in paths:
        place = path.resolve()
        if place in given:
            raise ValueError(f"{path} is the same run folder as {given[place]}; give each run once.")
        given[place] = path
    folders = [RunFolder.open(path) for path in paths]
    return [_read_run(folder, label, len(folders)) for folder, label in zip(folders, _labels(folders), strict=True)]


def _labels(folders: Sequence[RunFolder]) -> list[str]:
    """Folder names, with as many parents as make them different."""
    parts = [folder.path.resolve().parts for folder in folders]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def _read_run(folder: RunFolder, label: str, num_runs: int) -> RunData:
    metrics, torn = read_json_lines(folder.metrics_path)
    metrics = [line for line in metrics if isinstance(line.get("step"), int)]
    summary = folder.read_summary()
    trained = [line for line in metrics if line["step"] > 0]
    notes = []
    if summary is None:
        last = f"its last logged step is {metrics[-1]['step']}" if metrics else "it has logged no step yet"
        notes.append(f"not finished (no summary.json): {last}")
    elif trained and summary.get("steps") not in (None, trained[-1]["step"]):
        notes.append(f"summary.json is of step {summary['steps']}, the metrics go to {trained[-1]['step']}")
    if torn:
        notes.append("the last line of metrics.jsonl is torn and left out")
    expected = [chart for chart in CHARTS if not chart.rare]
    missing = [chart.title for chart in expected if all(line.get(chart.key) is None for line in metrics)]
    if metrics and missing:
        notes.append(f"never logged: {', '.join(missing)}")
    if len(_thinned(metrics, num_runs)) < len(metrics):
        notes.append(f"curves show evenly chosen steps of the {len(metrics):,}")
    notes += cautions([*read_estimates(summary, "before").values(), *read_estimates(summary, "after").values()])
    notes += [f"held-out accuracy on the way: {text}" for text in cautions(logged_estimates(metrics))]
    if not folder.answer_steps():
        notes.append("no sampled answers are kept")
    config = folder.read_config()
    seed = flatten(config).get("run.seed")
    return RunData(label, folder, config, folder.read_environment(), summary, metrics, tuple(notes), seed)


def series(metrics: Sequence[Mapping[str, Any]], num_runs: int) -> dict[str, list[Any]]:
    """Steps, seconds and every metric in a chart, as columns; of very many steps, evenly chosen ones."""
    keys = [key for chart in CHARTS for key in (chart.key, chart.low, chart.high) if key]
    lines = _thinned(metrics, num_runs)
    return {key: [_short(line.get(key)) for line in lines] for key in ("step", "seconds", *keys)}


def mean_series(variant: Variant, num_runs: int) -> dict[str, list[Any]] | None:
    """Means over a variant's runs as columns, their interval as "key:low" and "key:high"; None for a single run."""
    if len(variant.runs) == 1:
        return None
    lines: dict[int, dict[str, Any]] = {}
    for chart in CHARTS:
        for point in mean_curve([run.metrics for run in variant.runs], chart.key, fraction=chart.percent):
            line = lines.setdefault(point.step, {"step": point.step})
            line |= {chart.key: point.value, f"{chart.key}:low": point.low, f"{chart.key}:high": point.high}
    for point in mean_curve([run.metrics for run in variant.runs], "seconds"):
        lines.get(point.step, {})["seconds"] = point.value
    keys = ["step", "seconds", *(f"{chart.key}{end}" for chart in CHARTS for end in ("", ":low", ":high"))]
    kept = _thinned([lines[step] for step in sorted(lines)], num_runs)
    columns = {key: [_short(line.get(key)) for line in kept] for key in keys}
    needed = {"step", "seconds", *(chart.key for chart in CHARTS)}
    return {key: column for key, column in columns.items() if key in needed or any(v is not None for v in column)}


def _short(value: Any) -> Any:
    """A number with as many digits as a chart needs."""
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def _thinned(metrics: Sequence[_Line], num_runs: int) -> list[_Line]:
    """Evenly chosen lines, few enough for a quick page; lines with an evaluation are chosen separately."""
    limit = min(_MAX_POINTS, max(100, _MAX_POINTS_OF_ALL // num_runs))
    evaluated = [line for line in metrics if line.get("evaluation/accuracy") is not None]
    others = [line for line in metrics if line.get("evaluation/accuracy") is None]
    return sorted(_evenly(evaluated, limit) + _evenly(others, limit), key=lambda line: line["step"])


def sampled_answers(runs: Sequence[RunData]) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Answers for the page's browser (with the number of their question), the questions, and notes on what is left out.

    The number is limited: evenly chosen steps, in them evenly chosen answers; long texts lose their middle.
    """
    answers: list[dict[str, Any]] = []
    questions: dict[str, int] = {}
    left_out: list[str] = []
    budget = (_MAX_ANSWERS if len(runs) <= FEW_RUNS else _MAX_ANSWERS_OF_MANY) // max(1, len(runs))
    for number, run in enumerate(runs):
        if run.folder is None:
            continue
        steps = run.folder.answer_steps()
        kept_steps = _evenly(steps, max(1, budget // _MIN_ANSWERS_A_STEP))
        per_step = min(_MAX_ANSWERS_A_STEP, max(1, budget // max(1, len(kept_steps))))
        num_left_out = 0
        for step in kept_steps:
            records = run.folder.read_answers(step)
            kept = _evenly(records, per_step)
            num_left_out += len(records) - len(kept)
            for record in kept:
                question = questions.setdefault(_cut(record.get("question")), len(questions))
                answers.append({"run": number, "step": step, "question": question, **_shown(record)})
        if num_left_out:
            left = f"{num_left_out:,} answer{'s' * (num_left_out > 1)}"
            left_out.append(f"{run.label}: {left} of the steps shown (at most {per_step} a step)")
        if len(kept_steps) < len(steps):
            left_out.append(f"{run.label}: all answers of {len(steps) - len(kept_steps):,} of {len(steps):,} steps")
    return answers, list(questions), left_out


def _shown(record: Mapping[str, Any]) -> dict[str, Any]:
    texts = {key: _cut(record.get(key)) for key in ("problem_id", "gold", "answer", "reason")}
    extracted = None if record.get("extracted") is None else _cut(record["extracted"])
    numbers = {key: record.get(key) for key in ("correct", "pass_rate", "finish_reason", "num_tokens", "trained")}
    return {**texts, "extracted": extracted, **numbers}


def _cut(text: object) -> str:
    """The beginning and the end of a long text: the final answer is at the end."""
    text = "" if text is None else str(text)
    if len(text) <= _MAX_CHARACTERS:
        return text
    half = _MAX_CHARACTERS // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"


def _evenly(items: Sequence[_Item], limit: int) -> list[_Item]:
    """At most `limit` items, evenly chosen, with the first and the last."""
    if len(items) <= limit:
        return list(items)
    if limit == 1:
        return [items[-1]]
    return [items[round(index * (len(items) - 1) / (limit - 1))] for index in range(limit)]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as dotted names."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
