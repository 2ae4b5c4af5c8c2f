"""`negaware study`: starts each unfinished run in a process, then writes the tables, figures and page of all runs."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from multiprocessing.connection import wait
from pathlib import Path

from negaware.ranks import joined_ranks
from negaware.runs.environment import num_cpus
from negaware.runs.interrupt import Interrupt
from negaware.studies.check import Checked, check
from negaware.studies.folder import StudyFolder, results_of
from negaware.studies.matrix import Job
from negaware.studies.options import StudyOptions, read_study
from negaware.studies.outputs import matrix_lines, write_outputs
from negaware.studies.progress import Going, RunTimes, StudyProgress, until
from negaware.studies.run import Process, perform


def study_command(path: Path, jobs: int, dry_run: bool) -> int:
    """Runs the study of a file and returns the exit code. ValueError before the first run if a run can't begin."""
    study = read_study(path)
    folder = path.parent / (study.folder or path.stem)
    return run_study(study, path.read_text(encoding="utf-8"), path.parent / study.base, folder, jobs, dry_run)


def run_study(study: StudyOptions, text: str, base: Path, path: Path, jobs: int, dry_run: bool) -> int:
    """Runs a study in the folder `path`, `jobs` runs at a time; returns 2 if a run failed, else 0.

    `text` is the text of the study's file, `base` the path of its base config.
    """
    _require_usable(path)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        if jobs > 1:
            raise ValueError(
                f"--jobs is {jobs}, but under torchrun the runs go one after another, each on all processes; "
                "leave it out."
            )
        if not dry_run:
            return _run_among_ranks(study, text, base, path)
        if os.environ.get("RANK", "0") != "0":
            return 0
    # In another process: this one must not have computed anything when it forks (see run.py).
    checked: Checked = Process(check, study, base, path).outcome()
    folder = StudyFolder(path)
    if dry_run:
        print("\n".join(matrix_lines(study, checked, folder, _run_times(folder, study), jobs, base.parent)))
        return 0
    failures: dict[str, str] = {}
    with folder.locked():
        if checked.done != folder.done(checked.jobs):  # the lock has waited for runs of a killed study
            checked = Process(check, study, base, path).outcome()
        folder.write_study(text)
        if checked.waiting:
            failures = _Runs(study, base, folder, checked, jobs).all()
    try:
        write_outputs(folder, results_of(folder, study))
    finally:
        for name, sentence in failures.items():
            print(f"negaware: error: {name} failed: {sentence} ({folder.log_path(name)})", file=sys.stderr)
        if failures:
            print("The same command goes on with what is left.", file=sys.stderr)
    return 2 if failures else 0


def _require_usable(path: Path) -> None:
    """ValueError if `path` can't be a study's folder."""
    if path.exists() and not path.is_dir():
        raise ValueError(
            f"The study's folder would be {path}, which is a file; give the study's file the suffix .yaml, or set "
            "folder to another path."
        )
    if (path / "config.yaml").exists():
        raise ValueError(
            f"{path} is the folder of a run, so it can't be a study's folder; choose another: folder in a study's "
            "file, --run.folder for compare."
        )


def _run_times(folder: StudyFolder, study: StudyOptions) -> RunTimes:
    times = RunTimes()
    for run in results_of(folder, study).runs:
        times.seconds.setdefault(run.variant, []).append(run.total_seconds)
    return times


