"""One run of a study, in a process that ends when the study's process ends.

On Linux the process is a fork: it begins with everything that the study's process has imported. So the study's process
must not have computed anything, and its only threads are idle ones of numeric libraries, which a fork makes anew. What
the run prints goes to a log; its result, or the reason of its failure, comes back.
"""

from __future__ import annotations

import json
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
from negaware.files import replace_file
from negaware.loop.train import train
from negaware.ranks import ALONE, Ranks
from negaware.runs.folder import RunFolder
from negaware.runs.interrupt import ASKS
from negaware.studies.folder import StudyFolder
from negaware.studies.matrix import Job

_CONTEXT: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def perform(job: Job, study: Path, code_folder: Path, keep: str, ranks: Ranks = ALONE) -> None:
    """Starts or resumes a run, writes its result, and deletes what `keep` doesn't keep.

    If the run is finished and its model was deleted (`keep: records`), only the result is written again.
    """
    folder = StudyFolder(study)
    config = parse_config(dict(job.config), folders=(code_folder, Path()))
    path = study / "runs" / job.name
    if ranks.is_first and not (path / "config.yaml").exists():
        replace_file(folder.begun_path(job.name), json.dumps(dict(job.user_files)))
    if not ranks.from_first(lambda: (path / "summary.json").exists() and not (path / "model").exists()):
        train(config, resume=True, ranks=ranks, judges=code_folder, before=folder.before_path(job))
    if ranks.is_first:
        folder.write_result(job, RunFolder.open(path))
        for name in ("checkpoints", "weights", *(["model"] if keep == "records" else [])):
            shutil.rmtree(path / name, ignore_errors=True)
    ranks.meet()


class Process:
    """Calls a function in a new process. Its arguments and its result must pickle."""

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.results, sender = _CONTEXT.Pipe(duplex=False)
        """Readable when the result is there, or the process has ended without one."""
        settings = (sender, function, arguments, log, dict(environment or {}), os.getpid())
        self._process = _CONTEXT.Process(target=_call, args=settings)
        sys.stdout.flush()  # or the fork would print it again
        sys.stderr.flush()
        with _blocked_signals(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* is multi-threaded", DeprecationWarning)  # idle ones (above)
            self._process.start()
        sender.close()

    def outcome(self) -> Any:
        """What the function returned. ValueError with the reason if it failed."""
        try:
            succeeded, value = self.results.recv()
        except EOFError:
            self._process.join()
            succeeded, value = False, _reason_of_exit(self._process.exitcode)
        self._process.join()
        self.results.close()
        if not succeeded:
            raise ValueError(value)
        return value

    def ask_to_stop(self) -> None:
        """Asks the run to end after its present step, with a checkpoint."""
        if self._process.is_alive():
            self._process.terminate()

    def join(self) -> None:
        """Waits until the process has ended."""
        self._process.join()


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """A block for starting a process: a signal waits until this process, or the new one, has its handlers."""
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
    if "OMP_NUM_THREADS" in environment:  # torch may be loaded already, and has read it
        import torch

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
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
    if "vllm" in sys.modules:  # it may crash when the interpreter ends
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _end_with_parent(parent: int) -> None:
    """Asks this process to stop when its parent has ended."""
    while os.getppid() == parent:
        time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGTERM)


def _reason_of_exit(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        why = " (a lack of memory?)" if exit_code == -signal.SIGKILL else ""
        return f"{signal.Signals(-exit_code).name} ended it{why}"
    return f"it ended with exit code {exit_code} and gave no reason"
