"""Made-up rollouts of given lengths, for training alone: speed depends on lengths, not on what the tokens say."""

from __future__ import annotations

import math
from typing import Any

from work import synthetic_tokens

from negaware.types import Completion, Group, Problem, Verdict


def alternating_verdicts(num_completions: int) -> tuple[Verdict, ...]:
    """Every other answer is right."""
    return tuple(
        Verdict(True, "correct", "1") if k % 2 else Verdict(False, "wrong", "0") for k in range(num_completions)
    )


def synthetic_groups(shape: dict[str, Any], num_completions: int, vocabulary: int) -> list[Group]:
    """Groups of one of work.py's TRAINING_SHAPES; every other answer is right, π_old is uniform."""
    groups = []
    for index in range(shape["questions"]):
        place = 1000 * index
        completions = tuple(
            Completion.drawn(
                tuple(synthetic_tokens(length, place + k + 1, vocabulary)),
                (-math.log(vocabulary),) * length,
                "stop",
                0,
                k,
            )
            for k, length in zip(range(num_completions), shape["answer_tokens"], strict=True)
        )
        prompt = tuple(synthetic_tokens(shape["question_tokens"], place, vocabulary))
        groups.append(
            Group(
                Problem(str(index), "", "1"),
                prompt,
                completions,
                ("",) * num_completions,
                alternating_verdicts(num_completions),
            )
        )
    return groups
