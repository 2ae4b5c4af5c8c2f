"""Problems of reasoning-gym and their scorer, which is given the bare value. It knows no models.

The library is imported when a problem is generated or scored, never with this module.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from negaware.tasks.options import ReasoningGymOptions, did_you_mean
from negaware.tasks.procedural import TEST_SHARE, split_of
from negaware.types import Problem, Verdict
from negaware.verifiers.extract import check_methods, find_answer
from negaware.verifiers.function import FunctionVerifier
from negaware.verifiers.limits import Limits

ANSWER_FORM = "<answer>{answer}</answer>"
SEED_DISTANCE = 1_000_000
"""Seeds s and s + 1 give the same items shifted by one: users' seeds are set further apart than any size."""
PATIENCE = 4
"""Items generated before giving up, as a multiple of those that a rich data set would need."""


def generate(options: ReasoningGymOptions) -> list[Problem]:
    """`num_problems` problems of the split; a question's split is a hash of its text, so no seed can mix them.

    A test question comes once. Raises ValueError for an unknown data set, for parameters that it refuses, for a
    missing library, and where the data set has too few different questions.
    """
    share = 1 / TEST_SHARE if options.split == "test" else 1 - 1 / TEST_SHARE
    num_items = int(options.num_problems / share * PATIENCE) + 100
    dataset = _create(options.name, options.parameters, options.seed * SEED_DISTANCE, num_items)
    problems: list[Problem] = []
    seen: set[str] = set()
    for index in range(num_items):
        entry = dataset[index]
        question = entry["question"]
        if split_of(question) != options.split or (options.split == "test" and question in seen):
            continue
        seen.add(question)
        problems.append(_problem(options, index, entry))
        if len(problems) == options.num_problems:
            return problems
    raise ValueError(
        f"reasoning_gym {options.name} gave {len(problems)} {options.split} problems in {num_items} items, "
        f"num_problems asks for {options.num_problems}; ask for fewer, or widen its parameters"
    )


class ReasoningGymVerifier:
    """Grades the value that `extract` finds in a text with the library's scorer.

    None: what the last `<answer>` tag holds, or the whole text where there is none.
    """

    def __init__(self, extract: Sequence[str] | Literal["auto"] | None = None, limits: Limits | None = None) -> None:
        self._methods = None if extract is None else check_methods(extract)
        self._scorer = FunctionVerifier(score, limits, prepare=load_library)

    def grade(self, texts: Sequence[str], problems: Sequence[Problem]) -> list[Verdict]:
        """One verdict a text, in order; `no_answer` where nothing is found."""
        return self._scorer.grade([self._value(text) for text in texts], problems)

    def _value(self, text: str) -> str:
        return tagged_answer(text) if self._methods is None else find_answer(text, self._methods) or ""

    def close(self) -> None:
        """Ends the worker processes."""
        self._scorer.close()


def tagged_answer(text: str) -> str:
    """What the last closed `<answer>` tag holds, or the whole text."""
    before, closing, _ = text.rpartition("</answer>")
    return (before.rpartition("<answer>")[2] if closing else text).strip()


def score(answer: str, problem: Problem) -> bool:
    """Whether the library's scorer gives the answer exactly 1: its lower scores are for form and parts."""
    dataset = _scorer(problem.metadata["dataset"], json.dumps(problem.metadata["parameters"]))
    return bool(dataset.score_answer(answer, problem.metadata["entry"]) == 1.0)


def load_library() -> None:
    """What a worker imports before its first answer: it takes as long as an answer may."""
    import reasoning_gym  # noqa: F401


@functools.lru_cache(maxsize=8)
def _scorer(name: str, parameters: str) -> Any:
    return _create(name, json.loads(parameters), seed=0, size=1)


def _problem(options: ReasoningGymOptions, index: int, entry: Mapping[str, Any]) -> Problem:
    metadata = {"dataset": options.name, "parameters": options.parameters, "entry": dict(entry)}
    answer = "" if entry["answer"] is None else str(entry["answer"])  # some have a scorer and no one answer
    name = f"reasoning_gym/{options.name}/{options.seed}/{index}"
    return Problem(name, entry["question"], answer, metadata)


def _create(name: str, parameters: Mapping[str, Any], seed: int, size: int) -> Any:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ValueError(
            f"task reasoning_gym:{name} needs reasoning-gym ({error}); pip install 'negaware[reasoning-gym]'"
        ) from error
    if name not in DATASETS:
        suggestion = did_you_mean(name, DATASETS) or f" (it has {', '.join(sorted(DATASETS))})"
        raise ValueError(f"reasoning_gym has no data set {name!r}{suggestion}")
    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=size, **parameters)
    except (TypeError, AssertionError, ValueError) as error:
        raise ValueError(f"reasoning_gym {name} refuses its parameters {dict(parameters)}: {error}") from error
