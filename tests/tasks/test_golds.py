"""A run checks the gold answers of its own data: once, beside its other work, and before it learns from them."""

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from negaware.cache_folder import cache_folder
from negaware.config import parse_config
from negaware.loop import parts
from negaware.loop.train import train
from negaware.rollout.collect import Collector
from negaware.tasks import golds
from negaware.tasks.audit import audit_task
from negaware.tasks.golds import GoldCheck
from negaware.tasks.load import load_task
from negaware.tasks.options import DatasetOptions
from negaware.tasks.task import Task
from negaware.verifiers import math
from negaware.verifiers.function import FunctionVerifier
from negaware.verifiers.math import MathVerifier
from tiny_run import tiny_config


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEGAWARE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "golds"


def task_of(folder: Path, answers: list[str], **rest: Any) -> Task:
    path = folder / "own.jsonl"
    path.write_text("\n".join(json.dumps({"question": "?", "answer": answer}) for answer in answers))
    return load_task(DatasetOptions(path=str(path), **rest))


def was_checked(task: Task) -> bool:
    """Whether this check had to grade anything, which it does in workers if there is much; it must pass."""
    assert isinstance(task.verifier, MathVerifier)
    with closing(task.verifier), pytest.MonkeyPatch.context() as patch:
        patch.setattr(math, "_PART", 1)
        check = GoldCheck([("own", task)])
        check.require()
        check.stop()
        return task.verifier._pool.started


def test_the_same_data_is_checked_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ["1", r"\frac{\sqrt{3}}{2}", "x + 1"]
    assert was_checked(task_of(tmp_path, answers))
    (marker,) = cache.iterdir()
    assert marker.read_text() == "3 gold answers of own passed their verifier.\n"
    assert not was_checked(task_of(tmp_path, answers))
    assert was_checked(task_of(tmp_path, [*answers[:2], "x + 2"]))  # other answers
    assert was_checked(task_of(tmp_path, answers, extract=("hashes",)))  # found in another way
    monkeypatch.setattr(golds, "_LIBRARIES", ("sympy",))
    assert was_checked(task_of(tmp_path, answers))  # by another grader
    assert len(list(cache.iterdir())) == 4


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.delenv("NEGAWARE_CACHE")
    assert cache_folder() == Path("/home/ann/.cache/negaware")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/negaware")
    monkeypatch.setenv("NEGAWARE_CACHE", "/mine")
    assert cache_folder() == Path("/mine")


def test_a_cache_that_cant_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NEGAWARE_CACHE", str(tmp_path / "file"))
    assert was_checked(task_of(tmp_path, ["1", "2"]))
    assert was_checked(task_of(tmp_path, ["1", "2"]))


def test_a_gold_answer_that_fails_is_named_each_time(tmp_path: Path, cache: Path) -> None:
    for _ in range(2):
        task = task_of(tmp_path, ["1"] * 700 + [r"\frac{1}{", "2"])
        with closing(task.verifier):
            check = GoldCheck([("own", task)])
            with pytest.raises(ValueError, match=r"own: 1 of 702 gold answers can't be graded, .* own/700 \(no value"):
                check.require()
            check.stop()
    assert not cache.exists()


def test_a_check_that_takes_long_goes_on_beside_the_first_rollout(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ends the run before it learns: the check is held up here until answers are sampled for training."""
    sampling = threading.Event()
    next_rollout, find_failures = Collector.next_rollout, golds.find_failures

    def announced(*arguments: Any) -> Any:
        sampling.set()
        return next_rollout(*arguments)

    def held_up(task: Task) -> Iterator[Any]:
        assert sampling.wait(60)
        yield from find_failures(task)

    monkeypatch.setattr(Collector, "next_rollout", announced)
    monkeypatch.setattr(golds, "find_failures", held_up)
    monkeypatch.setattr(parts, "GOLDS_PATIENCE", 0.1)
    config = tiny_config(tmp_path)
    data = tmp_path / "train.jsonl"
    data.write_text(data.read_text() + '{"question": "0+1", "answer": "\\\\frac{1}{"}\n')
    with pytest.raises(ValueError, match=r"train\.jsonl: 1 of 10 gold answers can't be graded, .* train/9"):
        train(parse_config(config))
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000000"]


def test_a_check_that_is_stopped_leaves_its_batch(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 answers that take 0.4 s each and are graded together, few are graded."""
    graded = tmp_path / "graded"
    (tmp_path / "slow_rules.py").write_text(
        "import time\ndef is_right(answer, problem):\n"
        f"    open({str(graded)!r}, 'a').write('.')\n    time.sleep(0.4)\n    return True\n"
    )
    verifier = FunctionVerifier.named("slow_rules:is_right", [tmp_path])
    task = replace(task_of(tmp_path, ["1"] * 100), verifier=verifier)
    monkeypatch.setattr(golds, "_PATIENCE", 0.1)
    check = GoldCheck([("own", task)])
    while not graded.exists():
        check._thread.join(0.05)
    check.stop()
    check._thread.join(60)
    verifier.close()
    assert not check._thread.is_alive()
    assert len(graded.read_text()) < 100
    assert not cache.exists()


@pytest.mark.parametrize(
    "rest", [{}, {"extract": ("last_number",)}, {"extract": ("answer_is",)}], ids=["auto", "last", "is"]
)
def test_a_worked_solution_is_a_gold_answer(tmp_path: Path, cache: Path, rest: dict[str, Any]) -> None:
    answers = ["He has 3+4=<<3+4=7>>7 pens.\n#### 7", r"We get $x = 6 + 1$, so $\boxed{7}$.", "7", "#### 1,300"]
    task = task_of(tmp_path, answers, **rest)
    with closing(task.verifier):
        result = audit_task(task)
        assert (result.num_passing, result.textual) == (4, ())
        problems = list(task.problems)
        texts = [task.as_answer("7")] * 4
        assert [verdict.correct for verdict in task.verifier.grade(texts, problems)] == [True, True, True, False]
