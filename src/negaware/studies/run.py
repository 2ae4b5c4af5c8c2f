"""One run of a study, in a process of its own that ends when the study does.

Where the system can fork, a process begins with all that the study's own has imported: so that one must never have
computed anything. It has no threads but those that libraries keep for sums, idle: a fork makes its own. What a
process says goes to a log, what it gives or why it failed comes back.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from negaware.complaint import sentence_of
from negaware.config import parse_config
from negaware.loop.train import train
from negaware.ranks import ALONE, Ranks
from negaware.runs.folder import RunFolder
from negaware.runs.interrupt import ASKS
from negaware.studies.folder import StudyFolder
from negaware.studies.matrix import Job

_CONTEXT: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def perform(job: Job, study: Path, own: Path, keep: str, ranks: Ranks = ALONE) -> None:
    """Does a run or the rest of it, writes its result, and deletes what isn't to be kept.

    Of a run that has ended and whose model is gone, as with `keep: records`, the result alone is made again.
    """
    folder = StudyFolder(study)
    config = parse_config(dict(job.config), folders=(own, Path()))
    path = study / "runs" / job.name
    if not ranks.from_first(lambda: (path / "summary.json").exists() and not (path / "model").exists()):
        train(config, resume=True, ranks=ranks, judges=own, before=folder.before_path(job))
    if ranks.is_first:
        folder.write_result(job, RunFolder.open(path))
        for name in ("checkpoints", "weights", *(["model"] if keep == "records" else [])):
            shutil.rmtree(path / name, ignore_errors=True)
    ranks.meet()


class Process:
    """A call in a process of its own. Of its arguments and of what it returns all must pickle."""

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.results, sender = _CONTEXT.Pipe(duplex=False)
        """Readable when there is a result, or none can come any more."""
        settings = (sender, function, arguments, log, dict(environment or {}), os.getpid())
        self._process = _CONTEXT.Process(target=_call, args=settings)
        sys.stdout.flush()  # or a fork would say it once more
        sys.stderr.flush()
        with _signals_wait(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* is multi-threaded", DeprecationWarning)  # the idle ones (above)
            self._process.start()
        sender.close()

    def outcome(self) -> Any:
        """What the call returned. ValueError with the reason if it didn't."""
        try:
            is_well, value = self.results.recv()
        except EOFError:
            self._process.join()
            is_well, value = False, _last_words(self._process.exitcode)
        self._process.join()
        self.results.close()
        if not is_well:
            raise ValueError(value)
        return value

    def ask_to_stop(self) -> None:
        """It ends after its step, with a checkpoint."""
        if self._process.is_alive():
            self._process.terminate()

    def join(self) -> None:
        """Waits for its end."""
        self._process.join()


@contextmanager
def _signals_wait() -> Iterator[None]:
    """A block in which a process is started: a signal meets either this one, or the new one with its own handlers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _call(
    sender: Connection,
    function: Callable[..., Any],
    arguments: Sequence[Any],
    log: Path | None,
    environment: Mapping[str, str],
    parent: int,
) -> None:
    for number in ASKS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKS)
    os.environ.update(environment)
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
    if "OMP_NUM_THREADS" in environment:  # of a library that may be loaded already
        import torch

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        sender.send((True, function(*arguments)))
    except KeyboardInterrupt:
        sender.send((False, "it was asked to stop"))
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None:
            traceback.print_exc()
            sentence = f"a fault of the program, {type(error).__name__}: {error}"
        if log is not None:
            print(sentence, file=sys.stderr)
        sender.send((False, sentence))
    if "vllm" in sys.modules:  # it may complain or crash when taken down with the interpreter
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _end_with(parent: int) -> None:
    """Asks this process to stop when its parent has gone."""
    while os.getppid() == parent:
        time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGTERM)


def _last_words(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        why = " (a lack of memory?)" if exit_code == -signal.SIGKILL else ""
        return f"{signal.Signals(-exit_code).name} ended it{why}"
    return f"it ended with exit code {exit_code} and said nothing"
