"""Ctrl-C, and the signals by which a scheduler or a closed terminal asks: they end a run where it can go on from.

It knows nothing of runs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

ASKS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Ctrl-C, a scheduler's end, a closed terminal, a scheduler's warning (SLURM's --signal, say)."""
_SHOW_CURSOR = b"\x1b[?25h"  # a live display hides it and has no time left to show it again


class Interrupt:
    """Within `with Interrupt().watch() as interrupt`, the first signal raises KeyboardInterrupt; a second Ctrl-C exits,
    and no other signal does, which schedulers may send in a row.

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
        self._heard_ctrl_c = False
        self._terminals: list[int] = []

    @contextmanager
    def watch(self) -> Iterator[Self]:
        """Handles the signals until the block ends; one that was to be ignored, by nohup say, stays ignored.

        Shells start what goes to the background with SIGINT ignored, without having been asked: that one is heard.
        """
        self._terminals = [stream for stream in (1, 2) if os.isatty(stream)]
        heard = [
            number
            for number in ASKS
            if (number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN)
            and not (self._agree and number == signal.SIGTERM)
        ]
        before = {number: signal.signal(number, self._handle) for number in heard}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def shield(self) -> Iterator[None]:
        """A block that the first signal doesn't break off: it is heard at the block's end."""
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
        if signal_number == signal.SIGHUP:
            self._leave_closed_terminals()
        was_asked, self._asked = self._asked, True
        name = "Ctrl-C" if signal_number == signal.SIGINT else signal.Signals(signal_number).name
        if self._agree:
            if not was_asked:
                seconds = os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30")
                waits = f"torchrun waits {seconds} seconds (TORCH_ELASTIC_SHUTDOWN_TIMEOUT)"
                self.announce(f"Stopping after this step, as {name} asks, for which {waits}.")
            return
        if signal_number == signal.SIGINT:
            if self._heard_ctrl_c:
                # What is on disk is whole: everything is written aside and swapped in.
                os.write(2, (_SHOW_CURSOR if os.isatty(2) else b"") + b"\nStopped at once.\n")
                os._exit(130)
            self._heard_ctrl_c = True
        if was_asked:
            return
        if not self._shielded:
            raise KeyboardInterrupt
        more = "once more" if self._heard_ctrl_c else f"another {name} changes nothing, Ctrl-C twice"
        self.announce(f"Stopping after this step, as {name} asks; {more} stops at once.")

    def _leave_closed_terminals(self) -> None:
        """Whoever prints to a terminal that is gone gets an error, which would end the run before its checkpoint."""
        for stream in self._terminals:
            if not os.isatty(stream):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
