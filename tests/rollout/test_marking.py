"""Verdicts in threads: each answer gets its own, and an interrupt doesn't wait for a judge that takes its time."""

import threading
import time
from pathlib import Path

import pytest

from negaware.rollout import marking
from negaware.rollout.marking import Marking
from negaware.tasks.task import Task
from negaware.types import Completion, Problem, Verdict
from negaware.verifiers.function import FunctionVerifier
from negaware.verifiers.limits import Limits

PROBLEMS = [Problem(str(number), "", "") for number in range(30)]


def answer(number: int) -> Completion:
    return Completion.drawn([number] * 3, [-1.0] * 3, "stop", 0, 100 + number)


def takes_a_minute(text: str, problem: Problem) -> bool:
    Path(problem.answer).touch()
    time.sleep(60)
    return True


class ByNumber:
    """An answer is right if it is its problem's number; the later it was asked, the sooner it is judged."""

    def grade(self, texts, problems):
        time.sleep(0.001 * (30 - int(problems[0].id)))
        return [Verdict(text == problem.id, "correct", text) for text, problem in zip(texts, problems, strict=True)]

    def close(self):
        pass


def test_each_answer_has_its_own_verdict_whatever_comes_first():
    """Every fourth is another number than its problem's; one is given away and one forgotten."""
    task = Task("numbers", PROBLEMS, "{question}", ByNumber())
    with Marking(task, lambda tokens: str(tokens[0])) as marks:
        for first in range(0, 30, 3):
            numbers = range(first, first + 3)
            marks.add((PROBLEMS[number], answer(number if number % 4 else 40 + number)) for number in numbers)
        (one,) = marks.take([105])
        assert (one.text, one.verdict.correct) == ("5", True)
        marks.forget([106])
        for gone in (105, 106, 999):
            with pytest.raises(KeyError):
                marks.take([gone])
        rest = [number for number in reversed(range(30)) if number not in (5, 6)]
        found = marks.take(100 + (number if number % 4 else 40 + number) for number in rest)
    assert [each.verdict.correct for each in found] == [number % 4 != 0 for number in rest]


def test_an_interrupt_does_not_wait_for_a_judge(tmp_path, monkeypatch):
    """Its workers are ended, and no thread of it stays."""
    monkeypatch.setattr(marking, "PATIENCE", 0.2)
    verifier = FunctionVerifier(takes_a_minute, Limits(seconds=300))
    problem = Problem("1", "", str(tmp_path / "begun"))

    def interrupted() -> None:
        with Marking(Task("slow", [problem], "{question}", verifier), str) as marks:
            marks.add([(problem, answer(0))])
            while not (tmp_path / "begun").exists():
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    marking_threads = [thread for thread in threading.enumerate() if thread.name.startswith("marking")]
    for thread in marking_threads:
        thread.join(50)  # the judge would take a minute
    assert not any(thread.is_alive() for thread in marking_threads)
    verifier.close()
