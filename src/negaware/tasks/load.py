"""From a task's options to the task: its problems, with their prompt and verifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from negaware.verifiers.function import FunctionVerifier
from negaware.verifiers.math import MathVerifier


def load_task(options: AnyTaskOptions, data_dir: Path | None = None, judge_folders: Sequence[Path] = (Path(),)) -> Task:
    """The task that the options name. `data_dir`: a folder whose files stand in for the hub's named sets;
    `judge_folders`: where a judge of one's own is looked for.

    Raises ValueError for data that can't be had or read. The task's verifier holds worker processes once it has
    graded: close it.
    """
    task = LOADERS[options.kind](options, data_dir)
    if not options.verifier:
        return task
    verifier = FunctionVerifier.named(options.verifier, judge_folders)
    return replace(task, verifier=verifier, judges_truncated=options.truncated_answers == "judged")


def _load_arithmetic(options: ArithmeticOptions, data_dir: Path | None) -> Task:
    problems = procedural.arithmetic_problems(options)
    # A small model seldom writes the box: the last number is what it can be taught from.
    verifier = MathVerifier(extract=("last_number",))
    return Task(f"arithmetic_{options.split}", problems, procedural.PROMPT, verifier, answer_form="{answer}")


def _load_reasoning_gym(options: ReasoningGymOptions, data_dir: Path | None) -> Task:
    problems = reasoning.generate(options)
    name = f"reasoning_gym_{options.name}_{options.split}"
    verifier = reasoning.ReasoningGymVerifier()
    return Task(name, problems, reasoning.PROMPT, verifier, answer_form=reasoning.ANSWER_FORM)


def _load_dataset(options: DatasetOptions, data_dir: Path | None) -> Task:
    problems = dataset_problems(options)
    verifier = MathVerifier(extract=options.extract)
    boxed = options.extract == "auto" or "boxed" in options.extract
    form = BOXED_FORM if boxed else ANSWER_FORMS[options.extract[0]]
    return Task(Path(options.path).stem, problems, options.prompt, verifier, options.system_prompt, form)


def _load_benchmark(options: BenchmarkOptions, data_dir: Path | None) -> Task:
    name = file_name(options)
    problems = benchmark_problems(options, data_dir)
    verifier = MathVerifier(extract=BENCHMARKS[name].extract)
    return Task(name, problems, options.prompt, verifier, options.system_prompt)


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
