"""Python files that lie where negaware is started are never run, but for the judge that the user names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from negaware.types import Problem
from negaware.verifiers.function import FunctionVerifier
from negaware.verifiers.pool import PoolError

STRANGERS = ("copy", "string", "numbers", "random", "sympy", "math_verify", "latex2sympy2_extended", "numpy", "json")
PYTHONS_OWN = ("negaware", "types", "contextlib")
"""What `python -m` itself would import from there, before a line of negaware."""
PAIR = {"prediction": r"\boxed{\sqrt{8}}", "gold": r"2\sqrt{2}"}  # only a worker can judge it
PROBLEM = Problem("1", "?", "42")


def write_strangers(folder: Path, names: tuple[str, ...]) -> Path:
    """Modules that print, and leave a file behind, when they are run."""
    for name in names:
        (folder / f"{name}.py").write_text(f"print('run')\nopen({str(folder / 'was-run')!r}, 'a').write({name!r})\n")
    (folder / "in.jsonl").write_text(json.dumps(PAIR))
    return folder


COMMANDS = {
    "command": [str(Path(sys.executable).with_name("negaware"))],
    "safe module": [sys.executable, "-P", "-m", "negaware"],
    "module": [sys.executable, "-m", "negaware"],
}


@pytest.mark.parametrize("how", COMMANDS)
def test_no_file_of_the_current_folder_is_run(how: str, tmp_path: Path) -> None:
    write_strangers(tmp_path, STRANGERS + (() if how == "module" else PYTHONS_OWN))
    done = subprocess.run([*COMMANDS[how], "grade", "in.jsonl"], cwd=tmp_path, capture_output=True, text=True)
    assert not (tmp_path / "was-run").exists()
    verdict = {"correct": True, "reason": "correct", "extracted": r"\sqrt{8}"}
    assert [json.loads(line) for line in done.stdout.splitlines()] == [verdict]
    assert (done.returncode, done.stderr) == (0, "1 graded: 1 correct (100.0% correct)\n")


JUDGE = """
import copy, os, subprocess, sys
from my_numbers import LARGEST
import sympy

def is_right(answer, problem):
    import my_words
    return copy.copy(int(answer)) <= LARGEST and my_words.FINE

def has_safe_path(answer, problem):
    return "PYTHONSAFEPATH" in os.environ
"""


def grade(verifier: FunctionVerifier, *texts: str) -> list[tuple[str, str | None]]:
    verdicts = verifier.grade(texts, [PROBLEM] * len(texts))
    verifier.close()
    return [(verdict.reason, verdict.extracted) for verdict in verdicts]


def test_a_judge_may_import_what_lies_beside_it_and_nobody_else_does(tmp_path: Path) -> None:
    """Neither in this process nor in a worker; the judge itself gets the library's `copy`."""
    write_strangers(tmp_path, ("copy", "gmpy2", "flint"))  # two that sympy takes if they can be had
    (tmp_path / "string.py").write_text(JUDGE)
    (tmp_path / "my_numbers.py").write_text("import my_words\nLARGEST = 40\n")
    (tmp_path / "my_words.py").write_text("FINE = True\n")
    path = list(sys.path)
    verifier = FunctionVerifier.named("string:is_right", [tmp_path])
    assert grade(verifier, "40", "41") == [("correct", "40"), ("wrong", "41")]
    assert grade(FunctionVerifier.named("string:has_safe_path", [tmp_path]), "?") == [("wrong", "?")]
    assert not (tmp_path / "was-run").exists()
    assert sys.path == path
    import string

    assert not hasattr(string, "is_right")
    with pytest.raises(ImportError):
        import my_plurals  # noqa: F401
    del sys.modules["my_words"]
    with pytest.raises(ImportError):
        import my_words  # noqa: F401


def test_a_judge_is_looked_for_beside_the_config_then_where_negaware_was_started(tmp_path: Path) -> None:
    config, started = tmp_path / "config", tmp_path / "started"
    for folder, name, limit in ((config, "near", 1), (started, "near", 2), (started, "far", 2)):
        (folder / "rules").mkdir(parents=True, exist_ok=True)
        (folder / "rules" / f"{name}.py").write_text(f"def short(text, problem):\n    return len(text) <= {limit}\n")
    folders = [config, started]
    assert grade(FunctionVerifier.named("rules.near:short", folders), "ab") == [("wrong", "ab")]
    assert grade(FunctionVerifier.named("rules.far:short", folders), "ab") == [("correct", "ab")]
    for name in ("rules.other:short", "json:dumps", "os.path:isfile"):  # a library's module is no judge
        with pytest.raises(ValueError, match=rf"there is no \S+ in {config} or {started}; a judge of your own must be"):
            FunctionVerifier.named(name, folders)


def test_workers_that_cant_get_ready_are_an_error_and_no_verdict(tmp_path: Path) -> None:
    text = "import os, multiprocessing as m\nif m.parent_process():\n    {}\ndef f(text, problem):\n    return True\n"
    for name, fault in (("raises", "1 / 0"), ("leaves", "os._exit(0)"), ("interrupts", "raise KeyboardInterrupt")):
        (tmp_path / f"{name}.py").write_text(text.format(fault))
    for name, why in (
        ("raises", r"can't get ready: ValueError: verifier 'raises:f': .* \(ZeroDivisionError: division by zero\)\."),
        ("leaves", r"end as they start \(exit code 0\)\."),
        ("interrupts", r"can't get ready: KeyboardInterrupt: \."),
    ):
        verifier = FunctionVerifier.named(f"{name}:f", [tmp_path])
        with pytest.raises(PoolError, match=why):
            verifier.grade(["a"], [PROBLEM])
        verifier.close()


def test_a_server_that_cant_start_is_an_error(tmp_path: Path) -> None:
    """In a process of its own, as there is one fork server a process; the command says it in a sentence."""
    write_strangers(tmp_path, ())
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *forkserver*) exit 1;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    code = (
        "import multiprocessing, sys\nfrom negaware.__main__ import entry\n"
        f"multiprocessing.set_executable({str(python)!r})\n"
        "sys.argv = ['negaware', 'grade', 'in.jsonl', '-o', 'out.jsonl']\nentry()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("negaware: error: The processes that judge answers can't be started (")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()
