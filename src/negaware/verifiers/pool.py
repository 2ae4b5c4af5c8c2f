"""Worker processes that may be killed: each call has a time and a memory limit, and the pool goes on afterwards.

It knows nothing of answers. A hostile call costs itself and one worker, never the caller or other calls. A worker is no
sandbox: it may do whatever the user who started it may do.
"""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.context
import os
import pickle
import signal
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from typing import Any

from negaware.safe_path import safe_path
from negaware.verifiers.limits import Limits
from negaware.verifiers.worker import Outcome, described, work

# There is one fork server for a process, so whichever pool starts it lets it import the slowest library of all.
_SERVER_IMPORTS = "negaware.verifiers.forked"
_START_SECONDS = 300.0  # a busy machine imports the libraries slowly, and a judge may load much
_STARTING = threading.Lock()  # a start changes the environment and `__main__`, which all threads have in common
_KILLED_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)


class PoolError(ValueError):
    """Workers can't start, so no answer can be judged; the answers themselves may be right or wrong."""


@contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """A short block that Ctrl-C doesn't interrupt: it is handled at the block's end."""
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


class _WorkerProcess(multiprocessing.context.ForkServerProcess):
    """A worker that doesn't run the caller's script.

    multiprocessing runs the script again in each process that it starts. That costs the script's imports, and without
    an `if __name__ == "__main__"` its work too. So `__main__` is an empty module for the moment of the start: another
    thread that pickles something of the script then finds that module. multiprocessing offers no other way.
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


def _start_server() -> None:
    """Starts the fork server and waits until its imports are done; Ctrl-C reaches the caller alone.

    The server itself ignores Ctrl-C, but only after its imports. A worker requested before that would start even if
    the caller had ended by then, and print an error.
    """
    context = _WorkerContext()
    context.set_forkserver_preload([_SERVER_IMPORTS])
    resource_tracker.ensure_running()  # else the server's start would start it, which ends the signal mask
    with _ctrl_c_waits():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with suppress(OSError, EOFError):  # the start of a real worker reports a server that died
        empty = context.Process(target=int)
        empty.start()
        empty.join()


class _Worker:
    """One process, the pipe to it, and its present call. `owner` is the run that it works for."""

    def __init__(self, *arguments: Any) -> None:
        context = _WorkerContext()
        self.pipe, others = context.Pipe()
        self.process = context.Process(target=work, args=(others, *arguments))
        self.process.start()
        others.close()
        self.owner: _Run | None = None
        self.is_ready = False
        self.function = b""
        """The pickled function that it was last sent."""
        self.call: int | None = None
        self.deadline = time.monotonic() + _START_SECONDS

    def message(self) -> Outcome | None:
        """The outcome that it has sent; None if it has ended without one."""
        with suppress(EOFError, OSError):
            if self.pipe.poll():
                outcome: Outcome = self.pipe.recv()
                return outcome
        return None

    def ended(self) -> int | None:
        """The exit code of a process that ends or has ended: minus the signal's number if a signal killed it."""
        self.process.join(1.0)
        code, process_id = self.process.exitcode, self.process.pid
        assert process_id is not None
        with suppress(ProcessLookupError):
            os.kill(process_id, 0)
            return -signal.SIGKILL  # it lives, but the fork server, which would report its end, does not
        return code

    def kill(self) -> None:
        """Ends the process, and every process that it has started and that is still in its process group."""
        process_id = self.process.pid
        assert process_id is not None
        for kill in (os.killpg, os.kill):  # shortly after its start it has no process group yet
            with suppress(OSError):
                kill(process_id, signal.SIGKILL)
        self.process.join()
        self.pipe.close()


