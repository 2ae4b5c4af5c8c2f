"""A study's folder: the study's file, one small result file for each finished run, and CSV tables made of these.

Tables, figures and page need `study.yaml` and `results/` alone: run folders may be gone.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from negaware.evaluation.before import Before, before_text, read_before
from negaware.evaluation.outcome import Counts
from negaware.files import read_json_lines, replace_file
from negaware.runs.environment import num_cpus
from negaware.runs.folder import RunFolder
from negaware.studies.matrix import Job
from negaware.studies.options import StudyOptions, read_study
from negaware.studies.results import RunResult, StudyResults, run_name

STUDY = "study.yaml"
PATIENCE = 600.0
"""Seconds to wait for the runs of a killed study: each ends after its step."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The result of a finished run, and what it depends on."""

    result: RunResult
    config: Mapping[str, Any]
    user_files: Mapping[str, str]


class StudyFolder:
    """A study's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.study_path = path / STUDY

    def result_path(self, name: str) -> Path:
        """The result file of the run with this name."""
        return self.path / "results" / f"{name}.json"

    def log_path(self, name: str) -> Path:
        """The log of the run with this name."""
        return self.path / "runs" / f"{name}.log"

    def begun_path(self, name: str) -> Path:
        """The hashes of the user's files with which a run began."""
        return self.path / "runs" / f"{name}.files.json"

    def read_begun(self, job: Job) -> Mapping[str, str]:
        """The hashes of the user's files with which a run began; the present ones if they weren't written down."""
        path = self.begun_path(job.name)
        found: Mapping[str, str] = json.loads(path.read_text()) if path.exists() else job.user_files
        return found

    def before_path(self, job: Job) -> Path:
        """The file of the evaluation before training, which several runs may use."""
        return self.path / "runs" / f"{job.beginning}.json"

    def done(self, jobs: Iterable[Job]) -> set[str]:
        """The names of the runs that have a result."""
        return {job.name for job in jobs if self.result_path(job.name).exists()}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from running this study. ValueError if one does. Waits for runs of a killed study."""
        lock_path = self.path / "runs" / "lock"
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        with lock_path.open("a+") as file:
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    holder = lock_path.read_text().strip()
                    if _is_alive(holder) or time.monotonic() > deadline:
                        raise ValueError(
                            f"another process ({holder}) is running the study in {self.path}; wait until it ends"
                        ) from None
                    time.sleep(0.2)
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    def write_study(self, text: str) -> None:
        """Writes the study's file, if its text has changed."""
        if not self.study_path.exists() or self.study_path.read_text(encoding="utf-8") != text:
            replace_file(self.study_path, text)

    def write_result(self, job: Job, run: RunFolder) -> None:
        """Writes the result of a finished run, from its run folder."""
        margins = read_study(self.study_path).margins if self.study_path.is_file() else None
        result = replace(collect(job, run), margins=margins)
        content = asdict(result) | {"config": dict(job.config), "own_files": dict(job.user_files)}
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in content.items()]
        replace_file(self.result_path(job.name), "{\n" + ",\n".join(lines) + "\n}\n")

    def read_stored(self, name: str) -> Stored | None:
        """The result of a run; None if there is none. ValueError if the file was damaged."""
        path = self.result_path(name)
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            given = {field.name: content[field.name] for field in fields(RunResult) if field.name in content}
            given["metrics"] = tuple(given["metrics"])
            return Stored(RunResult(**given), content["config"], content["own_files"])
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no result of a run ({error}); delete it, and it is made again") from error

    def keep_beginning(self, job: Job, stored: Stored) -> None:
        """Writes the file of the evaluation before training from a finished run's result, if that file is gone."""
        path = self.before_path(job)
        if path.exists():
            return
        result = stored.result
        counts: dict[str, Counts] = {}
        for measure, problems in result.before.items():
            number = result.completions[measure]
            right = [round(fraction * number) for fraction in problems.values()]
            counts[measure] = {"num_completions": number, "num_correct": right}
        times = ("step", "seconds", "processor_seconds")
        metrics = {name: value for name, value in result.metrics[0].items() if name not in times}
        replace_file(path, before_text(Before(counts, metrics)))

    def write_tables(self, results: StudyResults) -> None:
        """Writes `figures.csv`, every figure of every run, and `outcomes.csv`, the outcome of every problem."""
        replace_file(self.path / "figures.csv", _csv(_FIGURES, _figures(results)))
        replace_file(self.path / "outcomes.csv", _csv(_OUTCOMES, _outcomes(results)))


def read_results(path: Path) -> StudyResults:
    """The finished runs of the study in a folder. ValueError if it isn't a study's folder, or a file can't be read."""
    folder = StudyFolder(path)
    if not folder.study_path.is_file():
        raise ValueError(f"{path} is not a study's folder: there is no {STUDY} in it")
    return results_of(folder, read_study(folder.study_path))


def results_of(folder: StudyFolder, study: StudyOptions) -> StudyResults:
    """The finished runs of a study."""
    names = [run_name(variant, seed) for variant in study.variants for seed in study.seeds]
    runs = tuple(stored.result for stored in map(folder.read_stored, names) if stored)
    name = folder.path.resolve().name
    return StudyResults(name, tuple(study.variants), study.seeds, study.reference, runs, dict(study.margins))


def collect(job: Job, run: RunFolder) -> RunResult:
    """The result of the finished run in a run folder. ValueError if the run isn't finished."""
    summary, before = run.read_summary(), read_before(run.path / "evaluations" / "before.json")
    if summary is None or before is None:
        raise ValueError(f"{run.path} is not the folder of a finished run; delete it, and the run is done again")
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
        metrics=tuple({key: value for key, value in line.items() if value is not None} for line in run.read_metrics()),
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
    """The processor's name, if the system tells it, and how many CPUs this process may use."""
    name = ""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    return f"{name or os.uname().machine}, {num_cpus()} CPUs"


def _is_alive(process: str) -> bool:
    if not process.isdecimal():
        return True  # the lock was just made, and its process hasn't written its id yet
    try:
        os.kill(int(process), 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # it is alive, but another user's
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
        if run.processor_seconds is not None:  # the last step's line is written before the evaluation after it
            times["total_processor_seconds"] = run.processor_seconds
        yield from ((*place, run.steps, name, value, "", "") for name, value in times.items())


def _outcomes(results: StudyResults) -> Iterator[Cells]:
    for run in results.runs:
        for moment, measures in ("before", run.before), ("after", run.after):
            for measure, problems in measures.items():
                place = (results.name, run.variant, run.seed, moment, measure)
                for problem, fraction in problems.items():
                    yield (*place, problem, run.questions[problem], fraction, run.completions[measure])


def _csv(columns: tuple[str, ...], rows: Iterator[Cells]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
