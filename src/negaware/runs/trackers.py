"""The experiment trackers that a run may also log to: TensorBoard, Weights & Biases, trackio.

metrics.jsonl is always written, by the run folder; these are copies for people who live in such a tool. Each package
is imported when it is asked for and not before. Nothing here chooses what is logged.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from negaware.libraries import reason
from negaware.runs.folder import RunFolder

_PROJECT = "negaware"


class Tracker(Protocol):
    """Somewhere that numbers go, step by step."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the numbers of one step."""
        ...

    def close(self) -> None:
        """Writes what is pending and lets go of files, threads and connections."""
        ...


class TensorBoardTracker:
    """Event files in `tensorboard/` of the run folder; written without TensorFlow and without torch."""

    def __init__(self, path: Path, config: Mapping[str, Any], start_step: int) -> None:
        writer = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        self._event = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._summary = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        self._writer = writer.EventFileWriter(str(path / "tensorboard"))
        if start_step:
            # Tells TensorBoard to drop what an earlier process logged after the checkpoint that we resume from.
            session = self._event.SessionLog(status=self._event.SessionLog.START)
            self._writer.add_event(self._event.Event(wall_time=time.time(), step=start_step + 1, session_log=session))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the numbers of one step."""
        values = [self._summary.Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        summary = self._summary.Summary(value=values)
        self._writer.add_event(self._event.Event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()


class WandbTracker:
    """A Weights & Biases run, in `wandb/` of the run folder; WANDB_MODE=offline keeps it there."""

    def __init__(self, path: Path, config: Mapping[str, Any], start_step: int) -> None:
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project=_PROJECT,
            name=path.resolve().name,
            dir=str(path),
            config=dict(config),
            id=_stable_id(path),
            resume="allow" if start_step else None,
            # Their capture of stdout would tear the live display.
            settings=wandb.Settings(console="off"),
        )
        # Our own step as the axis: theirs must grow, and a resumed run logs some steps again.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the numbers of one step."""
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        """Ends the run and waits for its files."""
        self._run.finish()


class TrackioTracker:
    """A trackio run, in `trackio/` of the run folder, or in TRACKIO_DIR where that is set.

    trackio reads that folder's name once a process: further runs of one process join the first one's folder.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], start_step: int) -> None:
        os.environ.setdefault("TRACKIO_DIR", str((path / "trackio").resolve()))
        trackio = importlib.import_module("trackio")
        self._run = trackio.init(
            project=_PROJECT,
            name=f"{path.resolve().name}-{_stable_id(path)}",
            config=dict(config),
            resume="allow" if start_step else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the numbers of one step; what isn't finite is left out, which trackio would refuse."""
        self._run.log({name: value for name, value in metrics.items() if math.isfinite(value)}, step=step)

    def close(self) -> None:
        """Ends the run and waits for its files."""
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
}


def require_trackers(names: Sequence[str]) -> None:
    """ValueError for an unknown name or a package that isn't installed. It imports and opens nothing."""
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"trackers: unknown tracker {name!r}; known are {', '.join(TRACKERS)}")
        spec = importlib.util.find_spec(name)
        # No origin: a folder of that name (wandb makes one where it runs) that merely looks like the package.
        if spec is None or spec.origin is None:
            raise ValueError(f"trackers: {name!r} needs a package that isn't installed; pip install 'negaware[{name}]'")


def open_trackers(
    names: Sequence[str], run_folder: RunFolder, config: Mapping[str, Any], *, start_step: int = 0
) -> list[Tracker]:
    """The named trackers, opened for this run; `start_step` is the step that a resumed run goes on from.

    ValueError where `require_trackers` raises it, before any tracker is opened.
    """
    require_trackers(names)
    trackers: list[Tracker] = []
    try:
        for name in names:
            trackers.append(TRACKERS[name](run_folder.path, config, start_step))
    except BaseException as error:
        for tracker in trackers:
            tracker.close()
        if isinstance(error, Exception):  # whatever someone else's client may raise
            raise ValueError(
                f"trackers: {name} can't be opened ({reason(error)}); mend that or leave it out of run.trackers, then "
                "start again with --resume."
            ) from error
        raise
    return trackers


def _stable_id(path: Path) -> str:
    """The same for a run and its resumptions, another for another run: from its path and when it was started."""
    identity = str(path.resolve()).encode() + (path / "environment.json").read_bytes()
    return hashlib.sha256(identity).hexdigest()[:12]
