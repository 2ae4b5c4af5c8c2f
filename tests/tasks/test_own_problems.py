"""A task with a judge of one's own, given as module:function."""

import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from negaware.tasks.audit import audit_task
from negaware.tasks.load import load_task
from negaware.tasks.options import ArithmeticOptions, DatasetOptions, ReasoningGymOptions
from negaware.types import Problem

JUDGE = """
import functools
import os
import time

import numpy

def is_short(answer, problem):
    return len(answer) <= problem.metadata["longest"]

def is_gold(answer, problem):
    return answer == problem.answer

def talks(answer, problem):
    return "yes"

def is_short_to_numpy(answer, problem):
    return numpy.bool_(is_short(answer, problem))

def fails(answer, problem):
    return problem.metadata["no such column"]

bound = functools.partial(is_gold)

def takes_a_second(answer, problem):
    time.sleep(1)
    return True

def takes_300_mb(answer, problem):
    return len(bytearray(300 << 20)) > 0

def says_where(answer, problem):
    time.sleep(0.2)
    open(f"worker-{os.getpid()}", "w").close()
    return True
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module, a name of its own a test, as modules stay loaded."""
    (tmp_path / f"judge_{tmp_path.name}.py").write_text(JUDGE)
    (tmp_path / "words.jsonl").write_text(
        '{"question": "An animal?", "longest": 4}\n{"question": "A colour?", "longest": 3}\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def judge(folder: Path, name: str) -> str:
    return f"judge_{folder.name}:{name}"


def verdicts(task: Any, texts: list[str]) -> list[tuple[bool, str]]:
    try:
        found = task.grade(
            texts, [task.problems[n % len(task.problems)] for n in range(len(texts))], ["stop"] * len(texts)
        )
        return [(verdict.correct, verdict.reason) for verdict in found]
    finally:
        task.verifier.close()


def test_own_file_and_own_judge_without_gold_answers(folder: Path) -> None:
    options = DatasetOptions(path="words.jsonl", answer_column=None, verifier=judge(folder, "is_short"))
    task = load_task(options)
    assert [problem.answer for problem in task.problems] == ["", ""]
    assert verdicts(task, ["bear", "blue", "lion", "red"]) == [
        (True, "correct"),
        (False, "wrong"),
        (True, "correct"),
        (True, "correct"),
    ]


def test_own_judge_of_questions_that_there_are(folder: Path) -> None:
    task = load_task(ArithmeticOptions(forms=("add",), num_problems=1, verifier=judge(folder, "is_gold")))
    gold = task.problems[0].answer
    assert verdicts(task, [gold, f"It is {gold}."]) == [(True, "correct"), (False, "wrong")]


def test_own_judge_sees_cut_answers_if_asked(folder: Path) -> None:
    options = DatasetOptions(path="words.jsonl", answer_column=None, verifier=judge(folder, "is_short"))
    for asked, expected in (("wrong", [False, False]), ("judged", [True, False])):
        task = load_task(options.model_copy(update={"truncated_answers": asked}))
        with closing(task.verifier):
            verdicts = task.grade(["bear", "green"], task.problems, ["length", "length"])
        assert [verdict.correct for verdict in verdicts] == expected
    with pytest.raises(ValueError, match="truncated_answers: judged is for your own judge"):
        ArithmeticOptions(truncated_answers="judged")


def test_numpys_booleans_are_booleans(folder: Path) -> None:
    options = DatasetOptions(path="words.jsonl", answer_column=None, verifier=judge(folder, "is_short_to_numpy"))
    assert verdicts(load_task(options), ["bear", "green"]) == [(True, "correct"), (False, "wrong")]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("is_gold", r"the task's judge calls \boxed{5} wrong"),
        ("fails", r"the task's judge failed (KeyError: 'no such column') on the text \boxed{5}"),
    ],
)
def test_the_audit_says_what_an_own_judge_did(folder: Path, name: str, why: str) -> None:
    Path("sums.jsonl").write_text('{"question": "2 + 3?", "answer": 5}\n')
    task = load_task(DatasetOptions(path="sums.jsonl", verifier=judge(folder, name)))
    with closing(task.verifier):
        assert [failure.why for failure in audit_task(task).failures] == [why]


