"""Ctrl-C, and the signals of schedulers and closed terminals: they stop a run at a point from which it can go on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

ASKS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Ctrl-C, a scheduler's end, a closed terminal, a scheduler's warning (such as SLURM's --signal)."""
_SHOW_CURSOR = b"\x1b[?25h"  # a live display hides the cursor, and this process exits at once


class Interrupt:
    """In `with Interrupt().watch()`, the first signal raises KeyboardInterrupt; inside a `shield`, at the shield's end.

    A second Ctrl-C exits at once. A second of the other signals doesn't: schedulers may send several.

    Processes that work together must stop together. `agree` tells them whether any of them was asked to stop: then each
    stops at the end of a shield, however many signals it gets. SIGTERM, which tells them that another process has died,
    ends them at once.
    """

    def __init__(self, agree: Callable[[bool], bool] | None = None) -> None:
        self._agree = agree
        self.announce: Callable[[str], object] = lambda sentence: None
        """Called with a sentence for the user when a signal has to wait."""
        self._shielded = False
        self._asked = False
        self._heard_ctrl_c = False
        self._terminals: list[int] = []

    @contextmanager
    def watch(self) -> Iterator[Self]:
        """Handles the signals until the block ends. A signal that was ignored, as by nohup, stays ignored.

        SIGINT doesn't: shells ignore it for background processes without being asked to.
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
        """A block that the first signal doesn't interrupt: its KeyboardInterrupt is raised at the block's end."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
        self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """KeyboardInterrupt if a signal has come. Processes that work together must all call this."""
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
                self.announce(
                    f"Stopping after this step, as {name} asks; torchrun waits {seconds} seconds for it "
                    "(TORCH_ELASTIC_SHUTDOWN_TIMEOUT)."
                )
            return
        if signal_number == signal.SIGINT:
            if self._heard_ctrl_c:
                # The files are whole: each is written aside and swapped in.
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
        """Redirects output from closed terminals: an error of print would end the run before its checkpoint."""
        for stream in self._terminals:
            if not os.isatty(stream):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