class _Runs:
    """The unfinished runs of a study, done `jobs` at a time."""

    def __init__(self, study: StudyOptions, base: Path, folder: StudyFolder, checked: Checked, jobs: int) -> None:
        self.study, self.base, self.folder, self.checked = study, base, folder, checked
        self.times, self.jobs, self.waiting = _run_times(folder, study), jobs, checked.waiting
        self.places = {*range(min(jobs, len(self.waiting)))}
        self.running: dict[int, tuple[Job, Process, float]] = {}
        """Place → run, process, and the `time.monotonic()` at which it began."""
        self.interrupt = Interrupt()
        self.failures: dict[str, str] = {}
        self.progress = StudyProgress(len(checked.jobs), len(checked.done))

    def all(self) -> dict[str, str]:
        """Does all runs; returns failed run → reason. KeyboardInterrupt after a signal, when all have ended."""
        gc.freeze()  # or garbage collection in a fork would copy the memory of all imports
        with self.interrupt.watch(), self.progress:
            try:
                while self.waiting or self.running:
                    for place in self.places - self.running.keys():
                        if self.waiting:
                            self._start(place, self.waiting.pop(0))
                    ready = wait([process.results for _, process, _ in self.running.values()], timeout=0.5)
                    for place in [place for place, (_, process, _) in self.running.items() if process.results in ready]:
                        self._end(place)
                    runs = self._going()
                    self.progress.show(runs, self.times.left(self.waiting, runs, self.jobs))
            except KeyboardInterrupt:
                self.progress.note("Stopping: each run ends after its step, with a checkpoint.")
                raise
            finally:
                for _, process, _ in self.running.values():
                    process.ask_to_stop()
                for _, process, _ in self.running.values():
                    process.join()
        return self.failures

    def _going(self) -> list[Going]:
        return [Going(job, self.folder.path / "runs" / job.name, began) for job, _, began in self.running.values()]

    def _start(self, place: int, job: Job) -> None:
        with self.interrupt.shield():  # a signal here would leave a process that isn't in `running`
            process = Process(
                perform,
                *(job, self.folder.path, self.base.parent, self.study.keep),
                log=self.folder.log_path(job.name),
                environment=part_of_machine(place, self.jobs, self.checked.num_gpus),
            )
            self.running[place] = (job, process, time.monotonic())
        if not sys.stdout.isatty():
            number = [one.name for one in self.checked.jobs].index(job.name) + 1
            self.progress.note(f"run {number} of {len(self.checked.jobs)}: {job.name}")

    def _end(self, place: int) -> None:
        job, process, _ = self.running[place]
        try:
            process.outcome()
        except ValueError as error:
            self.failures[job.name] = str(error)
            self.progress.num_failed += 1
            outcome = f"{job.name} failed: {error}"
        else:
            stored = self.folder.read_stored(job.name)
            assert stored is not None
            self.times.seconds.setdefault(job.variant, []).append(stored.result.total_seconds)
            self.folder.write_tables(results_of(self.folder, self.study))
            self.progress.num_done += 1
            right = stored.result.after["greedy_accuracy"].values()
            outcome = f"{job.name} is done: accuracy at temperature 0 {sum(right) / len(right):.1%}"
        del self.running[place]
        left = self.times.left(self.waiting, self._going(), self.jobs)
        self.progress.note("; ".join([outcome, self.progress.line([], None), *until(left)]))


def part_of_machine(place: int, jobs: int, num_gpus: int) -> Mapping[str, str]:
    """The environment variables that give the run at this place, of `jobs`, its part of the CPUs, and one GPU.

    `jobs` is the number asked for, even if fewer runs are left, since rounding depends on the number of threads.
    Variables that the user has set stay. With one job the run has the whole machine.
    """
    if jobs == 1:
        return {}
    found = {}
    if num_gpus:
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = given.split(",") if given else [str(number) for number in range(num_gpus)]
        found["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    if "OMP_NUM_THREADS" not in os.environ:
        found["OMP_NUM_THREADS"] = str(max(1, (num_cpus() or 1) // jobs))
    return found


def _run_among_ranks(study: StudyOptions, text: str, base: Path, path: Path) -> int:
    """Under torchrun: the runs go one after another, each on all processes that torchrun has started."""
    folder = StudyFolder(path)
    with joined_ranks() as ranks, ExitStack() as stack:

        def begin() -> Checked:
            checked = check(study, base, path)
            stack.enter_context(folder.locked())
            return checked if checked.done == folder.done(checked.jobs) else check(study, base, path)

        checked = ranks.from_first(begin)
        if checked.waiting[1:] and any(job.config["rollout"]["engine"]["name"] == "vllm" for job in checked.waiting):
            raise ValueError(
                "rollout.engine is vllm, which a process can start only once, and under torchrun all runs are in the "
                "same processes; choose local or vllm_server, or start the runs one by one with negaware train."
            )
        if ranks.is_first:
            folder.write_study(text)
        for job in checked.waiting:
            if ranks.is_first:
                print(f"run {checked.jobs.index(job) + 1} of {len(checked.jobs)}: {job.name}", flush=True)
            perform(job, path, base.parent, study.keep, ranks)
            if ranks.is_first:
                folder.write_tables(results_of(folder, study))
    if ranks.is_first:
        write_outputs(folder, results_of(folder, study))
    return 0
