"""`python -m negaware train` as a shell starts it: signals to the whole process group, workers and all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tiny_run import write_tiny_config


def start(config: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "negaware", "train", str(config), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def members(group: int) -> list[str]:
    """The command lines of a process group's living processes."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = status.read_text().rpartition(")")[2].split()[:3]
            if int(process_group) == group and state != "Z":
                found.append(status.with_name("cmdline").read_text().replace("\0", " ").strip())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def assert_all_gone(group: int) -> None:
    deadline = time.monotonic() + 60
    while left := members(group):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A long run whose answers need the verifier's workers, as `+` has a value for symbolic algebra alone.

    It learns too slowly to end by itself, all right or all wrong.
    """
    changes = {"run__steps": 100_000, "run__checkpoint_every": 100_000, "training__learning_rate": 1e-9}
    config = write_tiny_config(tmp_path, **changes)
    config.write_text(config.read_text().replace("- last_number", "- bare"))
    return config


def test_ctrl_c_in_a_terminal(config: Path, tmp_path: Path) -> None:
    """It reaches every process of the group; one line is said, a checkpoint written, nobody left behind."""
    process = start(config)
    wait_for(tmp_path / "run/answers/000002.jsonl", process)
    assert any("forkserver" in command for command in members(process.pid))
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert err == "\nInterrupted. --resume goes on from the last finished step.\n"
    last = [line.split("/")[0].removeprefix("step ") for line in out.splitlines() if line.startswith("step ")][-1]
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == [f"step-{int(last):06d}"]
    assert_all_gone(process.pid)


@pytest.mark.slow
def test_kill_leaves_no_worker_behind(config: Path, tmp_path: Path) -> None:
    process = start(config)
    wait_for(tmp_path / "run/answers/000002.jsonl", process)
    assert len(members(process.pid)) > 1
    process.kill()
    process.communicate(timeout=300)
    assert_all_gone(process.pid)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.05, 0.1, 0.15, 0.2, 0.5, 1.0, 2.0, 4.0])
def test_ctrl_c_while_it_starts(config: Path, seconds: float) -> None:
    """In the midst of imports and loading too: no traceback."""
    process = start(config)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=300)
    sentence = "\nInterrupted. --resume goes on from the last finished step.\n"
    if process.returncode == -signal.SIGINT:  # Python itself, which says what it likes, or our first lines
        assert "/negaware/cli.py" not in err
    elif process.returncode == 1:  # Python's own start, before it knows where its modules are
        assert "/negaware/" not in err
    else:
        assert (process.returncode, err) == (130, sentence)
    assert_all_gone(process.pid)
