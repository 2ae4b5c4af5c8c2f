"""Ctrl-C and SIGTERM: once ends a run at a point from which it can go on, twice ends it at once.

It knows nothing of runs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

_SHOW_CURSOR = b"\x1b[?25h"  # a live display hides it and has no time left to show it again


class Interrupt:
    """Within `with Interrupt().watch() as interrupt`, the first Ctrl-C raises KeyboardInterrupt, the second exits.

    Inside a `shield` the first one waits for the shield's end. Of processes that work together none may leave by
    itself: with `agree`, which says whether one of them was asked, each waits for a shield's end, however often it is
    asked; and SIGTERM, which says that another has died, ends it at once.
    """

    def __init__(self, agree: Callable[[bool], bool] | None = None) -> None:
        self._agree = agree
        self.announce: Callable[[str], object] = lambda sentence: None
        """Says what an interrupt that must wait will do."""
        self._shielded = False
        self._asked = False

    @contextmanager
    def watch(self) -> Iterator[Self]:
        """Handles SIGINT, and SIGTERM as schedulers send it, until the block ends."""
        numbers = (signal.SIGINT,) if self._agree else (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def shield(self) -> Iterator[None]:
        """A block that one Ctrl-C doesn't break off: it is heard at the block's end."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
        self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """Raises KeyboardInterrupt if one was asked for; of processes that work together all come here, or none."""
        if self._agree(self._asked) if self._agree else self._asked:
            raise KeyboardInterrupt

    def _handle(self, signal_number: int, frame: FrameType | None) -> None:
        if self._agree:
            if not self._asked:
                seconds = os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30")
                waits = f"torchrun waits {seconds} seconds (TORCH_ELASTIC_SHUTDOWN_TIMEOUT)"
                self.announce(f"Stopping after this step, for which {waits}.")
            self._asked = True
            return
        if self._asked:
            # What is on disk is whole: everything is written aside and swapped in.
            os.write(2, (_SHOW_CURSOR if os.isatty(2) else b"") + b"\nStopped at once.\n")
            os._exit(130)
        self._asked = True
        if not self._shielded:
            raise KeyboardInterrupt
        self.announce("Stopping after this step; Ctrl-C again stops at once.")
