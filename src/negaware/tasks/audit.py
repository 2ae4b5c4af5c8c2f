"""A check of data: each problem's gold answer, given as a model would give it, must pass the task's own verifier.

It knows no model. What it lists is either a bad row or a gap in the verifier: a person decides which.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from negaware.tasks.task import Task
from negaware.types import Problem, Verdict
from negaware.verifiers.math import MathVerifier, prepare_gold

BATCH = 512
"""Problems that are graded together."""


@dataclass(frozen=True, slots=True)
class AuditFailure:
    """A problem whose gold answer its own verifier refuses, and why."""

    problem: Problem
    verdict: Verdict
    why: str


@dataclass(frozen=True, slots=True)
class AuditResult:
    """What an audit found: failures; gold answers without a mathematical value, which only the same spelling will
    match; those not read in time; and groups of problems that ask the same and want different answers."""

    num_problems: int
    failures: tuple[AuditFailure, ...]
    textual: tuple[Problem, ...]
    unread: tuple[Problem, ...]
    conflicts: tuple[tuple[Problem, ...], ...]
    num_repeats: int

    @property
    def num_passing(self) -> int:
        """Problems whose gold answer passes."""
        return self.num_problems - len(self.failures)


def audit_task(task: Task, on_progress: Callable[[int], None] | None = None) -> AuditResult:
    """Grades every gold answer against itself and looks for repeated questions (apart from spaces).

    `on_progress` is told of every few problems that are done. ValueError if there is no gold answer at all.
    """
    problems = list(task.problems)
    if not any(problem.answer for problem in problems):
        raise ValueError(f"{task.name} has no gold answers, so there is nothing to audit.")
    failures: list[AuditFailure] = []
    textual: list[Problem] = []
    unread: list[Problem] = []
    for start, found in zip(range(0, len(problems), BATCH), failures_of(task), strict=True):
        failures += found
        batch = problems[start : start + BATCH]
        if isinstance(task.verifier, MathVerifier):
            parseable = task.verifier.parseable([problem.answer for problem in batch])
            textual += [problem for problem, has_value in zip(batch, parseable, strict=True) if has_value is False]
            unread += [problem for problem, has_value in zip(batch, parseable, strict=True) if has_value is None]
        if on_progress:
            on_progress(len(batch))
    askers: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        askers[" ".join(problem.question.split())].append(problem)
    conflicts = [group for group in askers.values() if len({problem.answer for problem in group}) > 1]
    return AuditResult(
        num_problems=len(problems),
        failures=tuple(failures),
        textual=tuple(textual),
        unread=tuple(unread),
        conflicts=tuple(tuple(group) for group in conflicts),
        num_repeats=len(problems) - len(askers),
    )


def failures_of(task: Task) -> Iterator[list[AuditFailure]]:
    """The problems whose gold answer fails, `BATCH` problems at a time."""
    verifier = task.verifier
    for start in range(0, len(task.problems), BATCH):
        batch = task.problems[start : start + BATCH]
        is_own = not isinstance(verifier, MathVerifier)
        # A worked solution is given as its final answer, read out as grading does.
        golds = [problem.answer if is_own else prepare_gold(problem.answer) for problem in batch]
        texts = [task.as_answer(gold) for gold in golds]
        if isinstance(verifier, MathVerifier):
            verdicts = verifier.grade_in_workers(texts, [problem.answer for problem in batch])
        else:
            verdicts = verifier.grade(texts, batch)
        yield [
            AuditFailure(problem, verdict, _why(problem, text, verdict, is_own))
            for problem, text, verdict in zip(batch, texts, verdicts, strict=True)
            if not verdict.correct
        ]


def _why(problem: Problem, text: str, verdict: Verdict, is_own: bool) -> str:
    """One sentence for a person; `is_own` of a judge that reads texts in its own way."""
    if not problem.answer:
        return "the data gives no gold answer"
    if is_own:
        told = " ".join(text.split())
        outcome = {"error": f"failed ({verdict.extracted})", "timeout": "ran out of time"}.get(verdict.reason)
        return f"the task's judge {outcome} on the text {told}" if outcome else f"the task's judge calls {told} wrong"
    if verdict.reason in ("timeout", "error"):
        return f"the verifier could not decide on {problem.answer!r} ({verdict.reason})"
    if verdict.reason == "no_answer":
        return f"no value was found in the gold answer {problem.answer!r}"
    return f"the gold answer {problem.answer!r} was read as {verdict.extracted!r} and is not equal to itself"
