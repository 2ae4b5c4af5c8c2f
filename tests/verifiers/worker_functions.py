"""What the tests have workers do: module-level, so that a worker can import them by name."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from negaware.types import Problem


def double(number: int) -> int:
    return 2 * number


def own_process_id() -> int:
    return os.getpid()


def process_id_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def sleep_forever() -> None:
    time.sleep(600)


def wait_for(place: str) -> bool:
    while not Path(place).exists():
        time.sleep(0.01)
    return True


def spin_in_c() -> int:
    return 9 ** (9**9)  # no bytecode is run, so no signal handler would be


def allocate(megabytes: int) -> int:
    return len(bytearray(megabytes << 20))


def complain() -> None:
    raise KeyError("no such thing")


def say_and_return(text: str) -> str:
    print(text, flush=True)
    return text


def apply(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return function(*arguments)


def interrupt() -> None:
    raise KeyboardInterrupt


def leave(code: int) -> None:
    os._exit(code)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def be_killed(place: str, times: int) -> str:
    """The first so many times that it is called; how often that was is kept in a file."""
    with open(place, "a") as file:
        file.write("x")
    called = Path(place).stat().st_size
    if called <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"call {called}"


def start_child(place: str, then: str) -> None:
    """A program that outlives the call; its number is written to a file."""
    Path(place).write_text(str(subprocess.Popen(["sleep", "600"]).pid))
    if then == "hang":
        sleep_forever()
    if then == "leave":
        os._exit(0)


def contains_gold(text: str, problem: Problem) -> bool:
    return problem.answer in text


def misbehave(text: str, problem: Problem) -> Any:
    if text == "raise":
        raise ValueError("bad text")
    if text == "hang":
        sleep_forever()
    if text == "exit":
        sys.exit(3)
    return "yes" if text == "string" else True
