"""Problems of reasoning-gym and their scorer, which is given the answer's value only.

The library is imported when a problem is generated or scored, not with this module.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from negaware.tasks.options import ReasoningGymOptions, did_you_mean
from negaware.tasks.procedural import HELD_OUT_EVERY, split_of
from negaware.types import Problem, Verdict
from negaware.verifiers.extract import check_methods, find_answer
from negaware.verifiers.function import FunctionVerifier
from negaware.verifiers.limits import Limits

ANSWER_FORM = "<answer>{answer}</answer>"
SEED_DISTANCE = 1_000_000
"""The library's seeds s and s + 1 give the same items, shifted by one; so the user's seed is multiplied by this."""
PATIENCE = 4
"""How many items are generated at most, as a multiple of those that a data set without repetitions needs."""


def generate(options: ReasoningGymOptions) -> list[Problem]:
    """`num_problems` problems of the split, which is a hash of a question's text, so no seed can mix the splits.

    A test question comes once. ValueError for an unknown data set, for parameters that it refuses, for a missing
    library, and if the data set has too few different questions.
    """
    fraction = 1 / HELD_OUT_EVERY if options.split == "test" else 1 - 1 / HELD_OUT_EVERY
    num_items = int(options.num_problems / fraction * PATIENCE) + 100
    dataset = _create(options.name, options.parameters, options.seed * SEED_DISTANCE, num_items)
    problems: list[Problem] = []
    seen: set[str] = set()
    for index in range(num_items):
        entry = dataset[index]
        question = entry["question"]
        if split_of(question) != options.split or (options.split == "test" and question in seen):
            continue
        seen.add(question)
        metadata = {"dataset": options.name, "parameters": options.parameters, "entry": dict(entry)}
        answer = "" if entry["answer"] is None else str(entry["answer"])  # some data sets have no single answer
        problems.append(Problem(f"reasoning_gym/{options.name}/{options.seed}/{index}", question, answer, metadata))
        if len(problems) == options.num_problems:
            return problems
    raise ValueError(
        f"reasoning_gym {options.name} gave {len(problems)} {options.split} problems in {num_items} items, "
        f"num_problems asks for {options.num_problems}; ask for fewer, or widen its parameters"
    )


class ReasoningGymVerifier(FunctionVerifier):
    """Grades the value that `extract` finds in a text with the library's scorer.

    None: the content of the last `<answer>` tag, or the whole text if there is none.
    """

    def __init__(self, extract: Sequence[str] | Literal["auto"] | None = None, limits: Limits | None = None) -> None:
        super().__init__(score, limits, prepare=load_library)
        self._methods = None if extract is None else check_methods(extract)

    def grade(self, texts: Sequence[str], problems: Sequence[Problem]) -> list[Verdict]:
        """One verdict for each text, in order; `no_answer` if nothing is found."""
        if self._methods is None:
            return super().grade([tagged_answer(text) for text in texts], problems)
        return super().grade([find_answer(text, self._methods) or "" for text in texts], problems)


def tagged_answer(text: str) -> str:
    """The content of the last closed `<answer>` tag, or the whole text."""
    before, closing, _ = text.rpartition("</answer>")
    return (before.rpartition("<answer>")[2] if closing else text).strip()


def score(answer: str, problem: Problem) -> bool:
    """Whether the library's scorer gives the answer exactly 1; lower scores are for the form or for a part."""
    dataset = _scorer(problem.metadata["dataset"], json.dumps(problem.metadata["parameters"]))
    return bool(dataset.score_answer(answer, problem.metadata["entry"]) == 1.0)


def load_library() -> None:
    """Imports the library; in a worker before its first answer, for it takes as long as an answer may."""
    import reasoning_gym  # noqa: F401


@functools.lru_cache(maxsize=8)
def _scorer(name: str, parameters: str) -> Any:
    return _create(name, json.loads(parameters), seed=0, size=1)


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
