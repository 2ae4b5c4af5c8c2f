"""A check of data: each problem's gold answer, given as a model would give it, must pass the task's own verifier.

It knows no model. What it lists is either a bad row or a gap in the verifier: a person decides which.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from negaware.tasks.task import Task
from negaware.types import Problem, Verdict
from negaware.verifiers.math import MathVerifier


@dataclass(frozen=True, slots=True)
class AuditFailure:
    """A problem whose gold answer its own verifier refuses, and why."""

    problem: Problem
    verdict: Verdict
    why: str


@dataclass(frozen=True, slots=True)
class AuditResult:
    """What an audit found: failures; gold answers without a mathematical value, which only the same spelling will
    match; and groups of problems that ask the same and want different answers."""

    num_problems: int
    failures: tuple[AuditFailure, ...]
    textual: tuple[Problem, ...]
    conflicts: tuple[tuple[Problem, ...], ...]
    num_repeats: int

    @property
    def num_passing(self) -> int:
        """Problems whose gold answer passes."""
        return self.num_problems - len(self.failures)


def audit_task(task: Task) -> AuditResult:
    """Grades every gold answer against itself and looks for repeated questions (apart from spaces).

    ValueError if there is no gold answer at all.
    """
    problems = list(task.problems)
    if not any(problem.answer for problem in problems):
        raise ValueError(f"{task.name} has no gold answers, so there is nothing to audit.")
    texts = [task.as_answer(problem.answer) for problem in problems]
    verdicts, is_own = task.verifier.grade(texts, problems), not isinstance(task.verifier, MathVerifier)
    failures = [
        AuditFailure(problem, verdict, _why(problem, text, verdict, is_own))
        for problem, text, verdict in zip(problems, texts, verdicts, strict=True)
        if not verdict.correct
    ]
    textual: list[Problem] = []
    if isinstance(task.verifier, MathVerifier):
        parseable = task.verifier.parseable([problem.answer for problem in problems])
        textual = [problem for problem, has_value in zip(problems, parseable, strict=True) if not has_value]
    askers: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        askers[" ".join(problem.question.split())].append(problem)
    conflicts = [group for group in askers.values() if len({problem.answer for problem in group}) > 1]
    return AuditResult(
        num_problems=len(problems),
        failures=tuple(failures),
        textual=tuple(textual),
        conflicts=tuple(tuple(group) for group in conflicts),
        num_repeats=len(problems) - len(askers),
    )


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
