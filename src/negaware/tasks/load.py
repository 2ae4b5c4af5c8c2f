"""From a task's options to the task: its problems, with their prompt and verifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from negaware.tasks.benchmarks import BENCHMARKS, benchmark_problems, file_name
from negaware.tasks.dataset import dataset_problems
from negaware.tasks.options import (
    AnyTaskOptions,
    ArithmeticOptions,
    BenchmarkOptions,
    DatasetOptions,
    ReasoningGymOptions,
)
from negaware.tasks.procedural import arithmetic_problems
from negaware.tasks.reasoning import ANSWER_FORM, ReasoningGymVerifier, generate
from negaware.tasks.task import BOXED_FORM, Task
from negaware.types import Problem, Verifier
from negaware.verifiers.extract import Method
from negaware.verifiers.function import FunctionVerifier
from negaware.verifiers.math import MathVerifier


def load_task(options: AnyTaskOptions, data_dir: Path | None = None, judge_folders: Sequence[Path] = (Path(),)) -> Task:
    """The task that the options name.

    `data_dir`: a folder whose files replace the hub's named sets; `judge_folders`: where a user's judge is looked for.
    ValueError for data that can't be found or read. Once it has graded, the task's verifier holds worker processes:
    close it.
    """
    problems: Sequence[Problem]
    extract: Literal["auto"] | tuple[Method, ...] | None
    if isinstance(options, ArithmeticOptions):
        name, problems, extract = f"arithmetic_{options.split}", arithmetic_problems(options), options.extract
    elif isinstance(options, ReasoningGymOptions):
        name, problems, extract = f"reasoning_gym_{options.name}_{options.split}", generate(options), options.extract
    elif isinstance(options, DatasetOptions):
        name, problems, extract = Path(options.path).stem, dataset_problems(options), options.extract
    elif isinstance(options, BenchmarkOptions):
        name = file_name(options)
        problems, extract = benchmark_problems(options, data_dir), options.extract or BENCHMARKS[name].extract
    if extract is None:
        form = ANSWER_FORM
    else:
        form = BOXED_FORM if extract == "auto" or "boxed" in extract else ANSWER_FORMS[extract[0]]
    verifier: Verifier
    if options.verifier:
        verifier = FunctionVerifier.named(options.verifier, judge_folders, options.limits)
    elif extract is None or isinstance(options, ReasoningGymOptions):
        verifier = ReasoningGymVerifier(extract, options.limits)
    else:
        verifier = MathVerifier(extract, options.limits)
    judges_truncated = options.truncated_answers == "judged"
    return Task(name, problems, options.prompt, verifier, options.system_prompt, form, judges_truncated)


ANSWER_FORMS = {
    "boxed": BOXED_FORM,
    "answer_is": "The answer is {answer}",
    "hashes": "#### {answer}",
    "bare": "{answer}",
    "last_number": "{answer}",
}
"""The shortest text in which each extraction method finds `answer`."""