def test_without_gold_answers_there_is_nothing_to_audit(folder: Path) -> None:
    options = DatasetOptions(path="words.jsonl", answer_column=None, verifier=judge(folder, "is_short"))
    task = load_task(options)
    with closing(task.verifier), pytest.raises(ValueError, match="words has no gold answers, so there is nothing to"):
        audit_task(task)


def test_a_judge_that_misbehaves_says_how(folder: Path) -> None:
    for name, said in (("talks", "'yes' is neither True nor False"), ("fails", "KeyError: 'no such column'")):
        options = DatasetOptions(path="words.jsonl", answer_column=None, verifier=judge(folder, name))
        task = load_task(options)
        (verdict,) = task.grade(["text"], task.problems[:1], ["stop"])
        task.verifier.close()
        assert (verdict.correct, verdict.reason) == (False, "error")
        assert verdict.extracted is not None
        assert said in verdict.extracted


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("no_such_module:f", r"there is no no_such_module\.py in \S+; a judge of your own must be in"),
        ("FAILS:f", r"module 'fails_\S+' can't be imported from \S+ \(ModuleNotFoundError: .*'no_such_module'\)"),
        ("JUDGE:nothing", "has no function 'nothing'"),
        ("JUDGE:bound", "'bound' must be a function defined with `def`"),
        (":f", "write module:function"),
        ("JUDGE:", "write module:function"),
    ],
)
def test_what_is_no_function_is_refused(folder: Path, name: str, complaint: str) -> None:
    (folder / f"fails_{folder.name}.py").write_text("import no_such_module")
    name = name.replace("JUDGE", f"judge_{folder.name}").replace("FAILS", f"fails_{folder.name}")
    with pytest.raises(ValueError, match=complaint):
        load_task(ArithmeticOptions(num_problems=1, verifier=name))


def test_options_are_checked_before_anything_is_loaded() -> None:
    with pytest.raises(ValueError, match="names no function; write module:function"):
        ArithmeticOptions(verifier="is_right")
    with pytest.raises(ValueError, match="answer_column is null, so nothing can be graded"):
        DatasetOptions(path="words.jsonl", answer_column=None)


@pytest.mark.parametrize(
    ("name", "limits", "reason"),
    [
        ("takes_a_second", {"seconds": 0.2}, "timeout"),
        ("takes_a_second", {"seconds": 60}, "correct"),
        ("takes_300_mb", {"memory_mb": 128, "seconds": 60}, "error"),
        ("takes_300_mb", {"memory_mb": 2048, "seconds": 60}, "correct"),
    ],
)
def test_a_judge_has_the_time_and_the_memory_that_its_task_grants(
    folder: Path, name: str, limits: dict[str, float], reason: str
) -> None:
    options = DatasetOptions(path="words.jsonl", answer_column=None, verifier=judge(folder, name), limits=limits)
    assert verdicts(load_task(options), ["cat"]) == [(reason == "correct", reason)]


@pytest.mark.parametrize("workers", [1, 3])
def test_so_many_answers_are_judged_at_once(folder: Path, workers: int) -> None:
    limits = {"workers": workers, "seconds": 60}
    options = DatasetOptions(
        path="words.jsonl", answer_column=None, verifier=judge(folder, "says_where"), limits=limits
    )
    assert verdicts(load_task(options), ["cat"] * 9) == [(True, "correct")] * 9
    assert len(list(folder.glob("worker-*"))) == workers


@pytest.mark.parametrize("kind", ["math", "reasoning_gym"])
def test_other_verifiers_have_their_tasks_limits_too(kind: str) -> None:
    limits = {"workers": 1, "seconds": 1e-6}
    if kind == "math":
        task = load_task(ArithmeticOptions(limits=limits, num_problems=1, extract="boxed"))
        task = replace(task, problems=[Problem("1", "?", r"(1+x)^{41}")])
        text = r"\boxed{(x+1)^{40}}"
    else:
        task = load_task(ReasoningGymOptions(name="chain_sum", num_problems=1, limits=limits))
        text = "<answer>1</answer>"
    assert verdicts(task, [text]) == [(False, "timeout")]
