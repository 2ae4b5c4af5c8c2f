"""The progress of a run: a live display on a terminal, elsewhere one plain line a step. It only counts and prints."""

from __future__ import annotations

import errno
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text


class Display:
    """Prints lines and, on a terminal, a live display below them while the `with` block lasts."""

    def __init__(self, console: Console | None = None, *, silent: bool = False) -> None:
        """`silent` prints nothing."""
        # FORCE_COLOR would make rich take a pipe for a terminal, so the stream is asked.
        self._console = console or Console(force_interactive=None if sys.stdout.isatty() and not silent else False)
        self._silent, self._on_terminal = silent, self._console.file.isatty()
        self._live: Live | None = None

    def _new_live(self) -> Live:
        raise NotImplementedError

    def __enter__(self) -> Self:
        if self._console.is_interactive:
            self._live = self._new_live()
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, text: str) -> None:
        """Prints a line, above the live display if there is one."""
        if self._live is None:
            self._print(text)
        else:
            with self._terminal_may_close():
                self._console.print(Text(text))

    def _print(self, line: str) -> None:
        # Without rich's console, which would wrap the line at 80 columns.
        if not self._silent:
            with self._terminal_may_close():
                print(line, file=self._console.file, flush=True)

    @contextmanager
    def _terminal_may_close(self) -> Iterator[None]:
        """A block in which a write may fail because the terminal was closed: that can precede its SIGHUP."""
        try:
            yield
        except OSError as error:
            if not (self._on_terminal and error.errno == errno.EIO):
                raise


class Progress(Display):
    """Progress of a run: `with Progress(num_steps) as progress`, then `phase`, `advance` and `step_done`."""

    def __init__(
        self, num_steps: int, console: Console | None = None, *, start_step: int = 0, silent: bool = False
    ) -> None:
        """`start_step`: the last step finished before this process (0: a new run). `silent`: print nothing."""
        super().__init__(console, silent=silent)
        self._num_steps, self._start_step, self._step = num_steps, start_step, start_step
        self._metrics: dict[str, float] = {}
        self._first_step_began: float | None = None
        self._step_ended = time.monotonic()
        self.phase("starting")

    def _new_live(self) -> Live:
        return Live(get_renderable=self._render, console=self._console, refresh_per_second=4)

    def phase(self, name: str, *, announce: bool = False) -> None:
        """Sets the phase that begins now ("sampling", "training" …).

        `announce` prints a line for it where output isn't a terminal: for long phases outside the steps.
        """
        self._phase, self._items_done, self._tokens, self._phase_began = name, 0, 0, time.monotonic()
        if announce and self._live is None:
            self._print(name)

    def advance(self, tokens: int = 0, items: int = 1) -> None:
        """Adds tokens and items to those that this phase has done."""
        self._tokens += tokens
        self._items_done += items

    def step_done(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows the metrics of a finished step; step 0 is the evaluation before training."""
        now = time.monotonic()
        if step > self._start_step and self._first_step_began is None:
            self._first_step_began = now - metrics.get("time/step", now - self._step_ended)
        self._step, self._step_ended = step, now
        self._metrics.update(metrics)
        if self._live is None:
            left = self._time_left() if step < self._num_steps else None
            self._print("  ".join([f"step {step}/{self._num_steps}", *_figures(metrics), *([left] if left else [])]))

    def _time_left(self) -> str | None:
        """Estimated by the steps of this process alone: earlier ones may have run on another machine."""
        if self._first_step_began is None:
            return None
        seconds_per_step = (self._step_ended - self._first_step_began) / (self._step - self._start_step)
        seconds = seconds_per_step * (self._num_steps - self._step) - (time.monotonic() - self._step_ended)
        return f"{format_seconds(max(0.0, seconds))} left"

    def _render(self) -> Table:
        seconds = time.monotonic() - self._phase_began
        speed = f"{self._tokens / seconds:,.0f} tokens/s" if self._tokens and seconds > 0 else ""
        bars = Table.grid(padding=(0, 2))
        bars.add_row(
            f"[bold]step {self._step}/{self._num_steps}",
            ProgressBar(total=max(1, self._num_steps), completed=self._step, width=30),
            f"{self._step / max(1, self._num_steps):.0%}",
            self._time_left() or "",
        )
        items = f"{self._items_done:,}" if self._items_done else ""
        bars.add_row(Text(self._phase), ProgressBar(width=30, pulse=True), items, speed)
        display = Table.grid()
        display.add_row(bars)
        display.add_row(Text("  ".join(_figures(self._metrics)), style="cyan"))
        return display


def format_seconds(seconds: float) -> str:
    """3725 → "1:02:05", 125 → "2:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _figures(metrics: Mapping[str, float]) -> list[str]:
    """A step's most important metrics, as text; without those that are missing or not finite."""

    def shown(key: str, form: str) -> list[str]:
        value = metrics.get(key)
        return [form.format(value)] if value is not None and math.isfinite(value) else []

    held_out = shown("evaluation/accuracy", "held-out {:.1%}")
    interval = [text for key in ("low", "high") for text in shown(f"evaluation/accuracy_{key}", "{:.1%}")]
    if held_out and len(interval) == 2:
        held_out = [f"{held_out[0]} [{', '.join(interval)}]"]
    return [
        *shown("rollout/pass_rate", "pass rate {:.1%}"),
        *held_out,
        *shown("train/loss", "loss {:.4f}"),
        *shown("rollout/tokens_per_second", "{:,.0f} tokens/s"),
        *shown("time/step", "{:.1f} s"),
    ]
