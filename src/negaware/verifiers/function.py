"""Grades answers with a task's own scorer, in worker processes with the limits of any other text.

It knows nothing of what the function does; it holds it to its time, its memory and a boolean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from negaware.types import Problem, Verdict
from negaware.verifiers.judge import find_judge
from negaware.verifiers.limits import Limits
from negaware.verifiers.pool import WorkerPool

_MAX_TEXT = 100_000  # characters from the end of a text that a scorer gets to see

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
        """One verdict a text, in order; a function that raises or returns no boolean gives `error`, and
        what it did in place of the extracted answer."""
        answers = [text[-_MAX_TEXT:].strip() for text in texts]
        calls = [(answer, problem) for answer, problem in zip(answers, problems, strict=True) if answer]
        outcomes = iter(self._pool.run(partial(_call, self._function), calls))
        verdicts = []
        for answer in answers:
            if not answer:
                verdicts.append(Verdict(False, "no_answer"))
                continue
            outcome = next(outcomes)
            if outcome.status == "timeout":
                verdicts.append(Verdict(False, "timeout", answer))
            elif not isinstance(outcome.value, bool):
                verdicts.append(Verdict(False, "error", outcome.value))
            else:
                verdicts.append(Verdict(outcome.value, "correct" if outcome.value else "wrong", answer))
        return verdicts

    def close(self) -> None:
        """Ends the worker processes."""
        self._pool.close()

    @classmethod
    def named(cls, name: str, folders: Sequence[Path] = (Path(),), limits: Limits | None = None) -> FunctionVerifier:
        """That of `module:function` in one of the folders. Raises ValueError for all that `find_judge` does."""
        judge = find_judge(name, folders)
        return cls(judge, limits, prepare=judge.load)


def _call(function: Scorer, text: str, problem: Problem) -> bool | str:
    """In a worker: the verdict, numpy's booleans made Python's; of anything else what it is."""
    value: Any = function(text, problem)
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    return value if isinstance(value, bool) else f"{value!r} is neither True nor False"[:200]
