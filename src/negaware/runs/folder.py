"""The folder of a run: config, environment, metrics, sampled answers, summary, as plain dicts and numbers.

It doesn't know what a metric means or what a checkpoint holds. A file that is replaced is written aside and swapped in,
so after a kill or with a full disk the previous content is still there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from negaware.files import append, aside_of, explained_full_disk, read_json_lines, replace_file
from negaware.runs.environment import describe_environment
from negaware.validation import read_yaml

_CONFIG, _ENVIRONMENT = "config.yaml", "environment.json"
# What `force` may delete: only names that this project writes.
_CONTENT = (
    *("metrics.jsonl", "summary.json", "report.html"),
    *("answers", "evaluations", "checkpoints", "model", "tensorboard", "wandb", "trackio"),
)


class RunFolder:
    """One run's files. Make it with `create` (a new run) or `open` (to resume or to read)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics_path = path / "metrics.jsonl"
        self._started, self._processor_started = time.monotonic(), _processor_seconds()
        self._held: int | None = None
        self._logged: list[dict[str, Any]] = []

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        config: Mapping[str, Any],
        environment: Mapping[str, Any] | None = None,
        *,
        force: bool = False,
    ) -> RunFolder:
        """Makes the folder of a new run at `path`, with its resolved config (plain values) and environment.

        `environment` adds facts to `describe_environment()`. `force` deletes a run that is already there.
        ValueError if `path` isn't free.
        """
        path = Path(path)
        if cls.require_free(path, force=force):
            for content in (path / name for name in _CONTENT):
                if content.is_dir() and not content.is_symlink():
                    shutil.rmtree(content)
                else:
                    content.unlink(missing_ok=True)
        with explained_full_disk(path):
            path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        facts = describe_environment() | dict(environment or {})
        replace_file(path / _ENVIRONMENT, _to_json(facts, indent=2) + "\n")
        run.write_config(config)
        replace_file(run.metrics_path, "")
        return run

    @staticmethod
    def is_empty(path: Path) -> bool:
        """Whether nothing is at `path`, or only files of a run that was killed while its folder was made."""
        torn = {_ENVIRONMENT, *(aside_of(path / name).name for name in (_ENVIRONMENT, _CONFIG))}
        return not path.is_dir() or {each.name for each in path.iterdir()} <= torn

    @staticmethod
    def require_free(path: Path, *, force: bool = False) -> bool:
        """Whether there is a run to delete first. ValueError if `create` would raise it. Nothing is changed."""
        if path.exists() and not path.is_dir():
            raise ValueError(f"run folder {path} is a file; choose another path")
        if RunFolder.is_empty(path):
            return False
        if not _is_run(path):
            raise ValueError(
                f"{path} is not empty and not a run folder (no {_CONFIG} with {_ENVIRONMENT}), so even --force doesn't "
                f"delete it; choose another path or empty it yourself"
            )
        if not force:
            raise ValueError(
                f"run folder {path} already holds a run; --resume goes on with it, --force deletes it first"
            )
        return True

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training in this folder, which is made if needed. ValueError if one does."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"run.folder {self.path} can't be made ({error.strerror or error}); choose another path"
            ) from error
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"another process is training in {self.path}; wait until it ends, or choose another run.folder"
                ) from None
            self._held = descriptor
            yield
        finally:
            self._held = None
            os.close(descriptor)

    def require_in_place(self) -> None:
        """ValueError if the folder was moved or deleted since it was locked: a new one would lack what came before."""
        if self._held is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._held), os.stat(self.path)):
                return
        now = ""
        with contextlib.suppress(OSError):  # not every system has /proc
            now = f" (it is now {os.readlink(f'/proc/self/fd/{self._held}')})"
        raise ValueError(
            f"the run folder {self.path} was moved or deleted while the run went on{now}, so nothing more is written; "
            "move it back, then go on with --resume from its last checkpoint"
        )

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """The run at `path`. ValueError where that isn't a run folder."""
        path = Path(path)
        if not _is_run(path):
            found = "has neither or only one of them" if path.is_dir() else "is not a folder"
            raise ValueError(f"{path} is not a run folder: expected {_CONFIG} and {_ENVIRONMENT} in it, but it {found}")
        return cls(path)

    @property
    def seconds(self) -> float:
        """Seconds since the run started, without the time between a kill and the resumption."""
        return time.monotonic() - self._started

    @property
    def processor_seconds(self) -> float:
        """CPU seconds of the run, without that time too: of this process and of its workers that have ended."""
        return _processor_seconds() - self._processor_started

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one line of metrics, with the step and both kinds of seconds, and makes it durable."""
        self.require_in_place()
        times = {"seconds": round(self.seconds, 3), "processor_seconds": round(self.processor_seconds, 3)}
        record = _finite({"step": step, **times, **metrics})
        append(self.metrics_path, f"{_to_json(record)}\n".encode())
        self._logged.append(record)

    @property
    def logged(self) -> list[dict[str, Any]]:
        """The lines of metrics since the run began, even if their file was damaged: for a checkpoint."""
        return [*self._logged]

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes the resolved config (plain values)."""
        self._replace(self.path / _CONFIG, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))

    def write_answers(self, step: int, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes the sampled answers of one step, one JSON object a line."""
        self._replace(self._answers_path(step), "".join(_to_json(record) + "\n" for record in records))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes the figures of the finished run."""
        self._replace(self.path / "summary.json", _to_json(summary, indent=2) + "\n")

    def go_back(self, step: int, logged: Sequence[dict[str, Any]] | None = None) -> None:
        """Deletes what was written after `step`, and a torn last line, so that a resumed run can write it again.

        `logged` are the metrics up to that step, from a checkpoint; None: those in the file.
        """
        self._logged = [one for one in (self.read_metrics() if logged is None else logged) if one["step"] <= step]
        self._replace(self.metrics_path, "".join(_to_json(record) + "\n" for record in self._logged))
        for later in self.answer_steps():
            if later > step:
                self._answers_path(later).unlink()
        for name in (_CONFIG, _ENVIRONMENT, "metrics.jsonl", "summary.json", "report.html"):
            aside_of(self.path / name).unlink(missing_ok=True)
        for partial in self.path.glob("answers/.*.partial"):
            if re.match(r"\.[0-9]{6,}\.jsonl\.p", partial.name):
                partial.unlink(missing_ok=True)
        last = self._logged[-1] if self._logged else {}
        self._started = time.monotonic() - last.get("seconds", 0.0)
        self._processor_started = _processor_seconds() - last.get("processor_seconds", 0.0)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The logged lines in order, without a torn last line; a value that wasn't finite is None."""
        return read_json_lines(self.metrics_path)[0]

    def answer_steps(self) -> list[int]:
        """The steps with kept answers, in order."""
        paths = [path for path in self.path.glob("answers/*.jsonl") if re.fullmatch("[0-9]{6,}", path.stem)]
        return sorted(int(path.stem) for path in paths if path == self._answers_path(int(path.stem)))

    def read_answers(self, step: int) -> list[dict[str, Any]]:
        """The kept answers of one step; [] if there are none."""
        return read_json_lines(self._answers_path(step))[0]

    def read_config(self) -> dict[str, Any]:
        """The resolved config as it was written. ValueError if the file was damaged."""
        path = self.path / _CONFIG
        advice = "correct it by hand, or copy the config that the run was started with over it"
        try:
            config = read_yaml(path.read_text(encoding="utf-8")) or {}
        except ValueError as error:
            raise ValueError(f"{path} can't be read ({error}); {advice}") from error
        if not isinstance(config, dict):
            raise ValueError(f"{path} holds no fields; {advice}")
        return config

    def read_environment(self) -> dict[str, Any]:
        """The environment in which the run was started. ValueError if the file was damaged."""
        return _read_json(self.path / _ENVIRONMENT, "correct it, or write {} into it: no computation needs it")

    def read_summary(self) -> dict[str, Any] | None:
        """The figures of the finished run; None if it isn't finished. ValueError if the file was damaged."""
        path = self.path / "summary.json"
        return _read_json(path, "delete it: train --resume writes it again") if path.exists() else None

    def _answers_path(self, step: int) -> Path:
        return self.path / "answers" / f"{step:06d}.jsonl"

    def _replace(self, path: Path, text: str) -> None:
        self.require_in_place()
        replace_file(path, text)


def _processor_seconds() -> float:
    return sum(os.times()[:4])


def _read_json(path: Path, advice: str) -> dict[str, Any]:
    """The object in a JSON file. ValueError with this advice if the file was damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); {advice}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object; {advice}")
    return content


def _is_run(path: Path) -> bool:
    return (path / _CONFIG).is_file() and (path / _ENVIRONMENT).is_file()


def _to_json(value: Any, *, indent: int | None = None) -> str:
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    """The value with None for NaN and infinities, which JSON doesn't have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
