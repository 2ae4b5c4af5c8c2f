from __future__ import annotations

import io
import math
import os
import pty
import re
import subprocess
import sys

import pytest
from rich.console import Console
from rich.live import Live

from negaware.runs import progress as module
from negaware.runs.progress import Progress, format_seconds

METRICS = {
    "rollout/pass_rate": 0.4375,
    "evaluation/accuracy": 0.612,
    "evaluation/accuracy_low": 0.57,
    "evaluation/accuracy_high": 0.653,
    "train/loss": 0.1234,
    "rollout/tokens_per_second": 1234.5,
    "time/step": 8.0,
}


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def plain() -> Console:
    return Console(file=io.StringIO(), width=40)


def test_one_plain_line_a_step_where_output_is_no_terminal(clock):
    console = plain()
    with Progress(10, console) as progress:
        progress.phase("evaluating before training", announce=True)
        progress.advance(tokens=1000)
        progress.step_done(0, {"evaluation/accuracy": 0.31})
        progress.phase("sampling")
        clock(8)
        progress.step_done(1, METRICS)
        clock(16)
        progress.step_done(2, {"rollout/pass_rate": math.nan, "train/loss": 0.1})
        progress.note("stopping after this step")
    assert console.file.getvalue().splitlines() == [
        "evaluating before training",
        "step 0/10  held-out 31.0%",
        "step 1/10  pass rate 43.8%  held-out 61.2% [57.0%, 65.3%]  loss 0.1234  1,234 tokens/s  8.0 s  1:12 left",
        "step 2/10  loss 0.1000  1:36 left",
        "stopping after this step",
    ]


def test_time_left_counts_the_steps_of_this_process_alone(clock):
    console = plain()
    with Progress(100, console, start_step=40) as progress:
        clock(60)  # loading the model and the checkpoint is no step
        progress.phase("sampling")
        clock(10)
        progress.step_done(41, {"time/step": 10.0})
        clock(20)
        progress.step_done(42, {"time/step": 20.0})
    first, second = console.file.getvalue().splitlines()
    assert first.endswith(f"{format_seconds(59 * 10)} left")
    assert second.endswith(f"{format_seconds(58 * 15)} left")


def test_the_last_step_promises_no_time(clock):
    console = plain()
    with Progress(1, console) as progress:
        progress.step_done(1, {"time/step": 3.0})
    assert console.file.getvalue() == "step 1/1  3.0 s\n"


def test_the_live_display_shows_phase_step_time_rates_and_speed(clock):
    console = Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=110, color_system=None)
    with Progress(10, console) as progress:
        clock(8)
        progress.step_done(1, METRICS)
        progress.phase("sampling")
        clock(2)
        progress.advance(tokens=700, items=32)
        progress.note("a note")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    for expected in ("step 1/10", "10%", "1:10 left", "sampling", " 32 ", "350 tokens/s", "pass rate 43.8%"):
        assert expected in shown
    assert "held-out 61.2% [57.0%, 65.3%]" in shown
    assert "a note" in shown


CHILD = (
    "from negaware.runs.progress import Progress\n"
    "with Progress(3) as progress:\n"
    "    progress.phase('sampling')\n"
    "    progress.step_done(1, {'rollout/pass_rate': 0.5})\n"
)


def test_a_pipe_gets_plain_lines_even_when_colour_is_forced():
    environment = os.environ | {"FORCE_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert re.fullmatch(r"step 1/3  pass rate 50\.0%  0:00 left\n", done.stdout)


def test_a_real_terminal_gets_the_live_display():
    parent, child = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm-256color"}
    process = subprocess.Popen([sys.executable, "-c", CHILD], env=environment, stdout=child, stderr=child)
    os.close(child)
    output = b""
    while True:
        try:
            chunk = os.read(parent, 4096)
        except OSError:  # how a closed terminal reads
            break
        if not chunk:
            break
        output += chunk
    os.close(parent)
    assert process.wait(timeout=60) == 0
    assert b"\x1b[?25l" in output, "the cursor is hidden while the display lives"
    assert b"\x1b[?25h" in output, "and comes back"
    assert b"sampling" in output


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (125, "2:05"), (3599.7, "1:00:00"), (90061, "25:01:01")]
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize("interactive", [True, False], ids=["live display", "plain lines"])
def test_a_line_for_a_terminal_that_has_just_been_closed_is_lost_and_ends_nothing(interactive):
    """Its SIGHUP, on which a run saves its step, comes a moment later."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        progress = Progress(10, Console(file=terminal, force_terminal=True, force_interactive=interactive))
        if interactive:
            progress._live = Live(console=progress._console, auto_refresh=False)
        os.close(master)
        progress.note("a line")
        progress.phase("training", announce=True)
        progress.step_done(1, METRICS)
        os.dup2(os.open(os.devnull, os.O_WRONLY), slave)  # what is still in its buffer


def test_a_disk_that_fails_is_told():
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "w") as file:
        Progress(10, Console(file=file)).note("a line")
