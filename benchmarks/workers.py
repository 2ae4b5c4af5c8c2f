"""The driver's side: a process for each contender, started when first asked, waiting on a pipe between measurements."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
LOG_LINES_SHOWN = 15


class BenchError(Exception):
    """What ends the benchmark, in one sentence for its user."""


class WorkerDiedError(BenchError):
    """A worker ended in the midst of its work."""


@dataclass(frozen=True)
class Contender:
    """How a contender is started: its module in contenders/, its python, its environment and its arguments."""

    module: str
    python: str = sys.executable
    environment: tuple[tuple[str, str], ...] = ()
    arguments: str = "{}"


@dataclass
class Worker:
    """A contender's running process."""

    contender: Contender
    process: subprocess.Popen[bytes]
    answers: Any
    log: Path
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def start(cls, contender: Contender, work_file: Path, log: Path, environment: Mapping[str, str]) -> Worker:
        """Starts the process and waits until it has loaded and warmed up. BenchError if it doesn't come that far."""
        read_end, write_end = os.pipe()
        command = [contender.python, str(WORKER), contender.module, str(work_file), str(write_end), contender.arguments]
        # Every contender takes all cores, by its own default.
        inherited = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(write_end,),
                env={**inherited, **environment, **dict(contender.environment)},
            )
        os.close(write_end)
        worker = cls(contender, process, os.fdopen(read_end, encoding="utf-8"), log)
        try:
            worker.versions = worker._answer()["versions"]
        except BaseException:
            worker.close()
            raise
        return worker

    def ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Its measurement. BenchError if it dies instead."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # the answer that doesn't come says so
            self.process.stdin.write(json.dumps(command).encode() + b"\n")
            self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process: it stops by itself when its commands end, or else is made to."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        for end in (lambda: None, self.process.terminate, self.process.kill):
            end()
            try:
                self.process.wait(timeout=10)
                break
            except subprocess.TimeoutExpired:
                continue
        self.answers.close()

    def terminate(self) -> None:
        """Says at once that it should end, for when nothing more is wanted of it."""
        self.process.terminate()

    def _answer(self) -> dict[str, Any]:
        line = self.answers.readline()
        if not line:
            code = self.process.wait()
            tail = "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES_SHOWN:])
            raise WorkerDiedError(
                f"The worker {self.contender.module} ended with exit code {code}; the end of {self.log}:\n{tail}"
            )
        return json.loads(line)


class Workers:
    """The running workers, at most one for each contender. `with` ends them all, however the block is left."""

    def __init__(self, work_file: Path, logs: Path, environment: Mapping[str, str]) -> None:
        self.work_file, self.logs, self.environment = work_file, logs, environment
        self.running: dict[Contender, Worker] = {}
        self.versions: dict[str, str] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self.running.values():
            worker.terminate()
        for worker in self.running.values():
            worker.close()

    def get(self, contender: Contender) -> Worker:
        """The contender's worker, started if it isn't running."""
        if contender not in self.running:
            log = self.logs / f"{contender.module}-{len(self.versions)}-{len(self.running)}.log"
            worker = Worker.start(contender, self.work_file, log, self.environment)
            self.running[contender] = worker
            self.versions = worker.versions | self.versions
        return self.running[contender]

    def keep_only(self, contenders: set[Contender]) -> None:
        """Ends the others, so that their memory is free."""
        for contender in set(self.running) - contenders:
            self.running.pop(contender).close()
