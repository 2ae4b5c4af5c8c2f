"""The options of a task, and the strings that name one. No data is loaded here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import PurePath
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from negaware.validation import Options, read_yaml, validated
from negaware.verifiers.extract import Method
from negaware.verifiers.limits import Limits

Split = Literal["train", "test"]
ArithmeticForm = Literal["add", "subtract", "multiply", "add_subtract"]
BenchmarkName = Literal[
    "gsm8k",
    "math",
    "dapo_math_17k",
    "aime24",
    "aime25",
    "amc23",
    "math500",
    "olympiadbench",
    "minerva_math",
]
STEP_BY_STEP_PROMPT = "{question}\nPlease reason step by step, and put your final answer within \\boxed{}."
"""The prompt of the Qwen2.5-Math evaluations, which most published figures on these sets use."""
BOXED_PROMPT = "{question} Put your final answer within \\boxed{}."
ANSWER_TAG_PROMPT = "{question}\nGive your final answer between <answer> and </answer>, and nothing else there."
PROMPTS = {
    "step_by_step": STEP_BY_STEP_PROMPT,
    "boxed": BOXED_PROMPT,
    "answer_tag": ANSWER_TAG_PROMPT,
    "bare": "{question}",
    "dapo": (
        "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
        "\\boxed{$Answer} (without quotes) where $Answer is the answer to the problem.\n\n{question}\n\n"
        'Remember to put your answer on its own line after "Answer:".'
    ),
}
"""Prompts by name. `dapo` is DAPO-Math-17k's (arXiv 2503.14476), with a box around the answer, as in the data of NFT's
code (docs/paper.md)."""


def _known_methods(value: object) -> object:
    """The methods as a tuple. ValueError for an unknown method, and for none at all."""
    if value == "auto":
        return value
    methods, known = tuple(value) if isinstance(value, list | tuple) else (value,), get_args(Method)
    if not methods:
        raise ValueError(f"extract must name a method ({', '.join(known)}) or be auto")
    for method in methods:
        if method not in known:
            near = did_you_mean(str(method), known)
            raise ValueError(f"there is no method {method!r}{near} (auto, or some of {', '.join(known)})")
    return methods


Extract = Annotated[Literal["auto"] | tuple[Method, ...], BeforeValidator(_known_methods)]
OptionalExtract = Annotated[
    Literal["auto"] | tuple[Method, ...] | None,
    BeforeValidator(lambda value: None if value is None else _known_methods(value)),
]


class _TaskOptions(Options):
    """The options of every kind of task; each kind also has `extract`, where an answer is looked for in a text."""

    prompt: str = STEP_BY_STEP_PROMPT
    """The user's message, with {question} in the question's place; or a name: step_by_step, boxed, answer_tag, dapo,
    bare (the question alone)."""
    system_prompt: str | None = None
    """The system's message. None: that of the model's chat template, if it has one."""
    verifier: str | None = None
    """Your own judge, module:function, in a file beside the config or where negaware is started: a function of an
    answer's text and the problem that returns True or False."""
    limits: Limits = Limits()
    """Limits of the worker processes that judge answers."""
    truncated_answers: Literal["wrong", "judged"] = "wrong"
    """wrong: an answer cut off at the length limit is always wrong. judged: your own judge decides, as for others."""

    @field_validator("verifier")
    @classmethod
    def _names_a_function(cls, value: str | None) -> str | None:
        if value is not None and ":" not in value:
            raise ValueError(f"{value!r} names no function; write module:function, such as my_rules:is_right")
        return value

    @model_validator(mode="after")
    def _has_a_judge(self) -> _TaskOptions:
        if self.truncated_answers == "judged" and self.verifier is None:
            raise ValueError("truncated_answers: judged is for your own judge; name it in verifier, or leave this out")
        return self

    @field_validator("prompt")
    @classmethod
    def _holds_the_question(cls, value: str) -> str:
        value = PROMPTS.get(value, value)
        if "{question}" not in value:
            raise ValueError(f"prompt must contain {{question}}, or be one of {', '.join(PROMPTS)}, got {value!r}")
        return value


class ArithmeticOptions(_TaskOptions):
    """Generated sums, differences and products of small numbers; no result is negative."""

    kind: Literal["arithmetic"] = "arithmetic"
    split: Split = "train"
    """train and test have no problem in common, whatever their other options are."""
    num_problems: int | None = Field(default=None, ge=1)
    """None: every problem of the split once. A larger number repeats problems in train, and is refused in test."""
    seed: int = 0
    """Decides the order and, with `num_problems`, the choice."""
    low: int = Field(default=2, ge=0, le=100)
    """Smallest operand."""
    high: int = Field(default=12, ge=0, le=100)
    """Largest operand."""
    forms: tuple[ArithmeticForm, ...] = Field(default=get_args(ArithmeticForm), min_length=1)
    """Which of a + b, a - b, a * b and a + b - c to ask, in turn."""
    prompt: str = BOXED_PROMPT
    """The user's message, as in other tasks; by default `boxed`."""
    extract: Extract = ("last_number",)
    """Where an answer is looked for in a text: a method, methods in order of preference, or auto. By default the last
    number, for a small model seldom writes a box."""

    @model_validator(mode="after")
    def _check(self) -> ArithmeticOptions:
        if self.low > self.high:
            raise ValueError(f"low must not exceed high, got low={self.low} and high={self.high}")
        if len(set(self.forms)) < len(self.forms):
            raise ValueError(f"forms must not repeat, got {', '.join(self.forms)}")
        return self


