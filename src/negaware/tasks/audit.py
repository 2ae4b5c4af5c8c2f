"""A check of data: each problem's gold answer, written as a model would write it, must pass the task's verifier.

What it lists is either a faulty problem or a fault of the verifier: a person decides which.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from negaware.tasks.task import Task
from negaware.types import Problem, Verdict
from negaware.verifiers.math import MathVerifier, prepare_gold

BATCH = 512
"""Problems that are graded together."""


@dataclass(frozen=True, slots=True)
class AuditFailure:
    """A problem whose gold answer the task's verifier calls wrong, and why."""

    problem: Problem
    why: str


@dataclass(frozen=True, slots=True)
class AuditResult:
    """What an audit found."""

    num_problems: int
    failures: tuple[AuditFailure, ...]
    textual: tuple[Problem, ...]
    """Those whose gold answer has no mathematical value, so that only the same spelling is right."""
    unread: tuple[Problem, ...]
    """Those whose gold answer was not read in time."""
    conflicts: tuple[tuple[Problem, ...], ...]
    """Groups of problems with the same question and different gold answers."""
    num_repeats: int

    @property
    def num_passing(self) -> int:
        """Problems whose gold answer passes."""
        return self.num_problems - len(self.failures)


def audit_task(task: Task, on_progress: Callable[[int], None] | None = None) -> AuditResult:
    """Grades every gold answer against itself and looks for repeated questions (the same except for spaces).

    `on_progress` is called with the number of problems in each finished batch. ValueError if no problem has a gold
    answer.
    """
    problems = task.problems
    if not any(problem.answer for problem in problems):
        raise ValueError(f"{task.name} has no gold answers, so there is nothing to audit.")
    failures: list[AuditFailure] = []
    textual: list[Problem] = []
    unread: list[Problem] = []
    for batch, found in find_failures(task):
        failures += found
        if isinstance(task.verifier, MathVerifier):
            parseable = task.verifier.parseable([problem.answer for problem in batch])
            textual += [problem for problem, has_value in zip(batch, parseable, strict=True) if has_value is False]
            unread += [problem for problem, has_value in zip(batch, parseable, strict=True) if has_value is None]
        if on_progress:
            on_progress(len(batch))
    by_question: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        by_question[" ".join(problem.question.split())].append(problem)
    conflicts = [group for group in by_question.values() if len({problem.answer for problem in group}) > 1]
    return AuditResult(
        num_problems=len(problems),
        failures=tuple(failures),
        textual=tuple(textual),
        unread=tuple(unread),
        conflicts=tuple(tuple(group) for group in conflicts),
        num_repeats=len(problems) - len(by_question),
    )


def find_failures(task: Task) -> Iterator[tuple[Sequence[Problem], list[AuditFailure]]]:
    """Each batch of `BATCH` problems, with those whose gold answer fails."""
    verifier = task.verifier
    for start in range(0, len(task.problems), BATCH):
        batch = task.problems[start : start + BATCH]
        answers = [problem.answer for problem in batch]
        if isinstance(verifier, MathVerifier):  # of a worked solution only its final answer is graded
            texts = [task.as_answer(prepare_gold(answer)) for answer in answers]
            verdicts = verifier.grade_in_workers(texts, answers)
        else:
            texts = [task.as_answer(answer) for answer in answers]
            verdicts = verifier.grade(texts, batch)
        has_judge = not isinstance(verifier, MathVerifier)
        yield (
            batch,
            [
                AuditFailure(problem, _why(problem, text, verdict, has_judge))
                for problem, text, verdict in zip(batch, texts, verdicts, strict=True)
                if not verdict.correct
            ],
        )


def _why(problem: Problem, text: str, verdict: Verdict, has_judge: bool) -> str:
    """Why a gold answer fails, in one sentence; `has_judge`: the verifier is a judge, which reads the text itself."""
    if not problem.answer:
        return "the data gives no gold answer"
    if has_judge:
        line = " ".join(text.split())
        outcome = {"error": f"failed ({verdict.extracted})", "timeout": "ran out of time"}.get(verdict.reason)
        return f"the task's judge {outcome} on the text {line}" if outcome else f"the task's judge calls {line} wrong"
    if verdict.reason in ("timeout", "error"):
        return f"the verifier could not decide on {problem.answer!r} ({verdict.reason})"
    if verdict.reason == "no_answer":
        return f"no value was found in the gold answer {problem.answer!r}"
    return f"the gold answer {problem.answer!r} was read as {verdict.extracted!r} and is not equal to itself"
