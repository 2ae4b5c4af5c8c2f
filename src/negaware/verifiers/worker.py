"""What a worker process does: it gets ready, then makes the calls that it is sent, one at a time.

Importing this in the fork server, which every worker is a fork of, also prepares that server: see `_tidy_server`.
"""

from __future__ import annotations

import atexit
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
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
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
    """The worker's life: it sends how its preparation ended, then how the loading of a function or a call of it did."""
    os.setsid()  # so that it can be killed with every process that it has started
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    restore_path()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(os.devnull, "w") as silence:  # parsers complain of hostile texts on these
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
        except Exception as error:  # what was sent can't be unpickled here
            calls.send(Outcome("error", described(error)))
            continue
        if isinstance(message, bytes):  # the function of the calls that follow
            function, outcome = _loaded(message)
        else:
            assert function is not None
            outcome = _outcome(seconds, function, message)
        try:
            calls.send(outcome)
        except Exception as error:  # a value that can't be pickled
            calls.send(Outcome("error", described(error)))


def _loaded(pickled: bytes) -> tuple[Callable[..., Any] | None, Outcome]:
    """A function, and whether it could be had: its module is imported here."""
    try:
        return pickle.loads(pickled), Outcome("done")
    except BaseException as error:
        return None, Outcome("error", described(error))


def _outcome(seconds: float, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Outcome:
    """Makes a call, with an alarm that ends a worker whose parent isn't there to kill it.

    The alarm's default action needs no Python to run, so it ends even a loop in C that holds the interpreter.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 4 * seconds + 1)
    try:
        return Outcome("done", function(*arguments))
    except SystemExit as error:
        return Outcome("error", f"it left by sys.exit({error.code!r})"[:MAX_TEXT])
    except BaseException as error:
        return Outcome("error", described(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _limit_memory(memory_bytes: int) -> None:
    limit = _address_space() + memory_bytes
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_CORE):
        _, hard = resource.getrlimit(kind)
        soft = 0 if kind == resource.RLIMIT_CORE else limit
        resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _address_space() -> int:
    """What this process has mapped already, in bytes: libraries reserve far more than they use."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 1 << 30


def _end_with_parent() -> None:
    """Kills this worker, and what it has started, when the process that owns the pool is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)


def _tidy_server() -> None:
    """Lets the fork server outlive what may end its parent, and then remove the folder of the socket it listens on.

    multiprocessing leaves that to the parent's exit, which a signal or `os._exit` skips. The server ends when the last
    process that could ask it for a worker has ended.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal, or a scheduler, sends them to every process
        signal.signal(number, signal.SIG_IGN)
    server = os.getpid()

    def remove_socket() -> None:
        address = getattr(forkserver._forkserver, "_forkserver_address", None)
        if os.getpid() == server and isinstance(address, str) and address.startswith("/"):
            with suppress(OSError):  # gone already, or another's files are in there too
                os.unlink(address)
            with suppress(OSError):
                Path(address).parent.rmdir()

    atexit.register(remove_socket)
