"""A study's folder: its file, a small file a finished run, and the tidy tables made of those.

`study.yaml` and `results/` are all that tables, figures and page are made of; run folders may be gone.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from negaware.evaluation.before import Before, before_text, read_before
from negaware.evaluation.outcome import Counts
from negaware.files import read_json_lines, replace_file
from negaware.runs.folder import RunFolder
from negaware.studies.matrix import Job
from negaware.studies.options import StudyOptions, read_study
from negaware.studies.results import RunResult, StudyResults, run_name

STUDY = "study.yaml"
PATIENCE = 600.0
"""Seconds that a study waits for the runs of one that was killed: they end with their step."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A finished run, and what its result depends on."""

    result: RunResult
    config: Mapping[str, Any]
    own_files: Mapping[str, str]


class StudyFolder:
    """A study's files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def study_path(self) -> Path:
        """The study's file, as it was given."""
        return self.path / STUDY

    def result_path(self, name: str) -> Path:
        """Of a run, by its name."""
        return self.path / "results" / f"{name}.json"

    def log_path(self, name: str) -> Path:
        """What a run said."""
        return self.path / "runs" / f"{name}.log"

    def before_path(self, job: Job) -> Path:
        """The evaluation before training that this run has in common with others."""
        return self.path / "runs" / f"{job.beginning}.json"

    def done(self, jobs: Iterable[Job]) -> set[str]:
        """The names of those that have a result."""
        return {job.name for job in jobs if self.result_path(job.name).exists()}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from running this study. ValueError if one does; the runs of a killed one are waited
        for: they share the lock."""
        place = self.path / "runs" / "lock"
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("a+") as file:
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    holder = place.read_text().strip()
                    if _is_alive(holder) or time.monotonic() > deadline:
                        raise ValueError(
                            f"another process ({holder}) is running the study in {self.path}; wait for its end"
                        ) from None
                    time.sleep(0.2)
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    def write_result(self, job: Job, run: RunFolder) -> None:
        """Writes what the finished run in its folder came to."""
        margins = read_study(self.study_path).margins if self.study_path.is_file() else None
        result = replace(collect(job, run), margins=margins)
        content = asdict(result) | {"config": dict(job.config), "own_files": dict(job.own_files)}
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in content.items()]
        replace_file(self.result_path(job.name), "{\n" + ",\n".join(lines) + "\n}\n")

    def read_stored(self, name: str) -> Stored | None:
        """A run's result; None where there is none. ValueError if someone has broken it."""
        path = self.result_path(name)
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            given = {field.name: content[field.name] for field in fields(RunResult) if field.name in content}
            given["metrics"] = tuple(given["metrics"])
            return Stored(RunResult(**given), content["config"], content["own_files"])
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no result of a run ({error}); delete it: it is made again") from error

    def keep_beginning(self, job: Job, stored: Stored) -> None:
        """Writes the evaluation before training as a finished run's result holds it, where its file is gone."""
        place = self.before_path(job)
        if place.exists():
            return
        result = stored.result
        counts: dict[str, Counts] = {}
        for measure, problems in result.before.items():
            number = result.completions[measure]
            right = [round(share * number) for share in problems.values()]
            counts[measure] = {"num_completions": number, "num_correct": right}
        times = ("step", "seconds", "processor_seconds")
        metrics = {name: value for name, value in result.metrics[0].items() if name not in times}
        replace_file(place, before_text(Before(counts, metrics)))

    def write_tables(self, results: StudyResults) -> None:
        """`figures.csv`, every figure of every run, and `outcomes.csv`, every problem's."""
        replace_file(self.path / "figures.csv", _csv(_FIGURES, _figures(results)))
        replace_file(self.path / "outcomes.csv", _csv(_OUTCOMES, _outcomes(results)))


def read_results(path: Path) -> StudyResults:
    """The study in a folder as far as it has come. ValueError where there is none, or for a file that can't be read."""
    folder = StudyFolder(path)
    if not folder.study_path.is_file():
        raise ValueError(f"{path} is not a study's folder: there is no {STUDY} in it")
    return results_of(folder, read_study(folder.study_path))


