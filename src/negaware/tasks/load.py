"""From a task's options to the task: its problems, with their prompt and verifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from negaware.tasks import procedural, reasoning
from negaware.tasks.benchmarks import BENCHMARKS, benchmark_problems, file_name
from negaware.tasks.dataset import dataset_problems
from negaware.tasks.options import (
    AnyTaskOptions,
    ArithmeticOptions,
    BenchmarkOptions,
    DatasetOptions,
    ReasoningGymOptions,
)
from negaware.tasks.task import BOXED_FORM, Task
from negaware.types import Problem
from negaware.verifiers.extract import Method
from negaware.verifiers.function import FunctionVerifier
from negaware.verifiers.math import MathVerifier

Methods = Literal["auto"] | tuple[Method, ...]
"""Where an answer is looked for."""


def load_task(options: AnyTaskOptions, data_dir: Path | None = None, judge_folders: Sequence[Path] = (Path(),)) -> Task:
    """The task that the options name. `data_dir`: a folder whose files stand in for the hub's named sets;
    `judge_folders`: where a judge of one's own is looked for.

    Raises ValueError for data that can't be had or read. The task's verifier holds worker processes once it has
    graded: close it.
    """
    task = LOADERS[options.kind](options, data_dir)
    if not options.verifier:
        return task
    verifier = FunctionVerifier.named(options.verifier, judge_folders, options.limits)
    return replace(task, verifier=verifier, judges_truncated=options.truncated_answers == "judged")


def _load_arithmetic(options: ArithmeticOptions, data_dir: Path | None) -> Task:
    problems = procedural.arithmetic_problems(options)
    return _math_task(f"arithmetic_{options.split}", problems, options, options.extract)


def _load_reasoning_gym(options: ReasoningGymOptions, data_dir: Path | None) -> Task:
    problems = reasoning.generate(options)
    name = f"reasoning_gym_{options.name}_{options.split}"
    verifier = reasoning.ReasoningGymVerifier(options.extract, options.limits)
    form = reasoning.ANSWER_FORM if options.extract is None else _form(options.extract)
    return Task(name, problems, options.prompt, verifier, options.system_prompt, form)


def _load_dataset(options: DatasetOptions, data_dir: Path | None) -> Task:
    return _math_task(Path(options.path).stem, dataset_problems(options), options, options.extract)


def _load_benchmark(options: BenchmarkOptions, data_dir: Path | None) -> Task:
    name = file_name(options)
    problems = benchmark_problems(options, data_dir)
    return _math_task(name, problems, options, options.extract or BENCHMARKS[name].extract)


def _math_task(name: str, problems: Sequence[Problem], options: AnyTaskOptions, extract: Methods) -> Task:
    """A task whose answers are compared as mathematics."""
    verifier = MathVerifier(extract, options.limits)
    return Task(name, problems, options.prompt, verifier, options.system_prompt, _form(extract))


def _form(extract: Methods) -> str:
    """The shortest text in which some of the methods finds an answer; in a box, if one does."""
    return BOXED_FORM if extract == "auto" or "boxed" in extract else ANSWER_FORMS[extract[0]]


LOADERS: Mapping[str, Callable[[Any, Path | None], Task]] = {
    "arithmetic": _load_arithmetic,
    "reasoning_gym": _load_reasoning_gym,
    "dataset": _load_dataset,
    "benchmark": _load_benchmark,
}
ANSWER_FORMS: Mapping[str, str] = {
    "boxed": BOXED_FORM,
    "answer_is": "The answer is {answer}",
    "hashes": "#### {answer}",
    "bare": "{answer}",
    "last_number": "{answer}",
}
"""The shortest text in which each extraction method finds an answer."""
