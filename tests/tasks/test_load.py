import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from negaware.tasks import audit
from negaware.tasks.audit import audit_task
from negaware.tasks.load import ANSWER_FORMS, load_task
from negaware.tasks.options import ArithmeticOptions, DatasetOptions, Method, ReasoningGymOptions, parse_task
from negaware.tasks.task import Task
from negaware.types import Problem
from negaware.verifiers.extract import METHODS
from negaware.verifiers.math import MathVerifier


@pytest.fixture(scope="module")
def arithmetic() -> Iterator[Task]:
    task = load_task(ArithmeticOptions(split="test", num_problems=20))
    yield task
    task.verifier.close()


def test_messages_keep_the_prompts_other_braces(arithmetic: Task) -> None:
    problem = Problem("p", r"What is {question} of \frac{1}{2}?", "1")
    content = rf"{problem.question} Put your final answer within \boxed{{}}."
    assert arithmetic.messages(problem) == [{"role": "user", "content": content}]
    told = Task("toy", (problem,), "{question}", arithmetic.verifier, system_prompt="Be {brief}.")
    assert told.messages(problem)[0] == {"role": "system", "content": "Be {brief}."}
    assert [message["role"] for message in told.messages(problem)] == ["system", "user"]


def test_arithmetic_takes_the_last_number(arithmetic: Task) -> None:
    problem = Problem("p", "What is 5 - 7?", "-2")
    texts = ["5 - 7 = -2", "-2, I think. Or 3", r"\boxed{-2}", "5 - 7 is two"]
    assert [verdict.correct for verdict in arithmetic.verifier.grade(texts, [problem] * 4)] == [
        True,
        False,
        True,
        False,
    ]


def test_a_cut_off_answer_is_wrong(arithmetic: Task) -> None:
    problem = Problem("p", "What is 5 - 7?", "-2")
    verdicts = arithmetic.grade(["5 - 7 = -2"] * 2 + ["well"], [problem] * 3, ["stop", "length", "length"])
    assert [(verdict.correct, verdict.reason) for verdict in verdicts] == [
        (True, "correct"),
        (False, "wrong"),
        (False, "no_answer"),
    ]


def test_generated_tasks_pass_their_audit(arithmetic: Task) -> None:
    result = audit_task(arithmetic)
    assert (result.num_problems, result.num_passing, result.conflicts) == (20, 20, ())


def test_reasoning_gym_grades_in_its_own_way() -> None:
    pytest.importorskip("reasoning_gym")
    task = load_task(ReasoningGymOptions(name="chain_sum", num_problems=5))
    problems = [task.problems[0]] * 4
    texts = [task.as_answer(problems[0].answer), task.as_answer("x"), "nothing", ""]
    with closing(task.verifier):
        verdicts = task.verifier.grade(texts, problems)
        assert audit_task(task).failures == ()
    assert [verdict.reason for verdict in verdicts] == ["correct", "wrong", "wrong", "no_answer"]
    assert verdicts[0].extracted == problems[0].answer


def test_reasoning_gym_is_taught_in_the_demos_way() -> None:
    """A small model writes no <answer> tag. Asked for a box, its last number taken, the scorer gets the bare value."""
    pytest.importorskip("reasoning_gym")
    usual = load_task(ReasoningGymOptions(name="chain_sum", num_problems=1))
    demos = parse_task("{kind: reasoning_gym, name: chain_sum, num_problems: 1, prompt: boxed, extract: last_number}")
    task = load_task(demos)
    problem = task.problems[0]
    gold = problem.answer
    texts = [f"The answer is {gold}.", f"It is {gold}1.", "It is large."]
    with closing(task.verifier), closing(usual.verifier):
        found = task.grade(texts, [problem] * 3, ["stop"] * 3)
        unfound = usual.grade(texts[:1], [problem], ["stop"])
    assert [(each.correct, each.reason, each.extracted) for each in found] == [
        (True, "correct", gold),
        (False, "wrong", f"{gold}1"),
        (False, "no_answer", None),
    ]
    assert [each.correct for each in unfound] == [False]  # its scorer wants the bare value


def rows_task(folder: Path, rows: list[tuple[str, str]], **rest: object) -> Task:
    path = folder / "own.jsonl"
    path.write_text("\n".join(json.dumps({"question": q, "answer": a}) for q, a in rows))
    return load_task(DatasetOptions(path=str(path), **rest))


@pytest.mark.parametrize("method", METHODS)
def test_every_extraction_method_finds_the_gold_in_its_form(method: Method, tmp_path: Path) -> None:
    task = rows_task(tmp_path, [("1 + 1?", "2"), ("Half?", "0.5")], extract=(method,))
    with closing(task.verifier):
        assert audit_task(task).failures == ()
    assert set(ANSWER_FORMS) == set(METHODS)


def test_a_gold_answer_that_is_not_read_in_time_is_not_called_a_mere_spelling(tmp_path: Path) -> None:
    rows = [("The root of 2?", r"\sqrt{2}"), ("1 + 1?", "2")]
    task = rows_task(tmp_path, rows, limits={"workers": 1, "seconds": 1e-4})
    with closing(task.verifier):
        result = audit_task(task)
    assert ([problem.id for problem in result.unread], result.textual, result.failures) == (["own/0"], (), ())


def test_the_audit_lists_bad_rows_repeats_and_conflicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        ("1 + 1?", "2"),
        ("1  + 1?", "3"),
        ("Half?", r"\frac{1}{2}"),
        ("Half?", r"\frac{1}{2}"),
        ("Odd?", "\\"),
    ]
    task = rows_task(tmp_path, rows)
    done: list[int] = []
    monkeypatch.setattr(audit, "BATCH", 2)
    with closing(task.verifier):
        result = audit_task(task, done.append)
    assert done == [2, 2, 1]
    assert (result.num_problems, result.num_passing, result.num_repeats) == (5, 4, 2)
    assert [problem.id for problem in result.textual] == ["own/4"]
    assert [failure.problem.id for failure in result.failures] == ["own/4"]
    assert repr("\\") in result.failures[0].why
    assert [[problem.answer for problem in group] for group in result.conflicts] == [["2", "3"]]


@pytest.mark.parametrize("name", ["gsm8k", "math", "aime24", "olympiadbench"])
def test_a_named_set_asks_for_a_box_and_reads_it(name: str, tmp_path: Path) -> None:
    files = {"gsm8k": "gsm8k_train", "math": "math_train"}
    row = {"id": "one", "question": "What is 1 + 1?", "answer": "2"}
    (tmp_path / f"{files.get(name, name)}.jsonl").write_text(json.dumps(row))
    task = load_task(parse_task(name), tmp_path)
    problem = task.problems[0]
    assert task.messages(problem)[0]["content"].endswith(r"within \boxed{}.")
    texts = [r"\boxed{2}", "The answer is 2.", "So we add 1 and 1, which gives 2 and"]
    with closing(task.verifier) as verifier:
        verdicts = verifier.grade(texts, [problem] * 3)
    assert isinstance(task.verifier, MathVerifier)
    assert [verdict.correct for verdict in verdicts] == [True, True, name == "gsm8k"]
