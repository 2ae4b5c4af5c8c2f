"""What a worker process does: it gets ready, then makes the calls that it is sent, one at a time."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import pickle
import resource
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

from negaware.safe_path import restore_path

MAX_TEXT = 200  # characters of an error's description


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one call ended: its value, or a timeout, or an error's description."""

    status: Literal["done", "timeout", "error"]
    value: Any = None


def described(error: BaseException) -> str:
    """An exception's kind and text, short."""
    return f"{type(error).__name__}: {error}"[:MAX_TEXT]


def work(calls: Connection, seconds: float, memory_bytes: int, prepare: Callable[[], object] | None) -> None:
    """Runs in the worker until the pool closes: it sends an `Outcome` of its preparation, then one for each message.

    A message is a pickled function, or the arguments of a call of the last function.
    """
    os.setsid()  # so that it can be killed with every process that it has started
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    restore_path()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(os.devnull, "w") as silence:  # parsers print complaints about hostile texts
        os.dup2(silence.fileno(), 1)
        os.dup2(silence.fileno(), 2)
    logging.disable(logging.CRITICAL)
    try:
        if prepare is not None:
            prepare()
    except BaseException as error:
        calls.send(Outcome("error", described(error)))
        return
    _limit_memory(memory_bytes)
    calls.send(Outcome("done"))
    function: Callable[..., Any] | None = None
    while True:
        try:
            message = calls.recv()
        except EOFError:  # the pool has closed
            return
        except Exception as error:  # the message can't be unpickled here
            calls.send(Outcome("error", described(error)))
            continue
        if isinstance(message, bytes):
            function, outcome = _loaded(message)
        else:
            assert function is not None
            outcome = _called(seconds, function, message)
        try:
            calls.send(outcome)
        except Exception as error:  # a value that can't be pickled
            calls.send(Outcome("error", described(error)))


def _loaded(pickled: bytes) -> tuple[Callable[..., Any] | None, Outcome]:
    """The function, whose module is imported here, and how that ended."""
    try:
        return pickle.loads(pickled), Outcome("done")
    except BaseException as error:
        return None, Outcome("error", described(error))


def _called(seconds: float, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Outcome:
    """Makes a call. An alarm ends the worker if the call takes too long and its parent isn't there to kill it.

    The alarm's default action needs no Python, so it ends even a loop in C that holds the interpreter.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 4 * seconds + 1)
    try:
        return Outcome("done", function(*arguments))
    except SystemExit as error:
        return Outcome("error", f"it called sys.exit({error.code!r})"[:MAX_TEXT])
    except BaseException as error:
        return Outcome("error", described(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _limit_memory(memory_bytes: int) -> None:
    """Limits what the process may map beyond what it has mapped already: libraries reserve far more than they use."""
    mapped = 1 << 30
    with suppress(OSError), open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    for kind, soft in ((resource.RLIMIT_AS, mapped + memory_bytes), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _end_with_parent() -> None:
    """Kills this worker, and what it has started, when the process that owns the pool has ended for any reason."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)
