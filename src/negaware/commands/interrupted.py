"""The message after Ctrl-C, and blocks of imports in which Ctrl-C ends the process at once."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130  # the exit code of a process that Ctrl-C ended
HOW_TO_GO_ON = {
    "train": "--resume goes on from the last finished step.",
    "study": "The same command goes on from the last finished step of each run.",
    "compare": "The same command goes on from the last finished step of each run.",
}
"""Command → how to go on after an interrupt."""


def interrupted(command: str) -> str:
    """The message when a command was interrupted."""
    return f"\nInterrupted. {HOW_TO_GO_ON.get(command, '')}"


@contextmanager
def imports(options: argparse.Namespace) -> Iterator[None]:
    """A block of imports in which Ctrl-C ends the process at once.

    A module might catch a KeyboardInterrupt during its import, and fail later in another way.
    """

    def leave(signal_number: int, frame: FrameType | None) -> None:
        os.write(2, f"{interrupted(options.command)}\n".encode())
        os._exit(INTERRUPTED)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
