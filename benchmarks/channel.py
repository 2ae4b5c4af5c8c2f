"""A worker's side of the conversation with the driver: one JSON command in, one JSON answer out.

Commands come on standard input, answers go to a file descriptor of their own: libraries print to standard output.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

Command = dict[str, Any]
Measurement = dict[str, Any]


class Channel:
    """The two ends of the conversation; reading a command waits without using the processor."""

    def __init__(self, answers_fd: int) -> None:
        self._answers = os.fdopen(answers_fd, "w", encoding="utf-8")

    def receive(self) -> Command | None:
        """The driver's next command; None when it has no more."""
        line = sys.stdin.readline()
        return json.loads(line) if line.strip() else None

    def send(self, measurement: Measurement) -> None:
        """Answers the last command."""
        self._answers.write(json.dumps(measurement) + "\n")
        self._answers.flush()

    def commands(self) -> Iterator[Command]:
        """The driver's commands until its last."""
        while (command := self.receive()) is not None:
            yield command

    def answer_all(self, ready: Measurement, answer: Callable[[Command], Measurement]) -> None:
        """Says that the worker is ready, then answers command after command."""
        self.send(ready)
        for command in self.commands():
            self.send(answer(command))
