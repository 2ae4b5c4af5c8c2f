"""The check that a run makes of its own data: every gold answer must pass its task's verifier.

It runs in worker processes while the model is loaded and the first answers are sampled. The same data is checked only
once: a file in the cache folder records that it passed.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import negaware.verifiers
from negaware.cache_folder import cache_folder
from negaware.tasks.audit import AuditFailure, find_failures
from negaware.tasks.task import Task
from negaware.verifiers.math import MathVerifier

_LIBRARIES = ("math-verify", "latex2sympy2-extended", "sympy")

_PATIENCE = 1.0
"""Seconds that `stop` waits for the present batch."""


class GoldCheck:
    """Checks tasks, each given with the place of its data, in another thread; `require` raises if one fails."""

    def __init__(self, tasks: Sequence[tuple[str, Task]]) -> None:
        self._tasks = tasks
        self._stopping = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._check, name="gold answers", daemon=True)
        self._thread.start()

    def require(self, seconds: float | None = None) -> None:
        """ValueError if a gold answer fails; waits for the end of the check, at most `seconds`."""
        self._thread.join(seconds)
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Ends the check; if its present batch takes too long, by closing the verifiers."""
        self._stopping.set()
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            for _, task in self._tasks:
                task.verifier.close()
            self._thread.join(_PATIENCE)

    def _check(self) -> None:
        try:
            for place, task in self._tasks:
                known = _marker(task)
                if known is not None and known.exists():
                    continue
                failures: list[AuditFailure] = []
                for _, found in find_failures(task):
                    failures += found
                    if self._stopping.is_set():
                        return
                if failures:
                    raise ValueError(
                        f"{place}: {len(failures)} of {len(task.problems)} gold answers can't be graded, such as that "
                        f"of {failures[0].problem.id} ({failures[0].why}); correct or leave out what `negaware audit` "
                        "lists."
                    )
                if known is not None:
                    with suppress(OSError):  # then the next start checks again
                        known.parent.mkdir(parents=True, exist_ok=True)
                        known.write_text(f"{len(task.problems)} gold answers of {place} passed their verifier.\n")
        except Exception as error:
            self._error = error


def _marker(task: Task) -> Path | None:
    """The file in the cache folder that records that these answers passed this verifier; None without a home folder."""
    digest = hashlib.blake2b(digest_size=16)
    sources = sorted(Path(negaware.verifiers.__path__[0]).glob("*.py"))
    grader = [source.read_bytes() for source in sources] + [version(name).encode() for name in _LIBRARIES]
    methods = repr(task.verifier.methods if isinstance(task.verifier, MathVerifier) else None)
    answers = (problem.answer.encode("utf-8", "surrogatepass") for problem in task.problems)
    for part in (*grader, methods.encode(), task.answer_form.encode(), *answers):
        digest.update(b"%d:%b" % (len(part), part))
    with suppress(RuntimeError):  # no home folder
        return cache_folder() / "golds" / digest.hexdigest()
    return None
