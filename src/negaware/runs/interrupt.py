"""Ctrl-C: once ends the run at a point from which it can go on, twice ends it at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Within `with interrupt.watch()`, the first Ctrl-C raises KeyboardInterrupt, after a `shield()` if inside one."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce
        self._shielded = False
        self._asked = False

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Handles SIGINT until the block ends."""
        before = signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextmanager
    def shield(self) -> Iterator[None]:
        """A block that one Ctrl-C doesn't break off: it is heard at the block's end."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
        if self._asked:
            raise KeyboardInterrupt

    def _handle(self, signal_number: int, frame: FrameType | None) -> None:
        if self._asked:
            os._exit(130)  # what is on disk is whole: everything is written aside and swapped in
        self._asked = True
        if not self._shielded:
            raise KeyboardInterrupt
        self._announce("Stopping after this step; Ctrl-C again stops at once.")
