"""Grades answers with any function of an answer and its problem, in worker processes, within the task's limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from negaware.types import Problem, Verdict
from negaware.user_code import Purpose, find_function
from negaware.verifiers.limits import Limits
from negaware.verifiers.pool import WorkerPool
from negaware.verifiers.worker import Outcome

_MAX_TEXT = 100_000  # characters at the end of a text that the function is given

JUDGE = Purpose("verifier", "a judge", "my_rules:is_right")

Scorer = Callable[[str, Problem], object]


class FunctionVerifier:
    """Grades with `function(text, problem) -> bool`, a module-level function, picklable by its name.

    `prepare` runs once in each worker before its first text, for imports too slow for one text's time.
    """

    def __init__(
        self, function: Scorer, limits: Limits | None = None, *, prepare: Callable[[], object] | None = None
    ) -> None:
        self._function = function
        self._pool = WorkerPool(limits, prepare=prepare)

    def grade(self, texts: Sequence[str], problems: Sequence[Problem]) -> list[Verdict]:
        """One verdict for each text, in order.

        If the function raises or returns no boolean, the reason is `error`, and `extracted` says what happened.
        """
        answers = [text[-_MAX_TEXT:].strip() for text in texts]
        calls = [(answer, problem) for answer, problem in zip(answers, problems, strict=True) if answer]
        outcomes = iter(self._pool.run(partial(_call, self._function), calls))
        return [as_verdict(next(outcomes), answer) if answer else Verdict(False, "no_answer") for answer in answers]

    def close(self) -> None:
        """Ends the worker processes."""
        self._pool.close()

    @staticmethod
    def named(name: str, folders: Sequence[Path] = (Path(),), limits: Limits | None = None) -> FunctionVerifier:
        """Grades with the user's `module:function`, from the first of the folders that has the module.

        ValueError where there is none, or where it is no function.
        """
        judge = find_function(name, folders, JUDGE)
        return FunctionVerifier(judge, limits, prepare=judge.load)


def as_verdict(outcome: Outcome, answer: str) -> Verdict:
    """The verdict on an answer, from the outcome of the call that judged it."""
    if outcome.status == "timeout":
        return Verdict(False, "timeout", answer)
    if not isinstance(outcome.value, bool):
        return Verdict(False, "error", outcome.value)
    return Verdict(outcome.value, "correct" if outcome.value else "wrong", answer)


def _call(function: Scorer, text: str, problem: Problem) -> bool | str:
    """What the function returns, as Python's boolean; a sentence if that is no boolean. Runs in a worker."""
    value: Any = function(text, problem)
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    return value if isinstance(value, bool) else f"{value!r} is neither True nor False"[:200]
