"""Runs `negaware …` in processes of their own, with real signals at chosen moments.

One server process imports torch and negaware once; each command is a fork of it, so that a test costs a second and not
the six of a fresh import. This file is both ends: the tests' `negaware()`, and the server when run as a program.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PRELOADED = ("negaware.cli", "negaware.train", "negaware.verifiers.grade", "tiny_run", "plotly.offline")


@dataclass(frozen=True)
class Fault:
    """The process sends itself `signal` when `place` ("module:function" or "module:Class.method") is called for the
    `call`-th time."""

    signal: str
    place: str
    call: int = 1


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (minus the signal's number if one killed it), and what it printed."""

    code: int
    out: str
    err: str


def negaware(*arguments: object, faults: Sequence[Fault] = (), cwd: Path | None = None) -> Ended:
    """Runs `negaware` with these arguments."""
    server = _server()
    assert server.stdin
    assert server.stdout
    with tempfile.TemporaryDirectory() as folder:
        request = {
            "arguments": [str(argument) for argument in arguments],
            "faults": [asdict(fault) for fault in faults],
            "cwd": str(cwd or folder),
            "streams": folder,
        }
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return Ended(code, Path(folder, "out").read_text(), Path(folder, "err").read_text())


@functools.cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200"},
    )
    atexit.register(server.communicate)  # closes its standard input, which ends it
    return server


def _serve() -> None:
    for module in PRELOADED:
        importlib.import_module(module)
    gc.freeze()  # a fork's collections, at its exit above all, would copy every page of what was imported: 1 s each
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            _become_command(**json.loads(line))
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become_command(arguments: list[str], faults: list[dict[str, Any]], cwd: str, streams: str) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(os.path.join(streams, name), os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    for fault in faults:
        _install(Fault(**fault))
    sys.argv = ["negaware", *arguments]
    sys.exit(importlib.import_module("negaware.cli").main(arguments))


def _install(fault: Fault) -> None:
    module, _, path = fault.place.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original: Callable[..., Any] = getattr(owner, name)
    num_calls = 0

    @functools.wraps(original)
    def signalling(*arguments: Any, **options: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == fault.call:
            os.kill(os.getpid(), signal.Signals[fault.signal])
        return original(*arguments, **options)

    setattr(owner, name, signalling)


if __name__ == "__main__":
    _serve()
