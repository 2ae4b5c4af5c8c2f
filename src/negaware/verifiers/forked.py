"""Imported by the fork server alone, before it forks the first worker: the slowest library, and its own clean-up.

The server outlives the signals that may end its parent, and removes the folder of the socket that it listens on.
multiprocessing leaves that to the parent's exit, which a signal or `os._exit` skips. The server ends when the last
process that could ask it for a worker has ended.
"""

import atexit
import os
import signal
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path

import negaware.verifiers.symbolic
import negaware.verifiers.worker  # noqa: F401

_SERVER = os.getpid()


def _remove_socket() -> None:
    address = getattr(forkserver._forkserver, "_forkserver_address", None)
    if os.getpid() == _SERVER and isinstance(address, str) and address.startswith("/"):
        with suppress(OSError):  # already removed, or the folder holds another's files
            os.unlink(address)
        with suppress(OSError):
            Path(address).parent.rmdir()


for _number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal, or a scheduler, sends them to every process
    signal.signal(_number, signal.SIG_IGN)
atexit.register(_remove_socket)
