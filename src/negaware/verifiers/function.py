"""Grades answers with a task's own scorer, in worker processes with the limits of any other text.

It knows nothing of what the function does; it holds it to its time, its memory and a boolean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from negaware.types import Problem, Verdict
from negaware.verifiers.extract import check_methods, extract_answer
from negaware.verifiers.pool import WorkerPool

_MAX_TEXT = 100_000  # characters from the end of a text that a scorer gets to see

Scorer = Callable[[str, Problem], bool]


class FunctionVerifier:
    """Grades with `function(text, problem) -> bool`, a module-level function, picklable by its name.

    `extract` names the methods that find the answer first (None: the function gets the whole text).
    `prepare` runs once in each worker before its first text, for imports too slow for one text's time.
    Raises ValueError for an unknown extraction method.
    """

    def __init__(
        self,
        function: Scorer,
        extract: Sequence[str] | Literal["auto"] | None = None,
        *,
        pool: WorkerPool | None = None,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        self._function = function
        self._methods = None if extract is None else check_methods(extract)
        self._pool = pool or WorkerPool(prepare=prepare)

    def grade(self, texts: Sequence[str], problems: Sequence[Problem]) -> list[Verdict]:
        """One verdict a text, in order; a function that raises or returns no boolean gives `error`."""
        answers = [self._answer(text) for text in texts]
        calls = [(answer, problem) for answer, problem in zip(answers, problems, strict=True) if answer is not None]
        outcomes = iter(self._pool.run(self._function, calls))
        verdicts = []
        for answer in answers:
            if answer is None:
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

    def _answer(self, text: str) -> str | None:
        text = text[-_MAX_TEXT:]
        if self._methods is None:
            return text.strip() or None
        try:
            return extract_answer(text, self._methods)
        except Exception:  # the verifier's border: no text may stop a run
            return None

    def close(self) -> None:
        """Ends the worker processes."""
        self._pool.close()

    def __enter__(self) -> FunctionVerifier:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
