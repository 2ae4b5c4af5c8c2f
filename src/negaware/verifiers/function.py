"""Grades answers with a task's own scorer, in worker processes with the limits of any other text.

It knows nothing of what the function does; it holds it to its time, its memory and a boolean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from negaware.types import Problem, Verdict
from negaware.verifiers.pool import WorkerPool

_MAX_TEXT = 100_000  # characters from the end of a text that a scorer gets to see

Scorer = Callable[[str, Problem], bool]


class FunctionVerifier:
    """Grades with `function(text, problem) -> bool`, a module-level function, picklable by its name.

    `prepare` runs once in each worker before its first text, for imports too slow for one text's time.
    """

    def __init__(self, function: Scorer, *, prepare: Callable[[], object] | None = None) -> None:
        self._function = function
        self._pool = WorkerPool(prepare=prepare)

    def grade(self, texts: Sequence[str], problems: Sequence[Problem]) -> list[Verdict]:
        """One verdict a text, in order; a function that raises or returns no boolean gives `error`."""
        answers = [text[-_MAX_TEXT:].strip() for text in texts]
        calls = [(answer, problem) for answer, problem in zip(answers, problems, strict=True) if answer]
        outcomes = iter(self._pool.run(self._function, calls))
        verdicts = []
        for answer in answers:
            if not answer:
                verdicts.append(Verdict(False, "no_answer"))
                continue
            outcome = next(outcomes)
            if outcome.status == "timeout":
                verdicts.append(Verdict(False, "timeout", answer))
            elif outcome.status == "error" or not isinstance(outcome.value, bool):
                verdicts.append(Verdict(False, "error", answer))
            else:
                verdicts.append(Verdict(outcome.value, "correct" if outcome.value else "wrong", answer))
        return verdicts

    def close(self) -> None:
        """Ends the worker processes."""
        self._pool.close()
