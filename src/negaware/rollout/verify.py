"""Sampled completions → texts and verdicts, the same for training and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from negaware.tasks.task import Task
from negaware.types import Completion, Problem, Verdict


def verify(
    task: Task,
    decode: Callable[[Sequence[int]], str],
    problems: Sequence[Problem],
    completions: Sequence[Sequence[Completion]],
) -> list[tuple[tuple[str, ...], tuple[Verdict, ...]]]:
    """Each problem's answers as texts with their verdicts, in order.

    A truncated answer is a wrong one even if its text holds the right value: it never said that it was done.
    """
    texts = [tuple(decode(completion.token_ids) for completion in group) for group in completions]
    repeated = [problem for problem, group in zip(problems, texts, strict=True) for _ in group]
    verdicts = iter(task.verifier.grade([text for group in texts for text in group], repeated))
    return [
        (group_texts, tuple(_unless_truncated(next(verdicts), completion) for completion in group))
        for group_texts, group in zip(texts, completions, strict=True)
    ]


def _unless_truncated(verdict: Verdict, completion: Completion) -> Verdict:
    if verdict.correct and completion.finish_reason == "length":
        return Verdict(False, "wrong", verdict.extracted)
    return verdict
