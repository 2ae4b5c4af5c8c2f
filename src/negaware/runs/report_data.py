"""What the report shows of run folders, read and cut to size, as plain values for the page's script.

It reads whatever is there, of a finished run, one that is still going or one that was killed, and says what is missing.
It knows no HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from negaware.estimates import Estimate
from negaware.runs.folder import RunFolder, read_json_lines
from negaware.runs.summary import cautions, logged_estimates, read_changes, read_estimates

_Item = TypeVar("_Item")

_MAX_ANSWERS = 4000  # in the page, over all runs: some 10 MB at the very most
_MAX_ANSWERS_A_STEP = 64
_MIN_ANSWERS_A_STEP = 8
_MAX_POINTS = 1000  # a curve, besides its evaluations
_MAX_CHARACTERS = 2000  # a text, its beginning and its end


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart: the metric it draws, its interval if it has one, and how its numbers are read."""

    title: str
    key: str
    explanation: str
    low: str | None = None
    high: str | None = None
    percent: bool = False


CHARTS = (
    Chart(
        "Held-out accuracy", "evaluation/accuracy",
        "held-out problems, at every step sampled as evaluation.during says; band: 95% interval",
        low="evaluation/accuracy_low", high="evaluation/accuracy_high", percent=True,
    ),
    Chart("Train pass rate", "rollout/pass_rate", "right answers among all that were sampled", percent=True),
    Chart("Informative share", "rollout/informative_share", "questions neither all right nor all wrong", percent=True),
    Chart("Entropy", "train/entropy", "nats a token; near 0 the policy no longer explores"),
    Chart("Answer length", "rollout/answer_tokens", "tokens, mean of the sampled answers"),
    Chart("Loss", "train/loss", "the objective's loss"),
    Chart("Gradient norm", "train/grad_norm", "before clipping"),
    Chart("Sampler–trainer difference", "train/sampler_difference", "mean |log-probability difference| of a token"),
    Chart("Tokens per second, sampling", "rollout/tokens_per_second", "tokens sampled a second"),
    Chart("Tokens per second, training", "train/tokens_per_second", "tokens trained on a second"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RunData:
    """One run as the report needs it."""

    label: str
    folder: RunFolder
    config: dict[str, Any]
    environment: dict[str, Any]
    summary: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    notes: tuple[str, ...]

    def headline(self) -> tuple[str, Estimate | None, Estimate | None, Estimate | None]:
        """The measure that tells whether the run worked: its name, before, after (or so far), and its change."""
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


def read_runs(paths: Sequence[Path]) -> list[RunData]:
    """The runs in these folders, each with a label of its own.

    ValueError where one isn't a run folder, or is given twice.
    """
    given: dict[Path, Path] = {}
    for path in paths:
        place = path.resolve()
        if place in given:
            raise ValueError(f"{path} is the same run folder as {given[place]}; give each run once.")
        given[place] = path
    folders = [RunFolder.open(path) for path in paths]
    return [_read_run(folder, label) for folder, label in zip(folders, _labels(folders), strict=True)]


def _labels(folders: Sequence[RunFolder]) -> list[str]:
    """Folder names, with as many parents before them as tell them apart."""
    parts = [folder.path.resolve().parts for folder in folders]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def _read_run(folder: RunFolder, label: str) -> RunData:
    metrics, torn = read_json_lines(folder.metrics_path)
    metrics = [line for line in metrics if isinstance(line.get("step"), int)]
    summary = folder.read_summary()
    trained = [line for line in metrics if line["step"] > 0]
    notes = []
    if summary is None:
        last = f"its last logged step is {metrics[-1]['step']}" if metrics else "it has logged no step yet"
        notes.append(f"not finished (no summary.json): {last}")
    elif trained and summary.get("steps") not in (None, trained[-1]["step"]):
        notes.append(f"summary.json tells of step {summary['steps']}, the metrics go to {trained[-1]['step']}")
    if torn:
        notes.append("the last line of metrics.jsonl is torn and left out")
    missing = [chart.title for chart in CHARTS if all(line.get(chart.key) is None for line in metrics)]
    if metrics and missing:
        notes.append(f"never logged: {', '.join(missing)}")
    if len(_thinned(metrics)) < len(metrics):
        notes.append(f"curves show an even share of the {len(metrics):,} steps")
    estimates = [*read_estimates(summary, "before").values(), *read_estimates(summary, "after").values()]
    notes += cautions(estimates)
    notes += [f"held-out accuracy on the way: {text}" for text in cautions(logged_estimates(metrics))]
    if not folder.answer_steps():
        notes.append("no sampled answers are kept")
    return RunData(label, folder, folder.read_config(), folder.read_environment(), summary, metrics, tuple(notes))


def series(run: RunData) -> dict[str, list[Any]]:
    """Steps, seconds and every charted metric, as columns; of very many steps an even share."""
    keys = [key for chart in CHARTS for key in (chart.key, chart.low, chart.high) if key]
    lines = _thinned(run.metrics)
    return {key: [line.get(key) for line in lines] for key in ("step", "seconds", *keys)}


def _thinned(metrics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """So many steps that a page stays quick; those with an evaluation are few and go first."""
    evaluated = [line for line in metrics if line.get("evaluation/accuracy") is not None]
    others = [line for line in metrics if line.get("evaluation/accuracy") is None]
    return sorted(_evenly(evaluated, _MAX_POINTS) + _evenly(others, _MAX_POINTS), key=lambda line: line["step"])


def sampled_answers(runs: Sequence[RunData]) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Answers for the browser (question by its number), the questions, and what was left out, in words.

    Bounded however many there are: steps evenly over the run, answers evenly over a step, long texts cut in the middle.
    """
    answers: list[dict[str, Any]] = []
    questions: dict[str, int] = {}
    left_out: list[str] = []
    for number, run in enumerate(runs):
        steps = run.folder.answer_steps()
        budget = _MAX_ANSWERS // len(runs)
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
    """At most so many characters of a text: its beginning, and its end, where the final answer stands."""
    text = "" if text is None else str(text)
    if len(text) <= _MAX_CHARACTERS:
        return text
    half = _MAX_CHARACTERS // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"


def _evenly(items: Sequence[_Item], limit: int) -> list[_Item]:
    """At most `limit` of the items, evenly over them, the first and the last included."""
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
