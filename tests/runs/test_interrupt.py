"""Real signals to real processes: what ends a run, when, and what doesn't."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from negaware.runs.interrupt import Interrupt

ON_A_TERMINAL = """
import sys, time
from pathlib import Path
from negaware.runs.interrupt import Interrupt
from negaware.runs.progress import Progress

with Interrupt().watch() as interrupt, Progress(1000) as progress:
    interrupt.announce = progress.note
    try:
        with interrupt.shield():
            Path(sys.argv[1], "ready").touch()
            for step in range(1, 200):
                progress.step_done(step, {"train/loss": 0.5})
                progress.note("a line")
                time.sleep(0.005)
            Path(sys.argv[1], "finished the step").touch()
    except KeyboardInterrupt:
        progress.phase("writing a checkpoint", announce=True)
        Path(sys.argv[1], "checkpoint").touch()
        raise SystemExit(130)
"""


@pytest.mark.parametrize("term", ["xterm", "dumb"], ids=["live display", "plain lines"])
def test_a_closed_terminal_ends_a_run_after_its_step(tmp_path: Path, term: str) -> None:
    """What is printed then meets no terminal any more, which is an error to whoever doesn't expect it."""
    master, slave = pty.openpty()
    command = [sys.executable, "-c", ON_A_TERMINAL, str(tmp_path)]
    streams = {"stdin": slave, "stdout": slave, "stderr": slave}
    as_its_terminal = "import os, sys, fcntl, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    as_its_terminal += "os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", as_its_terminal, *command], **streams, env=os.environ | {"TERM": term}
    )
    os.close(slave)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        os.read(master, 1000)
    os.read(master, 1000)
    os.close(master)
    assert process.wait(60) == 130
    assert (tmp_path / "finished the step").exists()
    assert (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM])
def test_what_is_ignored_at_the_start_stays_ignored(number: signal.Signals) -> None:
    """As nohup has it."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Interrupt().watch() as interrupt:
            os.kill(os.getpid(), number)
            interrupt.stop_if_asked()
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM])
def test_each_signal_is_heard_at_once_or_at_the_shields_end(number: signal.Signals) -> None:
    said: list[str] = []

    def step() -> None:
        os.kill(os.getpid(), number)
        said.append("the step is over")

    with pytest.raises(KeyboardInterrupt), Interrupt().watch():
        step()
    assert said == []
    assert step_of(Interrupt(), step, said)
    again = {
        signal.SIGINT: "Ctrl-C asks; once more stops at once.",
        signal.SIGHUP: "SIGHUP asks; another SIGHUP changes nothing, Ctrl-C twice stops at once.",
        signal.SIGUSR1: "SIGUSR1 asks; another SIGUSR1 changes nothing, Ctrl-C twice stops at once.",
        signal.SIGTERM: "SIGTERM asks; another SIGTERM changes nothing, Ctrl-C twice stops at once.",
    }
    assert said == [f"Stopping after this step, as {again[number]}", "the step is over"]


def step_of(interrupt: Interrupt, step: Callable[[], None], said: list[str]) -> bool:
    """Whether the run was to end after this step, all of which was run."""
    try:
        with interrupt.watch():
            interrupt.announce = said.append
            with interrupt.shield():
                step()
                finished = True
    except KeyboardInterrupt:
        return finished
    return False


def test_what_a_scheduler_sends_again_changes_nothing() -> None:
    order = [signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGHUP, signal.SIGINT]  # the first Ctrl-C

    def step() -> None:
        for number in order:
            os.kill(os.getpid(), number)

    assert step_of(Interrupt(), step, [])


def test_of_ranks_each_waits_for_the_others() -> None:
    """SIGTERM is left to its default: torchrun sends it when another rank has died."""
    asked: list[bool] = []
    before = signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):

        def step(number: int = number) -> None:
            assert signal.getsignal(signal.SIGTERM) == before
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)

        said: list[str] = []
        assert step_of(Interrupt(lambda flag: not asked.append(flag)), step, said)
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        waits = "torchrun waits 30 seconds for it (TORCH_ELASTIC_SHUTDOWN_TIMEOUT)"
        assert said == [f"Stopping after this step, as {name} asks; {waits}."]
    assert asked == [True] * 3
