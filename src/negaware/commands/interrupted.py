"""What Ctrl-C says, and the imports in which it ends the process at once."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""The exit code of a process that Ctrl-C ended."""
HOW_TO_GO_ON = {
    "train": "--resume goes on from the last finished step.",
    "study": "The same command goes on from the last finished step of each run.",
    "compare": "The same command goes on from the last finished step of each run.",
}
"""What to do after an interrupt, of commands that can go on."""


def interrupted(command: str) -> str:
    """What is said when a command was interrupted."""
    return f"\nInterrupted. {HOW_TO_GO_ON.get(command, '')}"


@contextmanager
def imports(options: argparse.Namespace) -> Iterator[None]:
    """A block of imports, in which Ctrl-C ends the process at once.

    A KeyboardInterrupt there may be swallowed by a module's own `except`, and surface as anything.
    """

    def leave(signal_number: int, frame: FrameType | None) -> None:
        os.write(2, f"{interrupted(options.command)}\n".encode())
        os._exit(INTERRUPTED)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
