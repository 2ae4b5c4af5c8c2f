"""Experiment trackers that a run may also log to: TensorBoard, Weights & Biases, trackio.

The run folder's metrics.jsonl is always written. A tracker's package is imported only when that tracker is opened.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from negaware.libraries import reason
from negaware.runs.folder import RunFolder

_PROJECT = "negaware"


class Tracker(Protocol):
    """A place that gets the metrics of each step. It is opened with the run folder, the config and the start step."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the metrics of one step."""
        ...

    def close(self) -> None:
        """Writes what is pending and closes files, threads and connections."""
        ...


class _TensorBoard:
    """Event files in `tensorboard/` of the run folder; written without TensorFlow and without torch."""

    def __init__(self, path: Path, config: Mapping[str, Any], start_step: int) -> None:
        writer = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        self._event = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._summary = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        self._writer = writer.EventFileWriter(str(path / "tensorboard"))
        if start_step:
            # TensorBoard then drops what an earlier process logged after the checkpoint that this one resumes from.
            session = self._event.SessionLog(status=self._event.SessionLog.START)
            self._writer.add_event(self._event.Event(wall_time=time.time(), step=start_step + 1, session_log=session))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        values = [self._summary.Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        summary = self._summary.Summary(value=values)
        self._writer.add_event(self._event.Event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
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
            settings=wandb.Settings(console="off"),  # capturing stdout would disturb the live display
        )
        # The run's step is the axis: wandb's own must grow, but a resumed run logs some steps again.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """A trackio run, in `trackio/` of the run folder, or in TRACKIO_DIR if that is set.

    trackio reads TRACKIO_DIR once in a process: further runs of one process go to the first run's folder.
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
        # trackio refuses values that aren't finite.
        self._run.log({name: value for name, value in metrics.items() if math.isfinite(value)}, step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "trackio": _Trackio,
}


def require_trackers(names: Sequence[str]) -> None:
    """ValueError for an unknown name or a package that isn't installed. Nothing is imported or opened."""
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"trackers: unknown tracker {name!r}; known are {', '.join(TRACKERS)}")
        spec = importlib.util.find_spec(name)
        # Without an origin it is only a folder of that name; wandb makes one where it runs.
        if spec is None or spec.origin is None:
            raise ValueError(f"trackers: {name!r} needs a package that isn't installed; pip install 'negaware[{name}]'")


def open_trackers(
    names: Sequence[str], run_folder: RunFolder, config: Mapping[str, Any], *, start_step: int = 0
) -> list[Tracker]:
    """Opens trackers for a run; `start_step` is the step from which a resumed run goes on.

    ValueError for an unknown tracker or a missing package, before any tracker is opened; or if one can't be opened.
    """
    require_trackers(names)
    trackers: list[Tracker] = []
    with ExitStack() as opened:
        for name in names:
            try:
                trackers.append(TRACKERS[name](run_folder.path, config, start_step))
            except Exception as error:  # a tracker's package may raise anything
                raise ValueError(
                    f"trackers: {name} can't be opened ({reason(error)}); correct that or leave {name} out of "
                    "run.trackers, then start again with --resume."
                ) from error
            opened.callback(trackers[-1].close)
        opened.pop_all()
    return trackers


def _stable_id(path: Path) -> str:
    """An id that a resumed run keeps, from the run's path and environment.json, which has its start time."""
    identity = str(path.resolve()).encode() + (path / "environment.json").read_bytes()
    return hashlib.sha256(identity).hexdigest()[:12]
