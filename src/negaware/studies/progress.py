"""How far a study is and when it will end: one live line on a terminal, elsewhere a plain line for each run."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.text import Text

from negaware.runs.progress import Display, format_seconds
from negaware.studies.matrix import Job

_TAIL = 65536  # bytes at the end of metrics.jsonl; more than its last line has


@dataclass
class RunTimes:
    """How long runs take, by the finished runs and by the runs that go on."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Variant → the total seconds of each finished run."""

    def expected(self, variant: str) -> float | None:
        """Mean seconds of the variant's finished runs, or of all finished runs; None while no run is finished."""
        known = self.seconds.get(variant) or [one for runs in self.seconds.values() for one in runs]
        return statistics.fmean(known) if known else None

    def left(self, waiting: Sequence[Job], going: Sequence[Going], jobs: int) -> float | None:
        """Seconds until all runs are finished, `jobs` at a time; None while that isn't known."""
        begun = [one.whole for one in going if one.whole]
        guess = statistics.fmean(begun) if begun else None
        parts = [self.expected(job.variant) or guess for job in waiting]
        for one in going:
            whole = one.whole or self.expected(one.job.variant) or guess
            parts.append(None if whole is None else max(0.0, whole - one.seconds))
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return max(sum(known) / jobs, max(known, default=0.0))


class Going:
    """A run that goes on, in the folder `run`: its last finished step, and the seconds that it has taken so far."""

    def __init__(self, job: Job, run: Path, began: float) -> None:
        """`began`: the `time.monotonic()` at which the run's process began."""
        line = last_line(run / "metrics.jsonl")
        self.job, self.step = job, int(line.get("step", 0))
        self.seconds = float(line.get("seconds", 0.0)) if self.step else time.monotonic() - began
        self.whole = self.seconds / self.step * job.steps if self.step else None
        """The seconds that it will take in all, if its steps stay as fast; None before the first step."""


def last_line(path: Path) -> dict[str, Any]:
    """The last whole line of a JSON Lines file; {} if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().split(b"\n")[:-1]
        found = json.loads(lines[-1]) if lines else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class StudyProgress(Display):
    """The progress of a study's runs: `with StudyProgress(num_runs, num_done) as progress`, then `show` and `note`."""

    def __init__(self, num_runs: int, num_done: int) -> None:
        super().__init__()
        self.num_runs, self.num_done, self.num_failed = num_runs, num_done, 0

    def _new_live(self) -> Live:
        # Refreshed by hand: rich's refreshing thread must not be forked.
        return Live(console=self._console, auto_refresh=False, transient=True)

    def show(self, runs: Sequence[Going], left: float | None) -> None:
        """Updates the live line."""
        if self._live is not None:
            with self._terminal_may_close():
                self._live.update(Text(self.line(runs, left), no_wrap=True, overflow="ellipsis"), refresh=True)

    def line(self, runs: Sequence[Going], left: float | None) -> str:
        """How many runs are finished, how far the others are, and when all will end."""
        failed = f", {self.num_failed} failed" if self.num_failed else ""
        parts = [f"{self.num_done} of {self.num_runs} runs done{failed}"]
        parts += [f"{one.job.name} step {one.step}/{one.job.steps}" for one in runs]
        return " · ".join([*parts, *until(left)])


def until(left: float | None) -> list[str]:
    """["1:02:05 left, until 14:35"]; [] if the seconds left aren't known."""
    if left is None:
        return []
    end = datetime.now() + timedelta(seconds=left)
    day = "" if end.date() == datetime.now().date() else f"{end:%a} "
    return [f"{format_seconds(left)} left, until {day}{end:%H:%M}"]