class _Run:
    """The calls of one `WorkerPool.run` and their outcomes."""

    def __init__(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> None:
        self.function, self.calls = pickle.dumps(function), calls
        self.waiting = deque(range(len(calls)))
        self.outcomes: list[Outcome | None] = [None] * len(calls)
        self.busy: dict[_Worker, None] = {}
        self.again: set[int] = set()
        """Calls whose worker was once killed from outside."""
        self.num_failed_starts = 0


class WorkerPool:
    """A few killable processes, started when a call needs them.

    `limits` hold for each call. A worker calls `prepare` (picklable by its module's name) before its first call, for
    imports say, outside of that call's time.
    """

    def __init__(self, limits: Limits | None = None, *, prepare: Callable[[], object] | None = None) -> None:
        limits = limits or Limits()
        self.seconds = limits.seconds
        self._num_workers = limits.workers or min(4, os.cpu_count() or 1)
        self._memory_bytes = limits.memory_mb << 20
        self._prepare = prepare
        self._workers: list[_Worker] = []
        self._change = threading.Condition(threading.RLock())
        """Guards `_workers` and their owners; notified when a worker is free."""
        self._num_waiting = 0

    @property
    def started(self) -> bool:
        """Whether worker processes exist."""
        return bool(self._workers)

    def run(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Outcome]:
        """One outcome for each call, in order; `function` must be picklable by its module's name.

        A failing call never raises. PoolError if workers can't be started, or can't load what they need. A call whose
        worker was killed from outside (because memory ran out, say) is made once more.
        """
        run = _Run(function, calls)
        try:
            while run.waiting or run.busy:
                while run.waiting and (worker := self._take(run)):
                    self._send(run, worker)
                self._listen(run)
        finally:
            for worker in [worker for worker in self._workers if worker.owner is run]:  # after an error only
                self._discard(run, worker)
        return [outcome for outcome in run.outcomes if outcome is not None]

    def _take(self, run: _Run) -> _Worker | None:
        """A worker for this run, a new one if need be; None if none is free and the run has others."""
        with self._change:
            while True:
                if run.busy and self._num_waiting:
                    return None  # another run has none at all
                for worker in [worker for worker in self._workers if worker.owner is None]:
                    worker.owner = run
                    if worker.process.is_alive():
                        return worker
                    self._discard(run, worker)  # killed while it was idle
                starting = sum(not worker.is_ready for worker in run.busy)
                if starting < len(run.waiting) and len(self._workers) < self._num_workers:
                    return self._start(run)
                if run.busy:
                    return None
                self._num_waiting += 1
                try:
                    self._change.wait()
                finally:
                    self._num_waiting -= 1

    def _start(self, run: _Run) -> _Worker:
        with _STARTING, safe_path():
            try:
                try:
                    worker = self._new_worker()
                except (OSError, EOFError):  # the fork server was just killed, and multiprocessing hasn't noticed yet
                    time.sleep(0.2)
                    worker = self._new_worker()
            except (OSError, EOFError) as error:
                raise PoolError(f"The processes that judge answers can't be started ({described(error)}).") from error
            worker.owner = run
        return worker

    def _new_worker(self) -> _Worker:
        if not self._workers:
            _start_server()
            atexit.unregister(self.close)
            atexit.register(self.close)
        with _ctrl_c_waits():  # a worker that was started in part would never answer
            worker = _Worker(self.seconds, self._memory_bytes, self._prepare)
            self._workers.append(worker)
        return worker

    def _send(self, run: _Run, worker: _Worker) -> None:
        """Gives a worker the next call; one that isn't ready is waited for first."""
        run.busy[worker] = None
        if not worker.is_ready:
            return
        if not run.waiting:
            self._release(run, worker)
            return
        if worker.function != run.function:  # loading it doesn't count as a call's time
            worker.function, worker.is_ready, worker.deadline = run.function, False, time.monotonic() + _START_SECONDS
            with suppress(OSError):  # as below
                worker.pipe.send(run.function)
            return
        worker.call = run.waiting.popleft()
        worker.deadline = time.monotonic() + self.seconds
        try:
            worker.pipe.send(run.calls[worker.call])
        except OSError:
            pass  # it has just ended: `_listen` will notice
        except Exception as error:  # whatever pickling may raise
            run.outcomes[worker.call] = Outcome("error", described(error))
            self._release(run, worker)

    def _listen(self, run: _Run) -> None:
        """Waits until one of the run's workers sends an outcome, ends, or has used up its time."""
        if not run.busy:
            return
        channels: dict[Any, _Worker] = {worker.pipe: worker for worker in run.busy}
        channels |= {worker.process.sentinel: worker for worker in run.busy}
        patience = min(worker.deadline for worker in run.busy) - time.monotonic()
        for worker in dict.fromkeys(channels[channel] for channel in wait([*channels], max(0.0, patience))):
            message = worker.message()
            if message is None:
                self._handle_end(run, worker)
            elif worker.is_ready:
                assert worker.call is not None
                run.outcomes[worker.call] = message
                self._release(run, worker)
            elif message.status == "error":
                raise PoolError(f"The processes that judge answers can't get ready: {message.value}.")
            else:
                worker.is_ready = True
                self._send(run, worker)
        now = time.monotonic()
        for worker in [worker for worker in run.busy if worker.deadline <= now]:
            if worker.call is None:
                raise PoolError(
                    f"The processes that judge answers were not ready within {_START_SECONDS:.0f} s; what they import "
                    "takes too long."
                )
            run.outcomes[worker.call] = Outcome("timeout")
            self._discard(run, worker)

    def _handle_end(self, run: _Run, worker: _Worker) -> None:
        """Decides what happens to the call of a worker that has ended."""
        code, call = worker.ended(), worker.call
        how = f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name
        self._discard(run, worker)
        if call is None:
            run.num_failed_starts += 1
            if run.num_failed_starts > 1:
                raise PoolError(f"The processes that judge answers end as they start ({how}).")
        elif code == -signal.SIGALRM:
            run.outcomes[call] = Outcome("timeout")
        elif code is not None and -code in _KILLED_FROM_OUTSIDE and call not in run.again:
            run.again.add(call)
            run.waiting.append(call)
        else:
            run.outcomes[call] = Outcome("error", f"the process that judged it ended ({how})")

    def _release(self, run: _Run, worker: _Worker) -> None:
        with self._change:
            run.busy.pop(worker, None)
            worker.call, worker.owner = None, None
            self._change.notify()

    def _discard(self, run: _Run, worker: _Worker) -> None:
        with self._change:
            run.busy.pop(worker, None)
            self._workers.remove(worker)
            worker.kill()
            self._change.notify()

    def close(self) -> None:
        """Ends the workers, and what they have started; a later call starts new ones. Not during a `run`."""
        atexit.unregister(self.close)
        with self._change:
            while self._workers:
                self._workers.pop().kill()
