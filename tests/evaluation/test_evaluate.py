import json
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from negaware.evaluation.evaluate import EvaluationResult, evaluate, write_results
from negaware.evaluation.metrics import avg_at_k
from negaware.rollout.ask import Asker
from negaware.rollout.engine import SamplingParams
from negaware.rollout.local import LocalEngine
from negaware.seeds import completion_seed
from negaware.tasks.task import Task
from negaware.types import FinishReason, Message, Problem, Reason, Verdict
from negaware.verifiers.math import MathVerifier
from scripted import ScriptedEngine
from tiny_models import llama, network

PROBLEMS = tuple(Problem(f"p{n}", f"What is {n} + 1?", str(n + 1)) for n in range(3))
PARAMS = SamplingParams(max_new_tokens=32)


def engine_of(script: dict[str, list[str]]) -> ScriptedEngine:
    """Gives the answers it is told to, by question; tokens are a text's bytes. `|` at the end: cut off there."""

    def answers(prompt: Sequence[int], number: int) -> list[tuple[list[int], FinishReason]]:
        texts = next(texts for question, texts in script.items() if question in decode(prompt))
        return [(list(text.rstrip("|").encode()), "length" if text.endswith("|") else "stop") for text in texts]

    return ScriptedEngine(answers)


def encode(messages: list[Message]) -> list[int]:
    return list("".join(f"<{message['role']}>{message['content']}" for message in messages).encode())


def decode(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode()


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    verifier = MathVerifier(extract=("boxed", "answer_is"))
    yield verifier
    verifier.close()


SCRIPT = {
    "What is 0 + 1?": [r"\boxed{1}", r"\boxed{2}", r"\boxed{1.0}", "no idea"],
    "What is 1 + 1?": [r"\boxed{3}", r"\boxed{3}", r"\boxed{2}", r"\boxed{2}|"],
    "What is 2 + 1?": [r"\boxed{3}", "The answer is 3.", r"\boxed{3}", r"\boxed{4}"],
}


def run(engine: ScriptedEngine, task: Task, num_completions: int = 4) -> EvaluationResult:
    return evaluate(Asker(engine, encode, decode), task, PARAMS, num_completions, seed=7)


def scripted_task(verifier: MathVerifier) -> Task:
    return Task("toy", PROBLEMS, "{question}", verifier)


def test_answers_are_graded_problem_by_problem(verifier: MathVerifier) -> None:
    engine = engine_of(SCRIPT)
    result = run(engine, scripted_task(verifier))
    seeds = [draft for index in range(3) for draft in (completion_seed(7, index, k) for k in range(4))]
    assert {request.params for request in engine.asked} == {PARAMS}
    assert engine.seeds == seeds
    assert [problem.id for problem in result.results] == ["p0", "p1", "p2"]
    assert [[answer.correct for answer in problem.answers] for problem in result.results] == [
        [True, False, True, False],
        [False, False, True, False],  # the last is right, but was cut off
        [True, True, True, False],
    ]
    assert result.results[0].answers[3].reason == "no_answer"
    assert result.results[2].answers[1].extracted == "3"
    assert result.results[1].answers[3].finish_reason == "length"
    assert result.num_truncated == 1
    assert result.num_unverifiable == 0
    assert result.results[0].answers[0].num_tokens == len(r"\boxed{1}")


def test_figures_follow_from_the_answers(verifier: MathVerifier) -> None:
    result = run(engine_of(SCRIPT), scripted_task(verifier))
    assert result.avg_at_k == avg_at_k([2, 1, 3], 4)
    assert list(result.pass_at) == [1, 2, 4]
    assert result.pass_at[4].value == 1
    # Two of four answers leave out both right ones in 1 of 6 pairs; one right of four in 3 of 6; three in none.
    assert result.pass_at[2].value == pytest.approx((5 / 6 + 3 / 6 + 1) / 3)
    # p0: "1" and "1.0" are one value with two votes. p1: 3 wins. p2: 3 wins.
    assert result.maj_at_k.value == pytest.approx(2 / 3)


def test_one_greedy_answer_is_accuracy(verifier: MathVerifier) -> None:
    result = run(engine_of(SCRIPT), scripted_task(verifier), num_completions=1)
    assert result.avg_at_k.value == result.maj_at_k.value == result.pass_at[1].value == pytest.approx(2 / 3)
    assert list(result.pass_at) == [1]
    assert [name for name in result.summary() if "_at_" in name] == ["avg_at_1"]  # one figure, shown once


def test_spellings_of_one_value_vote_together(verifier: MathVerifier) -> None:
    half = Problem("half", "What is 1 / 2?", "1/2")
    answers = [r"\boxed{3}", r"\boxed{1/2}", r"\boxed{0.5}", r"\boxed{3}", r"\boxed{\frac12}"]
    result = run(engine_of({half.question: answers}), Task("toy", (half,), "{question}", verifier), 5)
    assert result.maj_at_k.value == 1
    assert list(result.pass_at) == [1, 2, 4, 5]
    assert result.pass_at[5].value == 1


class UndecidedVerifier:
    """A verifier that ran out of time on every answer, though it had found a value."""

    def grade(self, texts: Sequence[str], problems: Sequence[Problem]) -> list[Verdict]:
        return [Verdict(False, "timeout", "9")] * len(texts)

    def close(self) -> None:
        pass


def test_unverifiable_answers_are_counted_wrong_and_have_no_vote() -> None:
    result = run(engine_of(SCRIPT), Task("toy", PROBLEMS, "{question}", UndecidedVerifier()))
    assert result.num_unverifiable == 12
    assert result.avg_at_k.value == result.maj_at_k.value == 0
    assert all(answer.vote().value is None for answer in result.answers)
    with pytest.raises(
        ValueError, match=r"^toy: 12 of 12 answers can't be judged .*; the first: out of time .*\. Wait\.$"
    ):
        result.require_judged("Wait.")


class FailingVerifier(UndecidedVerifier):
    """A judge that raises, but on the first answers."""

    def __init__(self, reasons: Sequence[Reason]) -> None:
        self.reasons = reasons

    def grade(self, texts: Sequence[str], problems: Sequence[Problem]) -> list[Verdict]:
        judged = [Verdict(False, reason) for reason in self.reasons]
        return judged + [Verdict(False, "error", "KeyError:\n 'x'")] * (len(texts) - len(judged))


@pytest.mark.parametrize(
    ("reasons", "is_judged"),
    [(["wrong"], True), (["wrong"] * 12, True), ([], False), (["no_answer"] * 5, False), (["no_answer"] * 6, True)],
)
def test_an_evaluation_that_nobody_judged_says_so(reasons: list[Reason], is_judged: bool) -> None:
    result = run(engine_of(SCRIPT), Task("toy", PROBLEMS, "{question}", FailingVerifier(reasons)))
    num_failed = 12 - len(reasons)
    said = f"{num_failed} of 12 answers can't be judged and count as wrong; the first: KeyError: 'x'"
    assert result.unjudged == (said if num_failed else None)
    with nullcontext() if is_judged else pytest.raises(ValueError, match=re.escape(f"toy: {said}. Mend it.")):
        result.require_judged("Mend it.")


def test_progress_is_the_number_of_tokens(verifier: MathVerifier) -> None:
    told: list[int] = []
    task = scripted_task(verifier)
    result = evaluate(Asker(engine_of(SCRIPT), encode, decode), task, PARAMS, 4, 7, told.append)
    assert sum(told) == sum(answer.num_tokens for answer in result.answers)


def test_results_are_kept_as_json_lines(verifier: MathVerifier, tmp_path: Path) -> None:
    result = run(engine_of(SCRIPT), scripted_task(verifier))
    path = tmp_path / "evaluations" / "toy.jsonl"
    write_results(result, path)
    write_results(result, path)
    assert [file.name for file in path.parent.iterdir()] == ["toy.jsonl"]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["id"], row["question"], row["gold"]) for row in rows] == [
        (problem.id, problem.question, problem.answer) for problem in PROBLEMS
    ]
    assert rows[1]["answers"][3] == {
        "text": r"\boxed{2}",
        "correct": False,
        "reason": "wrong",
        "extracted": "2",
        "finish_reason": "length",
        "num_tokens": 9,
    }


