"""How far a study is: one live line on a terminal, a plain line a run elsewhere; and when it will be done."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.text import Text

from negaware.runs.progress import Display, format_seconds
from negaware.studies.matrix import Job

_TAIL = 65536  # bytes of metrics.jsonl; more than a line has


@dataclass
class Pace:
    """How long runs take, from those that are done and those that go on."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Whole seconds of finished runs, by variant."""

    def of(self, variant: str) -> float | None:
        """A run's seconds: as its variant's others, or as any others; None while none is done."""
        known = self.seconds.get(variant) or [one for runs in self.seconds.values() for one in runs]
        return statistics.fmean(known) if known else None

    def left(self, waiting: Sequence[Job], going: Mapping[str, Going], jobs: int) -> float | None:
        """Seconds until all are done, `jobs` at a time; None while nothing is known."""
        begun = [one for one in going.values() if one.whole]
        guess = statistics.fmean(one.whole or 0.0 for one in begun) if begun else None
        parts = [self.of(job.variant) or guess for job in waiting]
        for one in going.values():
            whole = one.whole or self.of(one.job.variant) or guess
            parts.append(None if whole is None else max(0.0, whole - one.seconds))
        if any(part is None for part in parts):
            return None
        known = [part for part in parts if part is not None]
        return max(sum(known) / jobs, max(known, default=0.0))


@dataclass(frozen=True, slots=True)
class Going:
    """A run that goes on: the last step that is done, and the seconds until then and since."""

    job: Job
    step: int
    seconds: float
    whole: float | None
    """The seconds that it will take in all, by its own pace."""


def going(job: Job, run: Path, began: float) -> Going:
    """How far the run in this folder is, whose process began at that `time.monotonic()`."""
    line = last_line(run / "metrics.jsonl")
    step, seconds = int(line.get("step", 0)), float(line.get("seconds", 0.0))
    if step == 0:
        return Going(job, 0, time.monotonic() - began, None)
    return Going(job, step, seconds, seconds / step * job.steps)


def last_line(path: Path) -> dict[str, Any]:
    """The last whole line of a JSON Lines file; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().split(b"\n")[:-1]
        found = json.loads(lines[-1]) if lines else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class StudyProgress(Display):
    """`with StudyProgress(number of runs, of them done) as progress`, then `show` now and then, and `note`."""

    def __init__(self, num_runs: int, num_done: int) -> None:
        super().__init__()
        self.num_runs, self.num_done, self.num_failed = num_runs, num_done, 0

    def _new_live(self) -> Live:
        # Refreshed by hand: a thread of rich's own must not be forked.
        return Live(console=self._console, auto_refresh=False, transient=True)

    def show(self, runs: Sequence[Going], left: float | None) -> None:
        """The live line."""
        if self._live is not None:
            with self._terminal_may_close():
                self._live.update(Text(self.line(runs, left), no_wrap=True, overflow="ellipsis"), refresh=True)

    def line(self, runs: Sequence[Going], left: float | None) -> str:
        """Which runs of how many, how far they are, and when all will be done."""
        failed = f", {self.num_failed} failed" if self.num_failed else ""
        parts = [f"{self.num_done} of {self.num_runs} runs done{failed}"]
        parts += [f"{one.job.name} step {one.step}/{one.job.steps}" for one in runs]
        return " · ".join([*parts, *until(left)])


def until(left: float | None) -> list[str]:
    """ "1:02:05 left, until 14:35", if that is known."""
    if left is None:
        return []
    end = datetime.now() + timedelta(seconds=left)
    day = "" if end.date() == datetime.now().date() else f"{end:%a} "
    return [f"{format_seconds(left)} left, until {day}{end:%H:%M}"]
