"""The named mathematics sets: where each is on the hub, its columns, and where an answer is looked for.

With a folder of local files the hub isn't asked.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from negaware.tasks.dataset import Columns, problems_from, read_jsonl, read_rows
from negaware.tasks.options import BenchmarkOptions
from negaware.types import Problem
from negaware.verifiers.extract import Method, extract_answer

# The prompt asks for a box; models that forget it write "the answer is". The last number is not used: an answer that
# was cut off ends in some number too, and on sets of small integers that is often the right one.
BOXED_ANSWERS: tuple[Method, ...] = ("boxed", "answer_is")
# GSM8K is the exception: its published figures take the last number if no answer is marked, its few-shot examples mark
# it by ####, and the small models that are trained on it seldom write a box at first.
WORD_PROBLEM_ANSWERS: tuple[Method, ...] = ("boxed", "hashes", "answer_is", "last_number")


def _after_hashes(solution: str) -> str:
    """GSM8K's gold answer: what follows `####`, without commas in numbers."""
    return solution.rpartition("####")[2].strip().replace(",", "")


def _last_box(solution: str) -> str:
    """MATH's gold answer: the last box of the solution."""
    return extract_answer(solution, ("boxed",)) or ""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One set on the hub, its columns, and the extraction methods of its answers in order of preference."""

    hub: str
    split: str
    columns: Columns
    extract: tuple[Method, ...] = BOXED_ANSWERS
    subset: str | None = None


_GSM8K_COLUMNS = Columns("question", "answer", gold=_after_hashes)

BENCHMARKS: Mapping[str, Benchmark] = {
    "gsm8k_train": Benchmark("openai/gsm8k", "train", _GSM8K_COLUMNS, WORD_PROBLEM_ANSWERS, "main"),
    "gsm8k_test": Benchmark("openai/gsm8k", "test", _GSM8K_COLUMNS, WORD_PROBLEM_ANSWERS, "main"),
    "math_train": Benchmark(
        "DigitalLearningGmbH/MATH-lighteval", "train", Columns("problem", "solution", gold=_last_box)
    ),
    # The original set (BytedTsinghua-SIA/DAPO-Math-17k) repeats each question a hundred times inside a prompt; this is
    # the same set with bare questions, once each, without the Chinese ones.
    "dapo_math_17k": Benchmark("open-r1/DAPO-Math-17k-Processed", "train", Columns("prompt", "solution"), subset="en"),
    "aime24": Benchmark("HuggingFaceH4/aime_2024", "train", Columns("problem", "answer", "id")),
    "aime25": Benchmark("math-ai/aime25", "test", Columns("problem", "answer", "id")),
    "amc23": Benchmark("math-ai/amc23", "test", Columns("question", "answer", "id")),
    "math500": Benchmark("HuggingFaceH4/MATH-500", "test", Columns("problem", "answer", "unique_id")),
    "olympiadbench": Benchmark(
        "Hothan/OlympiadBench", "train", Columns("question", "final_answer", "id"), subset="OE_TO_maths_en_COMP"
    ),
    "minerva_math": Benchmark("math-ai/minervamath", "test", Columns("question", "answer")),
}
"""By the name of the local file that replaces the hub's, `<name>.jsonl` with id, question and answer."""

LOCAL_COLUMNS = Columns("question", "answer", "id")
_FILES = {"gsm8k": "gsm8k_{split}", "math": "math_train"}


def file_name(options: BenchmarkOptions) -> str:
    """The set's key in BENCHMARKS, which is its file's name without the suffix: `gsm8k_train`."""
    return _FILES.get(options.name, options.name).replace("{split}", options.split or "train")


def benchmark_problems(options: BenchmarkOptions, data_dir: Path | None) -> list[Problem]:
    """The set's problems, from `data_dir` if given, else from the hub.

    ValueError for a file that isn't in the folder, and for rows that can't be read.
    """
    name = file_name(options)
    if data_dir is not None:
        path = data_dir / f"{name}.jsonl"
        if not path.is_file():
            raise ValueError(
                f"task {options.name} needs the file {path.name}, which {data_dir} lacks; put it there "
                "(columns id, question, answer), or leave the folder out to use the hub"
            )
        return problems_from(itertools.islice(read_jsonl(path), options.num_problems), name, LOCAL_COLUMNS)
    return hub_problems(BENCHMARKS[name], name, options.num_problems)


def hub_problems(benchmark: Benchmark, name: str, num_problems: int | None = None) -> list[Problem]:
    """The problems of a set in the hub's own columns."""
    rows = read_rows(benchmark.hub, benchmark.subset, benchmark.split)
    return problems_from(itertools.islice(rows, num_problems), name, benchmark.columns)
