"""Verdicts while sampling goes on: answers are handed to the verifier as they finish, and nobody waits for the slowest.

It knows tasks and texts; neither engines nor ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from negaware.tasks.task import Task
from negaware.types import Completion, Group, Problem, Verdict

THREADS = 4
"""Calls of the verifier under way at once; what works are its own processes."""
PATIENCE = 3.0
"""Seconds that a call under way is waited for after an interrupt: a judge may take minutes."""


class Marked(NamedTuple):
    """A completion with its text and its verdict."""

    completion: Completion
    text: str
    verdict: Verdict


def group_of(problem: Problem, prompt: tuple[int, ...], marked: Sequence[Marked]) -> Group:
    """The group of these answers to one problem."""
    completions, texts, verdicts = zip(*marked, strict=True)
    return Group(problem, prompt, completions, texts, verdicts)


class Marking:
    """Judges the answers that it is given, in threads; `decode` makes texts of tokens. A context manager."""

    def __init__(self, task: Task, decode: Callable[[Sequence[int]], str]) -> None:
        self.task, self.decode = task, decode
        self._under_way: dict[int, tuple[Future[list[Verdict]], int, Completion, str]] = {}
        """By the completion's seed: the call that judges it, its place in that call, and what it judges."""
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="marking")

    def add(self, answered: Iterable[tuple[Problem, Completion]]) -> None:
        """Has these judged."""
        problems, completions = zip(*answered, strict=True) if (answered := list(answered)) else ((), ())
        if not completions:
            return
        texts = [self.decode(done.token_ids.tolist()) for done in completions]
        call = self._pool.submit(self.task.grade, texts, problems, [done.finish_reason for done in completions])
        for place, (done, text) in enumerate(zip(completions, texts, strict=True)):
            self._under_way[done.seed] = call, place, done, text

    def take(self, seeds: Iterable[int]) -> tuple[Marked, ...]:
        """The answers with these seeds, once they are judged; each is given away once. ValueError of the verifier's."""
        found = []
        for seed in seeds:
            call, place, done, text = self._under_way[seed]
            found.append(Marked(done, text, call.result()[place]))
        for marked in found:
            del self._under_way[marked.completion.seed]
        return tuple(found)

    def forget(self, seeds: Iterable[int]) -> None:
        """Drops these answers: nobody will ask for their verdicts."""
        for seed in seeds:
            self._under_way.pop(seed, None)

    def __enter__(self) -> Marking:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Calls that have begun are waited for; after an exception only so long, then the verifier is closed."""
        self._pool.shutdown(wait=kind is None, cancel_futures=True)
        if kind is not None:
            calls = {call for call, *_ in self._under_way.values()}
            if wait(calls, PATIENCE).not_done:
                self.task.verifier.close()  # they end without its workers
