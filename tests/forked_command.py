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
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

COMMAND = "negaware.__main__:entry"
"""What the shell calls; it takes its arguments from `sys.argv`."""
PRELOADED = (
    *("negaware.cli", "negaware.loop.train", "negaware.verifiers.grade", "negaware.studies.study"),
    *("tiny_run", "plotly.offline", "matplotlib.figure", "matplotlib.backends.backend_pdf"),
)


@dataclass(frozen=True)
class Fault:
    """The process, or one that it forks, sends itself `signal` when `place` ("module:function" or
    "module:Class.method") is called for the `call`-th time; or its parent."""

    signal: str
    place: str
    call: int = 1
    to_parent: bool = False


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (minus the signal's number if one killed it), when, and what it printed."""

    code: int
    second: float
    """By a clock that all share."""
    out: str
    err: str


def negaware(*arguments: object, faults: Sequence[Fault] = (), cwd: Path | None = None) -> Ended:
    """Runs `negaware` with these arguments."""
    return _run(COMMAND, [str(argument) for argument in arguments], [faults], cwd)[0]


def negaware_on_ranks(
    num_ranks: int, *arguments: object, faults: Mapping[int, Sequence[Fault]] | None = None
) -> list[Ended]:
    """Runs `negaware` with these arguments as so many ranks, which have torchrun's environment but no torchrun."""
    texts = [str(argument) for argument in arguments]
    return _run(COMMAND, texts, [(faults or {}).get(rank, ()) for rank in range(num_ranks)])


def on_ranks(num_ranks: int, function: str, *arguments: str) -> None:
    """Calls `function` ("module:function") with these texts on so many ranks, each of which must end without error."""
    ended = _run(function, arguments, [()] * num_ranks)
    assert all(one.code == 0 for one in ended), "\n".join(one.out + one.err for one in ended)


def _run(
    function: str, arguments: Sequence[str], faults: Sequence[Sequence[Fault]], cwd: Path | None = None
) -> list[Ended]:
    """Calls a function of a list of texts in as many processes as there are lists of faults."""
    server = _server()
    assert server.stdin
    assert server.stdout
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        listener.close()
        streams = [Path(folder, str(rank)) for rank in range(len(faults))]
        requests = []
        for rank, own in enumerate(faults):
            streams[rank].mkdir()
            environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(faults), "MASTER_PORT": port}
            requests.append(
                {
                    "function": function,
                    "arguments": list(arguments),
                    "faults": [asdict(fault) for fault in own],
                    "cwd": str(cwd or folder),
                    "streams": str(streams[rank]),
                    "environment": {name: str(value) for name, value in environment.items()} if len(faults) > 1 else {},
                }
            )
        server.stdin.write(json.dumps(requests) + "\n")
        server.stdin.flush()
        ends = json.loads(server.stdout.readline())
        return [
            Ended(code, second, Path(place, "out").read_text(), Path(place, "err").read_text())
            for (code, second), place in zip(ends, streams, strict=True)
        ]


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
        processes = []
        for request in json.loads(line):
            processes.append(os.fork())
            if processes[-1] == 0:
                _become_command(**request)
        ends = {}
        while len(ends) < len(processes):  # as they end, so that none is long a zombie
            process, status = os.wait()
            ends[process] = os.waitstatus_to_exitcode(status), time.monotonic()
        print(json.dumps([ends[process] for process in processes]), flush=True)


def _become_command(
    function: str,
    arguments: list[str],
    faults: list[dict[str, Any]],
    cwd: str,
    streams: str,
    environment: dict[str, str],
) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(os.path.join(streams, name), os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ |= environment | ({"MASTER_ADDR": "127.0.0.1"} if environment else {})
    for fault in faults:
        _install(Fault(**fault))
    sys.argv = ["negaware", *arguments]
    module, _, name = function.partition(":")
    called = getattr(importlib.import_module(module), name)
    sys.exit(called() if function == COMMAND else called(arguments))


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
            os.kill(os.getppid() if fault.to_parent else os.getpid(), signal.Signals[fault.signal])
        return original(*arguments, **options)

    setattr(owner, name, signalling)


if __name__ == "__main__":
    _serve()