class ReasoningGymOptions(_TaskOptions):
    """A data set of reasoning-gym, generated. An answer is right if the data set's scorer gives it exactly 1."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    name: str
    """Its name in reasoning-gym, such as chain_sum."""
    parameters: dict[str, Any] = Field({})
    """Its parameters, such as {"min_terms": 2, "max_terms": 4}."""
    split: Split = "train"
    """train and test have no question in common, whatever their seeds and sizes are."""
    num_problems: int = Field(default=1000, ge=1, le=100_000)
    """How many problems to generate."""
    seed: int = Field(default=0, ge=0, le=1000)
    """Another seed generates other problems."""
    prompt: str = ANSWER_TAG_PROMPT
    """The user's message, as in other tasks; by default `answer_tag`. With `extract`, ask for what it finds."""
    extract: OptionalExtract = None
    """Where an answer is looked for in a text: a method, methods in order of preference, or auto. None: in the last
    `<answer>` tag, or the whole text if there is none."""

    @model_validator(mode="after")
    def _finds_what_is_asked_for(self) -> ReasoningGymOptions:
        if self.extract is not None and self.prompt == ANSWER_TAG_PROMPT:
            raise ValueError(
                "prompt asks for an answer between <answer> tags, which extract doesn't look for; set prompt to boxed "
                "or other words of yours, or leave extract out"
            )
        return self


class DatasetOptions(_TaskOptions):
    """Your own problems: a file, or a data set of the hub, with named columns."""

    kind: Literal["dataset"] = "dataset"
    path: str
    """A .jsonl or .parquet file, or a data set's name on the hub."""
    subset: str | None = None
    """The hub data set's configuration."""
    split: str = "train"
    """The hub data set's split; a file has none."""
    question_column: str = "question"
    """The column with the question's text."""
    answer_column: str | None = "answer"
    """The column with the gold answer: a text or a number. None: there is none; then give your own `verifier`."""
    id_column: str | None = None
    """The column with an identifier. None: the row's number."""
    extract: Extract = "auto"
    """Where an answer is looked for in a text: a method, methods in order of preference, or auto."""
    num_problems: int | None = Field(default=None, ge=1)
    """Take this many from the start. None: all."""

    @model_validator(mode="after")
    def _check(self) -> DatasetOptions:
        if self.answer_column is None and self.verifier is None:
            raise ValueError("answer_column is null, so nothing can be graded; name the column, or give a verifier")
        return self


class BenchmarkOptions(_TaskOptions):
    """A named mathematics set, from the hub or from a folder of local files."""

    kind: Literal["benchmark"] = "benchmark"
    name: BenchmarkName
    """Which set."""
    split: Split | None = None
    """Only gsm8k has both train (the default) and test."""
    num_problems: int | None = Field(default=None, ge=1)
    """Take this many from the start. None: all."""
    extract: OptionalExtract = None
    """Where an answer is looked for in a text: a method, methods in order of preference, or auto. None: in a box, else
    after "the answer is"; in gsm8k also after ####, else the last number."""

    @model_validator(mode="after")
    def _check(self) -> BenchmarkOptions:
        if self.split is not None and self.name != "gsm8k":
            raise ValueError(f"split is for gsm8k alone, {self.name} has one split; leave it out")
        return self


AnyTaskOptions = Annotated[
    ArithmeticOptions | ReasoningGymOptions | DatasetOptions | BenchmarkOptions, Field(discriminator="kind")
]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?` for the known name nearest to `name`, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def parse_task(text: str) -> ArithmeticOptions | ReasoningGymOptions | DatasetOptions | BenchmarkOptions:
    """The options of a task named on the command line: a name (see `task_fields`), or {kind: …} as in a config.

    ValueError for anything else.
    """
    task: object = text
    if text.lstrip().startswith("{"):
        try:
            task = read_yaml(text)
        except ValueError as error:
            raise ValueError(f"The task {text!r} can't be read; write it as {{kind: …}}, in quotes.") from error
    return validated(_WithTask, {"task": task}).task


def task_fields(name: str) -> dict[str, str]:
    """The options of a named task: `gsm8k`, `gsm8k:test`, `arithmetic:test`, `reasoning_gym:chain_sum`,
    `reasoning_gym:chain_sum:test`, `problems.jsonl`, `owner/hub-data-set`. ValueError for any other name.
    """
    if PurePath(name).suffix.lower() in (".jsonl", ".parquet") or "/" in name:
        return {"kind": "dataset", "path": name}
    first, *rest = name.split(":")
    if first == "reasoning_gym":
        if not rest or not rest[0]:
            raise ValueError(f"{name!r} lacks the data set's name; write for instance reasoning_gym:chain_sum")
        return {"kind": first, "name": rest[0], **_split(name, rest[1:])}
    if first == "arithmetic":
        return {"kind": first, **_split(name, rest)}
    if first in get_args(BenchmarkName):
        return {"kind": "benchmark", "name": first, **_split(name, rest)}
    known = ("arithmetic", "reasoning_gym:NAME", *get_args(BenchmarkName))
    suggestion = did_you_mean(first, ("arithmetic", "reasoning_gym", *get_args(BenchmarkName)))
    raise ValueError(
        f"there is no task {first!r}{suggestion} (tasks: {', '.join(known)}, a .jsonl or .parquet file, "
        "owner/name of a hub data set, or {kind: …})"
    )


def _split(name: str, rest: list[str]) -> dict[str, str]:
    if not rest:
        return {}
    if len(rest) > 1 or rest[0] not in get_args(Split):
        raise ValueError(f"{name!r} ends in {':'.join(rest)!r}; expected train or test there")
    return {"split": rest[0]}


TaskOptions = Annotated[
    AnyTaskOptions, BeforeValidator(lambda value: task_fields(value) if isinstance(value, str) else value)
]
"""A task in a config: one of the four kinds, or the string that names it."""


class _WithTask(Options):
    """Errors then name the field `task`."""

    task: TaskOptions
