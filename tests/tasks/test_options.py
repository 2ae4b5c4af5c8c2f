import pytest
from pydantic import BaseModel, ValidationError

from negaware.tasks.options import (
    ArithmeticOptions,
    BenchmarkOptions,
    DatasetOptions,
    ReasoningGymOptions,
    TaskOptions,
    parse_task,
)


class Config(BaseModel):
    task: TaskOptions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gsm8k", BenchmarkOptions(name="gsm8k")),
        ("gsm8k:test", BenchmarkOptions(name="gsm8k", split="test")),
        ("aime24", BenchmarkOptions(name="aime24")),
        ("arithmetic", ArithmeticOptions()),
        ("arithmetic:test", ArithmeticOptions(split="test")),
        ("reasoning_gym:chain_sum", ReasoningGymOptions(name="chain_sum")),
        ("reasoning_gym:chain_sum:test", ReasoningGymOptions(name="chain_sum", split="test")),
        ("folder/problems.jsonl", DatasetOptions(path="folder/problems.jsonl")),
        ("P.JSONL", DatasetOptions(path="P.JSONL")),
        ("problems.parquet", DatasetOptions(path="problems.parquet")),
        ("someone/their-problems", DatasetOptions(path="someone/their-problems")),
    ],
)
def test_a_string_stands_for_options(text: str, expected: object) -> None:
    assert parse_task(text) == expected
    assert Config.model_validate({"task": text}).task == expected
    assert Config.model_validate({"task": expected.model_dump()}).task == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gsm8", "no task 'gsm8'; did you mean 'gsm8k'?"),
        ("arithmetics:test", "did you mean 'arithmetic'?"),
        ("gsm8k:validation", "expected train or test"),
        ("gsm8k:test:test", "expected train or test"),
        ("aime24:test", "one split"),
        ("reasoning_gym", "lacks the data set's name"),
        ("zzz", "tasks: arithmetic"),
    ],
)
def test_a_wrong_string_is_refused_with_a_way_out(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as refusal:
        parse_task(text)
    assert message in str(refusal.value)
    with pytest.raises(ValidationError):
        Config.model_validate({"task": text})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{kind: arithmetic, verifier: 'rules:judge'}", ArithmeticOptions(verifier="rules:judge")),
        (" {kind: dataset, path: a/b.jsonl, num_problems: 3}", DatasetOptions(path="a/b.jsonl", num_problems=3)),
    ],
)
def test_a_task_may_be_written_out(text: str, expected: object) -> None:
    assert parse_task(text) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{kind: arithmetic", "The task '{kind: arithmetic' can't be read; write it as {kind: …}, in quotes."),
        ("{kind: 2024-13-45}", "The task '{kind: 2024-13-45}' can't be read; write it as {kind: …}, in quotes."),
        (
            "{kind: dataset, kind: b}",
            "The task '{kind: dataset, kind: b}' can't be read; write it as {kind: …}, in quotes.",
        ),
        ("{kind: arithmetic, vrifier: a}", "task.vrifier is no known field; did you mean task.verifier?"),
        ("{kind: arithmetic, seed: true}", "task.seed is True; it should be a whole number."),
        ("{kind: dataset}", "task.path is missing; add it."),
        ("{kind: gsm8k}", "task.kind is 'gsm8k'; it must be one of arithmetic, reasoning_gym, dataset, benchmark."),
        (
            "{path: problems.jsonl}",
            "task is {'path': 'problems.jsonl'}, which has no kind; it must be one of arithmetic, reasoning_gym, "
            "dataset, benchmark.",
        ),
        ("aime24:test", "task: split is for gsm8k alone, aime24 has one split; leave it out."),
        ("gsm8k:low", "task: 'gsm8k:low' ends in 'low'; expected train or test there."),
    ],
)
def test_what_is_wrong_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as refusal:
        parse_task(text)
    assert str(refusal.value) == sentence


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "arithmetic", "low": 5, "high": 4}, "low must not exceed high"),
        ({"kind": "arithmetic", "forms": ["add", "add"]}, "must not repeat"),
        ({"kind": "arithmetic", "form": ["add"]}, "Extra inputs"),
        ({"kind": "arithmetic", "num_problems": 0}, "greater than or equal to 1"),
        ({"kind": "dataset", "path": "a.jsonl", "prompt": "Solve it."}, "must contain {question}"),
        ({"kind": "dataset", "path": "a.jsonl", "extract": []}, "must name a method"),
        ({"kind": "dataset", "path": "a.jsonl", "extract": ["box"]}, "no method 'box'; did you mean 'boxed'?"),
        ({"kind": "dataset", "path": "a.jsonl", "extract": 3}, "no method 3 (auto, or some of boxed"),
        ({"kind": "benchmark", "name": "math", "split": "test"}, "one split"),
        ({"kind": "table"}, "does not match any of the expected tags"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        Config.model_validate({"task": options})
    assert message in str(refusal.value)


def test_one_method_needs_no_list() -> None:
    assert DatasetOptions(path="a.jsonl", extract="boxed").extract == ("boxed",)  # type: ignore[arg-type]
    assert DatasetOptions(path="a.jsonl", extract=["hashes", "bare"]).extract == ("hashes", "bare")  # type: ignore[arg-type]
    assert DatasetOptions(path="a.jsonl", extract="auto").extract == "auto"


def test_every_option_says_what_it_is() -> None:
    for kind in (ArithmeticOptions, ReasoningGymOptions, DatasetOptions, BenchmarkOptions):
        fields = {name: field for name, field in kind.model_fields.items() if name != "kind"}
        assert all(field.description for field in fields.values()), kind