def results_of(folder: StudyFolder, study: StudyOptions) -> StudyResults:
    """The runs of a study that are done."""
    names = [run_name(variant, seed) for variant in study.variants for seed in study.seeds]
    stored = filter(None, map(folder.read_stored, names))
    runs = tuple(one.result for one in stored)
    name = folder.path.resolve().name
    return StudyResults(name, tuple(study.variants), study.seeds, study.reference, runs, dict(study.margins))


def collect(job: Job, run: RunFolder) -> RunResult:
    """What a finished run came to, from its folder."""
    summary, before = run.read_summary(), read_before(run.path / "evaluations" / "before.json")
    if summary is None or before is None:
        raise ValueError(f"{run.path} is not the folder of a whole run; delete it, and the run is done again")
    after: dict[str, dict[str, float]] = {}
    started: dict[str, dict[str, float]] = {}
    questions: dict[str, str] = {}
    completions: dict[str, int] = {}
    for measure, counts in before.counts.items():
        problems, _ = read_json_lines(run.path / "evaluations" / f"after-{measure}.jsonl")
        number = completions[measure] = counts["num_completions"]
        after[measure] = {one["id"]: sum(a["correct"] for a in one["answers"]) / number for one in problems}
        started[measure] = {
            one["id"]: right / number for one, right in zip(problems, counts["num_correct"], strict=True)
        }
        questions |= {one["id"]: one["question"] for one in problems}
    return RunResult(
        variant=job.variant,
        seed=job.seed,
        config_hash=job.config_hash,
        steps=job.steps,
        metrics=tuple(
            {name: value for name, value in line.items() if value is not None} for line in run.read_metrics()
        ),
        before=started,
        after=after,
        completions=completions,
        questions=questions,
        train_seconds=summary["train_seconds"],
        total_seconds=summary["total_seconds"],
        processor_seconds=summary["processor_seconds"],
        machine=_machine(),
    )


def _machine() -> str:
    """The processor's name, as far as the system tells it, and how many of it this process may use."""
    name = ""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        name = os.uname().machine
    number = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name or os.uname().machine}, {number} CPUs"


def _is_alive(process: str) -> bool:
    if not process.isdecimal():
        return True  # it has just been made, and not said who it is
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


_FIGURES = ("study", "variant", "seed", "step", "measure", "value", "low", "high")
_OUTCOMES = ("study", "variant", "seed", "moment", "measure", "problem", "question", "correct_share", "completions")
Cells = tuple[Any, ...]


def _figures(results: StudyResults) -> Iterator[Cells]:
    for run in results.runs:
        place = (results.name, run.variant, run.seed)
        for line in run.metrics:
            for name, value in line.items():
                base, _, end = name.rpartition("_")
                if name != "step" and not (end in ("low", "high") and base in line):
                    yield (*place, line["step"], name, value, line.get(f"{name}_low", ""), line.get(f"{name}_high", ""))
        for step, moment in (0, run.before), (run.steps, run.after):
            for measure, problems in moment.items():
                found = run.estimate(measure, problems)
                yield (*place, step, measure, found.value, found.low, found.high)
        times = {"train_seconds": run.train_seconds, "total_seconds": run.total_seconds}
        if run.processor_seconds is not None:  # the last step's own line ends before the evaluation that follows it
            times["total_processor_seconds"] = run.processor_seconds
        yield from ((*place, run.steps, name, value, "", "") for name, value in times.items())


def _outcomes(results: StudyResults) -> Iterator[Cells]:
    for run in results.runs:
        for moment, measures in ("before", run.before), ("after", run.after):
            for measure, problems in measures.items():
                place = (results.name, run.variant, run.seed, moment, measure)
                for problem, share in problems.items():
                    yield (*place, problem, run.questions[problem], share, run.completions[measure])


def _csv(columns: tuple[str, ...], rows: Iterator[Cells]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
