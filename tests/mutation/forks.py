"""Runs tests in forks: once without mutations, to learn which test runs which line; then on a mutant each.

A fork is of a process that has imported all but the package and the tests, or of a session that has collected the tests
too and gives one function its mutant's code. Nothing here knows what a mutation is.
"""

from __future__ import annotations

import gc
import json
import os
import select
import shutil
import signal
import sys
import traceback
import types
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "negaware"
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:cov", "--assert=plain")

Times = dict[str, float]


class Outcome(NamedTuple):
    """What became of a mutant ("killed", "timeout", "survived"; "cannot": it couldn't run), and the last test begun."""

    result: str
    by: str


class _FirstPass:
    """Times every test, and tells coverage whose lines it sees."""

    def __init__(self, coverage: Any) -> None:
        self.coverage = coverage
        self.seconds: Times = defaultdict(float)
        self.failed: set[str] = set()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        self.coverage.switch_context(item.nodeid)
        yield
        self.coverage.switch_context(f"{item.nodeid.split('::')[0]}::")  # fixtures: they may serve all of its file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration if report.when == "call" else 0
        if report.failed:
            self.failed.add(report.nodeid)


def first_pass(tests: Sequence[str], folder: Path) -> None:
    """Runs these tests; leaves `folder/first.json`: their times, the tests by file and line, the modules they import.

    Line 0 has all tests of a file, for what runs when it is imported. A test that fails without mutations is left out.
    """
    import coverage

    cover = coverage.Coverage(data_file=None, source=[str(SOURCE)])
    plugin = _FirstPass(cover)
    cover.start()
    pytest.main([*OPTIONS[1:], f"--basetemp={folder / 'tests'}", *tests], [plugin])
    cover.stop()
    data = cover.get_data()
    by_file = defaultdict(set)
    for test in plugin.seconds.keys() - plugin.failed:
        by_file[test.split("::")[0] + "::"].add(test)
    covered: dict[str, dict[int, list[str]]] = {}
    for path in data.measured_files():
        lines = {
            line: sorted(set().union(*(by_file.get(name, {name}) for name in names if name)) - plugin.failed)
            for line, names in data.contexts_by_lineno(path).items()
        }
        lines[0] = sorted(set().union(*lines.values()))
        covered[str(Path(path).relative_to(SOURCE))] = lines
    modules = [
        name
        for name, module in sys.modules.items()
        if not str(getattr(module, "__file__", None) or "").startswith(str(ROOT / "src"))
        and not str(getattr(module, "__file__", None) or "").startswith(str(ROOT / "tests"))
        and not name.startswith("negaware")
    ]
    (folder / "first.json").write_text(
        json.dumps(
            {
                "seconds": plugin.seconds,
                "failed": sorted(plugin.failed),
                "covered": covered,
                "modules": sorted(modules),
            }
        )
    )


def in_a_fork(run: Callable[[], object], log: Path | None) -> int:
    """Starts a fork that calls `run`, what it prints going to `log` if one is given; its process."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.setsid()
        for number in (1, 2) if log else ():
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        code = int(run() or 0)  # type: ignore[call-overload]
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


class _Chosen:
    """Runs these tests only, in this order, and says on a pipe which is about to begin."""

    def __init__(self, tests: Sequence[str], pipe: int) -> None:
        self.place = {test: index for index, test in enumerate(tests)}
        self.pipe = pipe

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        places = [self.place.get(item.nodeid, self.place.get(item.nodeid.split("::")[0])) for item in items]
        numbered = [(place, index) for index, place in enumerate(places) if place is not None]
        items[:] = [items[index] for _, index in sorted(numbered)]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        os.write(self.pipe, f"{nodeid}\n".encode())


class Collected:
    """A session that has collected all tests: each mutant of a function's body is a fork of it."""

    def __init__(self, run_each: Callable[[Callable[..., Outcome]], None], seconds: Times, folder: Path) -> None:
        self.run_each, self.seconds, self.folder = run_each, seconds, folder
        self.pipe = -1

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        os.write(self.pipe, f"{nodeid}\n".encode())

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        gc.freeze()

        def run_one(file: str, function: str, source: str, tests: Sequence[str]) -> Outcome:
            def run(pipe: int) -> int:
                self.pipe = pipe
                swap_code(file, function, source)
                chosen = [items[test] for test in tests if test in items]
                for item, after in zip(chosen, [*chosen[1:], None], strict=True):
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
                    if session.testsfailed:
                        return 1
                return 0

            return watched(run, self.seconds, self.folder / "log")

        self.run_each(run_one)
        return True


def swap_code(file: str, function: str, source: str) -> None:
    """Gives the function in memory the code that it has in `source`. ValueError if it closes over other variables."""
    target: Any = sys.modules[f"negaware.{file.removesuffix('.py').replace('/', '.')}"]
    code = compile(source, file, "exec", dont_inherit=True)
    for name in function.split("."):
        target = vars(target)[name]
        code = next(each for each in code.co_consts if isinstance(each, types.CodeType) and each.co_name == name)
    target = getattr(target, "fget", None) or getattr(target, "__func__", None) or target
    while hasattr(target, "__wrapped__"):
        target = target.__wrapped__
    assert target.__code__.co_name == code.co_name
    target.__code__ = code


def in_order(tests: set[str], seconds: Times, budget: float) -> list[str]:
    """The tests, the cheapest first, up to `budget` seconds."""
    chosen, total = [], 0.0
    for test in sorted(tests, key=lambda test: (seconds[test], test)):
        total += seconds[test]
        if chosen and total > budget:
            break
        chosen.append(test)
    return chosen


def run_imported(sources: dict[str, str], tests: Sequence[str], seconds: Times, folder: Path) -> Outcome:
    """Runs the tests on a copy of the package, also in processes that they start, with these sources of some files."""
    package = folder / "negaware"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(SOURCE, package)
    for file, source in sources.items():
        (package / file).write_text(source)

    def run(pipe: int) -> int:
        sys.path[:0] = [str(folder)]
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        files = list(dict.fromkeys(test.split("::")[0] for test in tests))
        return pytest.main([*OPTIONS, f"--basetemp={folder / 'tests'}", *files], [_Chosen(tests, pipe)])

    return watched(run, seconds, folder / "log")


def watched(run: Callable[[int], int], seconds: Times, log: Path) -> Outcome:
    """What a fork that runs tests comes to; `run` is given a pipe on which it names each test before it begins.

    A test that takes ten times as long as it should, and 20 seconds more, is ended.
    """
    reading, writing = os.pipe()
    process = in_a_fork(lambda: run(writing), log)
    os.close(writing)
    last, limit, late = "collection", 120.0, False
    while select.select([reading], [], [], limit)[0]:
        said = os.read(reading, 1 << 16).decode()
        if not said:
            break
        last = said.split("\n")[-2]
        limit = 20 + 10 * seconds.get(last, 10.0)
    else:
        late = True
        os.kill(process, signal.SIGKILL)
    os.close(reading)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # what the tests left behind
    ends = {0: "survived", pytest.ExitCode.TESTS_FAILED: "killed", pytest.ExitCode.INTERRUPTED: "killed"}
    return Outcome("timeout" if late else "killed" if code < 0 else ends.get(code, "cannot"), last)
