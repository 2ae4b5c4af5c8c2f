"""What a user can hand over, garbled by hypothesis: it is used, or refused in one sentence, and never takes long.

A few hundred cases here; ten thousand in the slow test. A case that runs too long is ended by an alarm and fails.
"""

from __future__ import annotations

import copy
import io
import json
import shutil
import signal
import warnings
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from negaware import cli
from negaware.complaint import sentence_of
from negaware.config import load_config, parse_config
from negaware.models.load import load_policy
from negaware.tasks.dataset import Columns, problems_from, read_jsonl
from negaware.tasks.options import parse_task
from negaware.verifiers import grade
from tiny_run import tiny_config, write_tiny_config, write_tiny_model

SECONDS = 10

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 70),
    st.sampled_from([10**8, 2**63, -(2**63) - 1, 10**40, 0, -1, 1]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "nft", "arithmetic", "\ud800", "a\x00b", "../x", "{", "*a", "1e400", "-", "auto", "local"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
texts = st.one_of(
    st.text(max_size=60),
    st.text("[]{}:,-&*!|>%@`'\"#\n ab1?<", max_size=60),
    st.lists(st.sampled_from(["a: ", "&a ", "*a", "[", "]", "{", "}", "- ", "\n", "  ", "<<: ", "!!int ", "1"])).map(
        "".join
    ),
)
lines = st.one_of(
    st.binary(max_size=60),
    values.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(
        st.sampled_from(["question", "answer", "prediction", "gold", "id"]), values, min_size=1, max_size=5
    ).map(lambda row: json.dumps(row).encode()),
)
data_files = st.lists(lines, max_size=4).map(b"\n".join)


class TooLongError(BaseException):
    """A case that would hold a user's terminal."""


@contextmanager
def _timed():
    def end(*_: Any) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refused_in_a_sentence(use: Callable[[], object]) -> None:
    """Fails for anything but a result, or an error that `cli.main` tells in one sentence."""
    try:
        with _timed(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            use()
    except (ValueError, OSError) as error:
        sentence = sentence_of(error)
        assert sentence
        assert sentence.strip()
        assert len(sentence) < 2000
        print(f"negaware: error: {sentence}".encode(errors="backslashreplace").decode(), file=io.StringIO())


def paths(data: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a value stands in nested mappings."""
    if not isinstance(data, dict):
        return [above]
    return [above, *(path for key, inner in data.items() for path in paths(inner, (*above, key)))]


def put(data: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        data = data[key]
    data[path[-1]] = value


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    write_tiny_config(folder)
    write_tiny_model(folder / "whole")
    return folder


def config_values(draw: Any, folder: Path) -> None:
    data = copy.deepcopy(tiny_config(folder))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([path for path in paths(data) if path]))
        path = (*path[:-1], draw(st.text(max_size=4))) if draw(st.integers(0, 5)) == 0 else path
        put(data, path, draw(values))
    refused_in_a_sentence(lambda: parse_config(data, default_folder=folder / "x"))


def config_text(draw: Any, folder: Path) -> None:
    path = folder / "garbled.yaml"
    whole = yaml.safe_dump(tiny_config(folder))
    if draw(st.booleans()):
        place, length = draw(st.integers(0, len(whole))), draw(st.integers(0, 20))
        text = whole[:place] + draw(texts) + whole[place + length :]
    else:
        text = draw(texts)
    path.write_bytes(text.encode(errors="surrogatepass"))
    refused_in_a_sentence(lambda: load_config(path))


def overrides(draw: Any, folder: Path) -> None:
    names = [".".join(path) for path in paths(tiny_config(folder)) if path] + ["objective.name", "rollout.engine.url"]
    arguments = []
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(names) | st.text(max_size=8))
        value = draw(texts | scalars.map(str) | values.map(lambda value: json.dumps(value)))
        arguments += [f"--{name}", value] if draw(st.integers(0, 9)) else [name]
    refused_in_a_sentence(lambda: load_config(folder / "tiny.yaml", arguments))


def task_names(draw: Any, folder: Path) -> None:
    kinds = ["arithmetic", "gsm8k", "reasoning_gym:", "x.jsonl", "a/b", "{kind: dataset, path: ", "{kind: benchmark"]
    text = draw(st.sampled_from(["", *kinds])) + draw(texts)
    refused_in_a_sentence(lambda: parse_task(text))


def problem_files(draw: Any, folder: Path) -> None:
    path = folder / "garbled.jsonl"
    path.write_bytes(draw(data_files))

    def use() -> None:
        for problem in problems_from(read_jsonl(path), "x", Columns("question", "answer", keep_row=True)):
            f"{problem.question}{problem.answer}{problem.id}".encode()

    refused_in_a_sentence(use)


def graded_files(draw: Any, folder: Path) -> None:
    path = folder / "garbled.jsonl"
    path.write_bytes(draw(data_files))

    def use() -> None:
        with grade._open(path) as file:
            list(grade._pairs(file, path))

    refused_in_a_sentence(use)


def command_lines(draw: Any, folder: Path) -> None:
    """Through `main`, which turns every error into an exit code."""
    commands = {
        "train": ["--dry-run", "--resume", "--force", "--rollout.engine", "--run.steps", "--training.betas"],
        "grade": ["-o", "--extract"],
        "report": ["-o"],
        "compare": ["--objectives", "--seeds"],
        "audit": ["--data-dir"],
    }
    command = draw(st.sampled_from(sorted(commands)))
    first = draw(st.sampled_from(["nowhere.yaml", str(folder), str(folder / "garbled.jsonl")]) | st.text(max_size=6))
    arguments = [command, first]
    for _ in range(draw(st.integers(0, 3))):
        arguments.append(draw(st.sampled_from([*commands[command], "--help", "--", "-"]) | st.text(max_size=6)))
    out, err = io.StringIO(), io.StringIO()

    def use() -> None:
        with redirect_stdout(out), redirect_stderr(err), suppress(SystemExit):
            assert cli.main(arguments) in (0, 1, 2)

    refused_in_a_sentence(use)
    assert "Traceback" not in err.getvalue()


SIZES = {
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
}  # fmt: skip


def model_files(draw: Any, folder: Path) -> None:
    model = folder / "garbled"
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(folder / "whole", model)
    name = draw(st.sampled_from(["config.json", "config.json", "generation_config.json", "tokenizer_config.json"]))
    path = model / name
    if draw(st.integers(0, 4)):
        data = json.loads(path.read_text())
        for _ in range(draw(st.integers(1, 2))):
            key = draw(st.sampled_from(sorted({*data, *(SIZES if name == "config.json" else ())})))
            data[key] = draw(values)
        path.write_text(json.dumps(data))
    else:
        path.write_bytes(draw(data_files))

    def use() -> None:
        policy = load_policy(str(model), torch.float32)
        policy.codec.encode([{"role": "user", "content": "1+1"}])

    refused_in_a_sentence(use)


CASES = {  # what is garbled → how many cases of ten thousand
    config_values: 2500,
    config_text: 2000,
    overrides: 2000,
    task_names: 1000,
    problem_files: 1000,
    graded_files: 500,
    command_lines: 600,
    model_files: 400,
}


def check(garble: Callable[[Any, Path], None], folder: Path, num_cases: int) -> None:
    @settings(
        max_examples=num_cases, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def one(data: Any) -> None:
        garble(data.draw, folder)

    one()


@pytest.mark.parametrize("garble", CASES, ids=lambda garble: garble.__name__)
def test_a_few_garbled_inputs(garble, folder, monkeypatch):
    monkeypatch.chdir(folder)
    check(garble, folder, CASES[garble] // 80)


@pytest.mark.slow
@pytest.mark.parametrize("garble", CASES, ids=lambda garble: garble.__name__)
def test_ten_thousand_garbled_inputs(garble, folder, monkeypatch):
    monkeypatch.chdir(folder)
    check(garble, folder, CASES[garble])