def test_the_summary_is_ready_for_json(verifier: MathVerifier) -> None:
    summary = json.loads(json.dumps(run(engine_of(SCRIPT), scripted_task(verifier)).summary()))
    assert summary["avg_at_4"]["value"] == summary["pass_at_1"]["value"] == 0.5
    assert set(summary["maj_at_4"]) == {"value", "low", "high", "num_problems", "num_questions"}
    assert summary["reasons"] == {"correct": 6, "wrong": 5, "no_answer": 1}


def test_an_empty_task_is_refused(verifier: MathVerifier) -> None:
    with pytest.raises(ValueError, match="at least one problem"):
        run(engine_of(SCRIPT), Task("toy", (), "{question}", verifier))


def test_a_prompt_without_room_is_not_asked_and_counts_as_wrong(verifier: MathVerifier) -> None:
    """The other answers are those that they would be had it been asked, each with the room that its prompt leaves."""
    model = llama(2)
    params = SamplingParams(12, stop_token_ids=(1, 2, 3))
    lengths = {"p0": 5, "p1": 40, "p2": 26, "p3": 31, "p4": 32}
    problems = [Problem(name, name, "1") for name in lengths]
    task = Task("toy", problems, "{question}", verifier)

    def some_tokens(messages: list[Message]) -> list[int]:
        name = messages[-1]["content"]
        return [7 + int(name[1])] * lengths[name]

    def spelled(tokens: Sequence[int]) -> str:
        return " ".join(map(str, tokens))

    asker = Asker(LocalEngine(network(model)), some_tokens, spelled)
    whole = evaluate(asker, task, params, 2, seed=5)
    assert whole.num_short_of_room == whole.num_without_room == 0
    found = evaluate(asker, task, replace(params, max_tokens=32), 2, seed=5)
    assert [result.room for result in found.results] == [12, 0, 6, 1, 0]
    for result, longer in zip(found.results, whole.results, strict=True):
        for answer, expected in zip(result.answers, longer.answers, strict=True):
            assert answer.text.split() == expected.text.split()[: result.room]
    unasked = [answer for name in (1, 4) for answer in found.results[name].answers]
    assert {(one.text, one.correct, one.reason, one.finish_reason, one.num_tokens) for one in unasked} == {
        ("", False, "no_answer", "length", 0)
    }
    assert found.num_truncated >= 4
    summary = found.summary()
    assert (summary["num_short_of_room"], summary["num_without_room"]) == (4, 2)
    assert summary["avg_at_2"]["num_problems"] == 5
