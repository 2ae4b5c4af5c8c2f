"""Worker processes that may be killed: each call has a wall clock and a memory limit, and the pool goes on.

It knows nothing of answers. Hostile work costs its own call and one worker, never the caller or its neighbours.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.context
import os
import resource
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import ceil
from multiprocessing import forkserver, resource_tracker
from typing import Any, Literal

from pebble import ProcessPool

# The fork server is one a process, so whichever pool starts it makes it import the slowest library there is.
_SERVER_IMPORTS = "negaware.verifiers.symbolic"
_START_SECONDS = 60.0  # a first worker imports its libraries, on a busy machine slowly


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one call ended: its value, or a timeout, or an error's description."""

    status: Literal["done", "timeout", "error"]
    value: Any = None


def _start_worker(memory_bytes: int, prepare: Callable[[], object] | None) -> None:
    """Runs in each new worker before its first call: imports, then limits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(os.devnull, "w") as silence:  # parsers complain of hostile texts on these
        os.dup2(silence.fileno(), 1)
        os.dup2(silence.fileno(), 2)
    logging.disable(logging.CRITICAL)
    if prepare is not None:
        prepare()
    limit = _address_space() + memory_bytes
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_CORE):
        _, hard = resource.getrlimit(kind)
        soft = 0 if kind == resource.RLIMIT_CORE else limit
        resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _end_with_parent() -> None:
    """Kills this worker when the process that owns the pool is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """A block of milliseconds that Ctrl-C doesn't break off: it is handled at the block's end."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    met: list[tuple[int, types.FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda *arguments: met.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if met:
        before(*met[-1])


def _start_server(context: multiprocessing.context.ForkServerContext) -> None:
    """Starts the fork server and waits until its imports are done; Ctrl-C reaches the caller alone.

    The server ignores Ctrl-C by itself, but only after its imports. A worker asked for before that would be born even
    if the caller had gone by then, and complain.
    """
    resource_tracker.ensure_running()  # started by the server's start otherwise, it would lift the mask
    with _ctrl_c_waits():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with suppress(OSError, EOFError):  # a server that died is seen, and told, where a worker is wanted
        harmless = context.Process(target=int)
        harmless.start()
        harmless.join()


def _call(seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs in the worker: the call, with an alarm that ends a worker whose parent isn't there to kill it.

    The alarm's default action needs no Python to run, so it ends even a loop in C that holds the interpreter.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 4 * seconds + 1)
    try:
        return function(*arguments)
    except SystemExit as error:  # which would pass for the end of our own process
        raise RuntimeError(f"it left by sys.exit({error.code!r})") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _address_space() -> int:
    """What this process has mapped already, in bytes: libraries reserve far more than they use."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 1 << 30


class _WorkerProcess(multiprocessing.context.ForkServerProcess):
    """A worker that leaves the caller's script alone.

    multiprocessing runs the script again in each process that it starts, which costs its imports, and without an
    `if __name__ == "__main__"` its work too. Workers need nothing of it. The start is often in a thread of the pool's:
    a thread of the caller's that pickles something of its script, or reads `sys.modules["__main__"]`, in that moment
    finds an empty module; multiprocessing offers no other way to leave the script out.
    """

    @staticmethod
    def _Popen(process: Any) -> Any:  # noqa: N802
        script = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            return multiprocessing.context.ForkServerProcess._Popen(process)
        finally:
            sys.modules["__main__"] = script


class _WorkerContext(multiprocessing.context.ForkServerContext):
    Process = _WorkerProcess


class WorkerPool:
    """A few killable processes, started at the first call.

    `seconds` is the wall clock of one call, `memory_mb` what it may allocate, `prepare` (a
    module-level function) what a worker does before its first call, such as imports, outside of that call's time.
    """

    def __init__(
        self,
        *,
        num_workers: int | None = None,
        seconds: float = 1.3,
        memory_mb: int = 1024,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        self.seconds = seconds
        self._num_workers = num_workers or min(4, os.cpu_count() or 1)
        self._memory_bytes = memory_mb << 20
        self._prepare = prepare
        self._lock = threading.Lock()
        self._pool: ProcessPool | None = None

    @property
    def started(self) -> bool:
        """Whether worker processes exist."""
        return self._pool is not None

    def _running(self) -> ProcessPool:
        with self._lock:
            if self._pool is not None and not self._pool.active:
                self._stop(self._pool)
                self._pool = None
            if self._pool is None:
                # A fork server: forking the trainer's threads is unsafe, and a fresh fork of a server that
                # has imported the libraries replaces a killed worker in milliseconds.
                context = _WorkerContext()
                context.set_forkserver_preload([_SERVER_IMPORTS])
                _start_server(context)
                self._pool = ProcessPool(
                    max_workers=self._num_workers,
                    context=context,
                    initializer=_start_worker,
                    initargs=(self._memory_bytes, self._prepare),
                )
            return self._pool

    def run(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Outcome]:
        """One outcome a call, in order; `function` must be picklable by its module's name. Never raises for one."""
        if not calls:
            return []
        pool = self._running()
        with _ctrl_c_waits():  # the first call starts the pool: half started it would never answer
            futures = [
                pool.schedule(_call, args=[self.seconds, function, *call], timeout=self.seconds) for call in calls
            ]
        # The pool itself keeps each call's time; this only guards against the pool.
        rounds = ceil(len(calls) / self._num_workers)
        deadline = time.monotonic() + _START_SECONDS + 2 * (self.seconds + 1) * rounds
        outcomes = [self._outcome(future, deadline) for future in futures]
        if any(not future.done() for future in futures):
            self.close()
        return outcomes

    @staticmethod
    def _outcome(future: Future[Any], deadline: float) -> Outcome:
        try:
            return Outcome("done", future.result(timeout=max(0.0, deadline - time.monotonic())))
        except TimeoutError:
            return Outcome("timeout")
        except Exception as error:
            return Outcome("error", f"{type(error).__name__}: {error}"[:200])

    @staticmethod
    def _stop(pool: ProcessPool) -> None:
        pool.stop()
        pool.join()

    def close(self) -> None:
        """Ends the workers; a later call starts new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            self._stop(pool)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
