import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from multiprocessing import forkserver
from pathlib import Path

import pytest
import worker_functions as work

from negaware.verifiers.limits import Limits
from negaware.verifiers.pool import Outcome, WorkerPool


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with closing(WorkerPool(Limits(workers=2, seconds=1.0, memory_mb=256))) as shared:
        yield shared


def test_no_process_starts_before_the_first_call() -> None:
    with closing(WorkerPool(Limits(workers=1))) as fresh:
        assert fresh.run(work.double, []) == []
        assert not fresh.started
        assert fresh.run(work.double, [(2,)])[0].value == 4
        assert fresh.started
    assert not fresh.started


def test_outcomes_keep_the_order_of_the_calls(pool: WorkerPool) -> None:
    outcomes = pool.run(work.double, [(number,) for number in range(200)])
    assert [outcome.value for outcome in outcomes] == list(range(0, 400, 2))


@pytest.mark.parametrize("hang", [work.sleep_forever, work.spin_in_c])
def test_a_hanging_call_is_killed_when_its_time_is_over(pool: WorkerPool, hang: object) -> None:
    """By the pool: the worker's own alarm, which is for a pool that has died, comes seconds later."""
    pool.run(work.double, [(1,)])
    before = list(pool._workers)
    (outcome,) = pool.run(hang, [()])  # type: ignore[arg-type]
    assert outcome.status == "timeout"
    killed = [worker.process.exitcode for worker in before if worker not in pool._workers]
    assert killed == [-signal.SIGKILL]
    assert pool.run(work.double, [(4,)])[0].value == 8


def test_a_slow_call_does_not_hold_up_its_neighbours(tmp_path: Path) -> None:
    """It ends only when they are done."""
    place = tmp_path / "done"
    with closing(WorkerPool(Limits(workers=2, seconds=30.0))) as pool, ThreadPoolExecutor(1) as threads:
        slow = threads.submit(pool.run, work.wait_for, [(str(place),)])
        assert [outcome.value for outcome in pool.run(work.double, [(n,) for n in range(20)])] == list(range(0, 40, 2))
        place.touch()
        assert slow.result() == [Outcome("done", True)]


def test_an_allocation_beyond_the_limit_is_an_error(pool: WorkerPool) -> None:
    assert pool.run(work.allocate, [(64,)])[0].value == 64 << 20
    (outcome,) = pool.run(work.allocate, [(2048,)])
    assert outcome.status == "error"
    assert "MemoryError" in outcome.value
    assert pool.run(work.double, [(1,)])[0].value == 2


def test_an_exception_is_an_error_with_its_name(pool: WorkerPool) -> None:
    (outcome,) = pool.run(work.complain, [()])
    assert outcome.status == "error"
    assert "KeyError" in outcome.value


def test_the_pool_survives_the_death_of_a_worker() -> None:
    with closing(WorkerPool(Limits(workers=1, seconds=5.0))) as pool:
        first = pool.run(work.own_process_id, [()])[0].value
        os.kill(first, signal.SIGKILL)
        time.sleep(0.3)
        second = pool.run(work.own_process_id, [()])[0].value
        assert second != first
        with ThreadPoolExecutor(1) as threads:
            busy = threads.submit(pool.run, work.process_id_after, [(3.0,)])
            time.sleep(0.5)
            os.kill(second, signal.SIGKILL)
            assert busy.result()[0].status == "done"
        assert pool.run(work.double, [(3,)])[0].value == 6


def test_what_a_call_does_to_its_process_is_said_as_it_was(pool: WorkerPool, tmp_path: Path) -> None:
    """And costs no other call: `double` is called in between, on every worker."""
    faults = [
        (work.interrupt, (), "KeyboardInterrupt: "),
        (work.leave, (0,), "the process that judged it ended (exit code 0)"),
        (work.leave, (3,), "the process that judged it ended (exit code 3)"),
        (work.crash, (), "the process that judged it ended (SIGSEGV)"),
        (work.be_killed, (str(tmp_path / "twice"), 2), "the process that judged it ended (SIGKILL)"),
    ]
    for function, arguments, said in faults:
        outcomes = pool.run(work.apply, [(function, arguments), (work.double, (4,)), (work.double, (5,))])
        assert outcomes == [Outcome("error", said), Outcome("done", 8), Outcome("done", 10)]


