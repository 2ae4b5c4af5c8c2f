"""Grades answers with a task's own scorer, in worker processes with the limits of any other text.

It knows nothing of what the function does; it holds it to its time, its memory and a boolean.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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
            elif outcome.status == "error":
                verdicts.append(Verdict(False, "error", outcome.value))
            elif not isinstance(outcome.value, bool):
                verdicts.append(Verdict(False, "error", f"{outcome.value!r} is neither True nor False"[:200]))
            else:
                verdicts.append(Verdict(outcome.value, "correct" if outcome.value else "wrong", answer))
        return verdicts

    def close(self) -> None:
        """Ends the worker processes."""
        self._pool.close()

    @classmethod
    def named(cls, name: str) -> FunctionVerifier:
        """That of `module:function`. Raises ValueError for all that `find_function` does."""
        return cls(find_function(name), prepare=partial(find_function, name))


def _call(function: Scorer, text: str, problem: Problem) -> object:
    """In a worker; numpy's booleans are made Python's."""
    value: Any = function(text, problem)
    return value.item() if getattr(value, "ndim", None) == 0 else value


def find_function(name: str) -> Scorer:
    """The function that `module:function` names, looked for in the working directory first.

    ValueError where there is none, or where worker processes couldn't find it again.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name.isidentifier():
        raise ValueError(f"verifier is {name!r}; write module:function, such as my_rules:is_right for my_rules.py")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # a console script's path doesn't begin there, as that of `python -m` does
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's own module may raise
        raise ValueError(
            f"verifier {name!r}: module {module_name!r} can't be imported from {folder} "
            f"({type(error).__name__}: {error})"
        ) from error
    function = getattr(module, function_name, None)
    if function is None:
        raise ValueError(f"verifier {name!r}: module {module_name!r} has no function {function_name!r}")
    if not callable(function) or getattr(function, "__qualname__", None) != function_name:
        raise ValueError(f"verifier {name!r}: {function_name!r} must be a function defined with `def` in a module")
    found: Scorer = function
    return found