def test_a_call_whose_worker_was_killed_from_outside_is_made_again(pool: WorkerPool, tmp_path: Path) -> None:
    (outcome,) = pool.run(work.be_killed, [(str(tmp_path / "once"), 1)])
    assert outcome == Outcome("done", "call 2")


def test_a_server_that_was_killed_is_started_again(pool: WorkerPool) -> None:
    pool.run(work.double, [(1,)])
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)  # type: ignore[attr-defined]
    assert [outcome.value for outcome in pool.run(work.double, [(number,) for number in range(4)])] == [0, 2, 4, 6]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("then", ["hang", "leave", "return"])
def test_what_a_call_has_started_ends_with_its_worker(then: str, tmp_path: Path) -> None:
    """Killed for its time, gone by itself, or at the pool's end."""
    place = tmp_path / "child"
    with closing(WorkerPool(Limits(workers=1, seconds=1.0))) as pool:
        (outcome,) = pool.run(work.start_child, [(str(place), then)])
        child = int(place.read_text())
        assert outcome.status == {"hang": "timeout", "leave": "error", "return": "done"}[then]
        if then == "return":
            assert _is_running(child)
    assert not _runs_on(child)


def test_workers_are_silent(pool: WorkerPool, capfd: pytest.CaptureFixture[str]) -> None:
    assert pool.run(work.say_and_return, [("line 1:0 token recognition error",)])[0].status == "done"
    assert capfd.readouterr() == ("", "")


def _is_running(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _runs_on(process_id: int) -> bool:
    """Whether it still runs when it should have ended: killing takes a moment."""
    deadline = time.monotonic() + 5
    while _is_running(process_id) and time.monotonic() < deadline:
        time.sleep(0.02)
    return _is_running(process_id)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


_PARENT = """
import sys, time
sys.path.insert(0, {folder!r})
import worker_functions as work
from negaware.verifiers.limits import Limits
from negaware.verifiers.pool import Outcome, WorkerPool
if __name__ == "__main__":
    pool = WorkerPool(Limits(workers=1, seconds=60))
    pool.run(work.start_child, [({child!r}, "return")])
    print(pool.run(work.own_process_id, [()])[0].value, flush=True)
    try:
        pool.run(work.sleep_forever, [()])
    except KeyboardInterrupt:
        pool.close()
        print("closed", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_workers_end_with_their_parent_and_leave_nothing(
    how: signal.Signals, tmp_path: Path, short_folder: Path
) -> None:
    script, child = tmp_path / "parent.py", tmp_path / "child"
    temporary = short_folder  # a socket's whole path may have 108 characters
    script.write_text(_PARENT.format(folder=str(Path(__file__).parent), child=str(child)))
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, as a terminal's Ctrl-C reaches it
        env=os.environ | {"TMPDIR": str(temporary)},
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    assert _is_running(worker)
    time.sleep(0.5)
    if how == signal.SIGKILL:
        os.kill(parent.pid, how)
    else:
        os.killpg(parent.pid, how)
    out, err = parent.communicate(timeout=10)
    if how == signal.SIGINT:
        assert (out, err) == ("closed\n", "")
    assert not _runs_on(worker)
    assert not _runs_on(int(child.read_text()))
    assert list(temporary.iterdir()) == []


UNGUARDED = """
from negaware.verifiers.math import MathVerifier
print("once")
with MathVerifier() as verifier:
    print(verifier.grade_pairs(["\\\\sqrt{8}"], ["2\\\\sqrt{2}"])[0].correct)
"""


def test_a_script_without_a_main_guard_is_not_run_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "once\nTrue\n"


CTRL_C_WHILE_WORKERS_START = """
import os, signal, threading, time
from negaware.verifiers.math import MathVerifier
def press():
    time.sleep({seconds})
    os.killpg(0, signal.SIGINT)
threading.Thread(target=press).start()
with MathVerifier() as verifier:
    try:
        verifier.grade_pairs(["\\\\sqrt{{8}}"], ["2\\\\sqrt{{2}}"])
        time.sleep(60)
    except KeyboardInterrupt:
        print("broken off")
    print(verifier.grade_pairs(["\\\\sqrt{{8}}"], ["2\\\\sqrt{{2}}"])[0].correct)
"""


@pytest.mark.parametrize("seconds", [0.05, 0.3, 0.6])
def test_ctrl_c_while_workers_start(seconds: float) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CTRL_C_WHILE_WORKERS_START.format(seconds=seconds)],
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )
    assert (done.stdout, done.stderr) == ("broken off\nTrue\n", "")
