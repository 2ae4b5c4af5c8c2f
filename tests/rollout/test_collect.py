"""The collector over a scripted engine, with the real arithmetic task and its real verifier."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from negaware.rollout.ask import Asker
from negaware.rollout.collect import Collector, CollectorState, NothingToLearnError
from negaware.rollout.engine import SamplingParams
from negaware.rollout.options import RolloutOptions
from negaware.tasks.load import load_task
from negaware.tasks.options import ArithmeticOptions
from negaware.tasks.task import Task
from negaware.types import FinishReason, Problem
from negaware.verifiers.function import FunctionVerifier
from scripted import ScriptedEngine

NUM_PROBLEMS = 20
K = 4
# question text, its number among all asked so far → for each completion: right? and how it ended
Script = Callable[[str, int], list[tuple[bool, FinishReason]]]


def scripted(script: Script) -> ScriptedEngine:
    """Answers questions as the script says; tokens are the text's characters."""

    def answers(prompt, number):
        value = eval(re.sub("[^0-9+*-]", "", question_of(prompt)))
        return [
            (list(map(ord, f"It is {value if right else value + 1}.")), ended)
            for right, ended in script(question_of(prompt), number)
        ]

    return ScriptedEngine(answers)


def question_of(prompt) -> str:
    return "".join(map(chr, prompt)).split("?")[0]


def asked_of(collector: Collector) -> list[str]:
    return [question_of(request.prompt) for request in collector.asker.engine.asked]


def mixed(question: str, index: int) -> list[tuple[bool, FinishReason]]:
    return [(True, "stop"), (False, "stop"), (False, "stop"), (True, "stop")]


def every(period: int, otherwise: bool = False) -> Script:
    """Every so-many-th question is informative, the others all right or all wrong."""
    return lambda question, index: mixed(question, index) if index % period == 0 else [(otherwise, "stop")] * K


@pytest.fixture(scope="module")
def task() -> Iterator[Task]:
    loaded = load_task(ArithmeticOptions(kind="arithmetic", split="train", forms=("add",), low=2, high=12))
    problems = loaded.problems[:NUM_PROBLEMS]
    yield Task(loaded.name, problems, loaded.prompt, loaded.verifier)
    loaded.verifier.close()


def asker(engine) -> Asker:
    return Asker(
        engine,
        encode=lambda messages: [ord(letter) for letter in messages[-1]["content"]],
        decode=lambda tokens: "".join(map(chr, tokens)),
    )


def make_collector(task: Task, script: Script, seed: int = 0, max_tokens: int = 1000, **options: int) -> Collector:
    rollout = RolloutOptions(**{"questions": 4, "completions": K, "max_new_tokens": 30} | options)
    return Collector(
        asker(scripted(script)),
        task,
        SamplingParams(30, max_tokens=max_tokens),
        rollout,
        seed,
    )


def patchy(question: str, index: int) -> list[tuple[bool, FinishReason]]:
    """None of the first three questions is informative, and then every one: more than the share so far foretells."""
    return mixed(question, index) if index % 9 > 2 else [(True, "stop")] * K


def seeds_of(groups) -> set[int]:
    return {done.seed for group in groups for done in group.completions}


def ids(groups) -> list[str]:
    return [group.problem.id for group in groups]


def test_a_full_batch_of_graded_groups(task):
    collector = make_collector(task, mixed)
    told: list[int] = []
    rollout = collector.next_rollout(1, told.append)
    assert len(rollout.groups) == 4
    assert collector.asker.engine.calls[0] == len(rollout.sampled) == 4
    for group in rollout.groups:
        assert [verdict.correct for verdict in group.verdicts] == [True, False, False, True]
        assert [verdict.reason for verdict in group.verdicts] == ["correct", "wrong", "wrong", "correct"]
        assert group.texts[0] == f"It is {group.problem.answer}."
        assert "".join(map(chr, group.prompt_ids)).startswith(group.problem.question)
        assert group.pass_rate == 0.5
    assert rollout.metrics["rollout/num_groups"] == 4
    assert rollout.metrics["verifier/correct"] == rollout.metrics["verifier/wrong"] == 8
    assert sum(told) == sum(c.num_tokens for group in rollout.sampled for c in group.completions)


def test_sampling_goes_on_until_the_batch_is_full(task):
    collector = make_collector(task, every(3))
    rollout = collector.next_rollout(1)
    assert len(rollout.groups) == 4
    assert all(0 < group.pass_rate < 1 for group in rollout.groups)
    assert rollout.metrics["rollout/num_groups_sampled"] == len(rollout.sampled) > 9
    assert rollout.metrics["rollout/all_wrong_share"] == pytest.approx(1 - rollout.metrics["rollout/informative_share"])
    assert len(seeds_of(rollout.sampled)) == K * len(rollout.sampled)
    assert max(collector.asker.engine.calls) <= 4


def test_surplus_is_carried_and_trained_next_and_nothing_is_lost(task):
    collector = make_collector(task, patchy)
    sampled, trained, num_carried = [], [], 0
    for step in range(1, 9):
        carried = ids(collector.state.surplus)
        num_carried += len(carried)
        rollout = collector.next_rollout(step)
        assert ids(rollout.groups)[: len(carried)] == carried
        assert rollout.metrics["rollout/num_carried_groups"] == len(carried)
        assert rollout.metrics["rollout/num_surplus_groups"] == len(collector.state.surplus)
        sampled += [id(group) for group in rollout.sampled if 0 < group.pass_rate < 1]
        trained += [id(group) for group in rollout.groups]
        assert len(rollout.groups) == 4
    left = [id(group) for group in collector.state.surplus]
    assert num_carried > 2
    assert sampled == trained + left  # first sampled, first trained; each once
    assert collector.state.position == len(asked_of(collector))


def test_the_search_is_bounded(task):
    collector = make_collector(task, every(10), max_sampled_questions=13)
    rollout = collector.next_rollout(1)
    assert len(rollout.sampled) == 13
    assert len(rollout.groups) == rollout.metrics["rollout/num_groups"] == 2
    assert RolloutOptions(questions=4).question_budget == 32


def test_every_epoch_asks_each_question_once_in_an_order_of_its_own(task):
    collector = make_collector(task, mixed)
    for step in range(15):
        collector.next_rollout(step)
    asked = asked_of(collector)
    epochs = [asked[first : first + NUM_PROBLEMS] for first in range(0, 60, NUM_PROBLEMS)]
    assert all(Counter(epoch) == Counter(epochs[0]) for epoch in epochs)
    assert all(len(set(epoch)) == NUM_PROBLEMS for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other = make_collector(task, mixed, seed=1)
    other.next_rollout(0)
    assert asked_of(other) != asked[:4]


def test_resumed_from_its_state_it_does_the_same(task):
    def script(question: str, index: int) -> list[tuple[bool, FinishReason]]:
        return mixed(question, index) if sum(map(ord, question)) % 3 else [(True, "stop")] * K

    straight = make_collector(task, script)
    expected = []
    for step in range(1, 13):
        if step == 6:
            state = CollectorState(straight.state.position, list(straight.state.surplus))
        expected.append(straight.next_rollout(step))
    assert state.surplus, "this scenario should carry groups over the interruption"
    sampled = [group for rollout in expected for group in rollout.sampled]
    assert len(seeds_of(sampled)) == K * len(sampled)
    resumed = make_collector(task, script)
    resumed.state = state
    found = [resumed.next_rollout(step) for step in range(6, 13)]
    assert [ids(rollout.groups) for rollout in found] == [ids(rollout.groups) for rollout in expected[5:]]
    assert [seeds_of(rollout.sampled) for rollout in found] == [seeds_of(each.sampled) for each in expected[5:]]


@pytest.mark.parametrize(
    ("right", "ended", "words"),
    [
        (True, "stop", ["(32 all right, 0 all wrong, 0 answers cut", "too easy", "choose a harder task"]),
        (False, "stop", ["(0 all right, 32 all wrong, 0 answers cut", "too hard", "raise rollout.max_new_tokens"]),
        (True, "length", ["(0 all right, 32 all wrong, 128 answers cut", "rollout.completions is 4"]),
    ],
)
def test_nothing_to_learn_says_what_was_found_and_what_to_change(task, right, ended, words):
    collector = make_collector(task, lambda question, index: [(right, ended)] * K)
    with pytest.raises(NothingToLearnError, match="None of the 32 questions of this step") as caught:
        collector.next_rollout(1)
    for word in [*words, "in a new run", "--resume it with a higher rollout.max_sampled_questions than 32"]:
        assert word in str(caught.value)
    assert len(collector.asker.engine.asked) == 32


def test_truncated_answers_are_wrong_and_counted(task):
    def script(question: str, index: int) -> list[tuple[bool, FinishReason]]:
        return [(True, "stop"), (True, "length"), (False, "length"), (True, "stop")]

    rollout = make_collector(task, script).next_rollout(1)
    for group in rollout.groups:
        assert [verdict.correct for verdict in group.verdicts] == [True, False, False, True]
        assert group.verdicts[1].extracted == group.problem.answer
    assert rollout.metrics["rollout/truncated_share"] == 0.5
    assert rollout.metrics["rollout/pass_rate"] == 0.5


def test_truncated_answers_can_be_left_out_before_a_group_is_judged(task):
    def script(question: str, index: int) -> list[tuple[bool, FinishReason]]:
        only_the_cut_one_is_wrong = [(True, "stop"), (True, "stop"), (True, "stop"), (False, "length")]
        differ_without_it = [(True, "stop"), (False, "stop"), (True, "stop"), (False, "length")]
        return differ_without_it if index % 2 else only_the_cut_one_is_wrong

    rollout = make_collector(task, script, truncated_answers="excluded").next_rollout(1)
    assert rollout.groups
    for group in rollout.groups:
        assert [verdict.correct for verdict in group.verdicts] == [True, False, True]
        assert len(group.completions) == len(group.texts) == 3
    assert all(len(group.completions) == 4 for group in rollout.sampled)
    assert rollout.metrics["rollout/informative_share"] == pytest.approx(0.5, abs=0.1)


def test_shares_and_lengths(task):
    def script(question: str, index: int) -> list[tuple[bool, FinishReason]]:
        return [mixed(question, index), [(True, "stop")] * K, [(False, "stop")] * K, mixed(question, index)][index % 4]

    rollout = make_collector(task, script, max_sampled_questions=4).next_rollout(1)
    metrics = rollout.metrics
    assert metrics["rollout/informative_share"] == 0.5
    assert metrics["rollout/all_right_share"] == metrics["rollout/all_wrong_share"] == 0.25
    assert metrics["rollout/pass_rate"] == 0.5
    lengths = [len(text) for group in rollout.sampled for text in group.texts]
    assert metrics["rollout/answer_tokens"] == pytest.approx(sum(lengths) / len(lengths))
    assert metrics["rollout/tokens_per_second"] > 0


def test_prompts_that_leave_less_room_are_asked_and_counted(task):
    lengths = [len(task.messages(problem)[-1]["content"]) for problem in task.problems]
    longest, shortest = max(lengths), min(lengths)
    assert longest > shortest
    roomy = make_collector(task, mixed, max_tokens=longest + 30)
    assert roomy.num_left_out == 0
    assert roomy.left_out_or_short() == []
    tight = make_collector(task, mixed, max_tokens=shortest + 30)
    assert tight.num_left_out == 0
    assert tight.left_out_or_short() == [
        f"arithmetic_train: {sum(length > shortest for length in lengths)} of 20 prompts leave an answer fewer tokens "
        f"than max_new_tokens, 30, for the model takes {shortest + 30} in all; the longest leaves "
        f"{30 + shortest - longest}."
    ]


@pytest.mark.parametrize("limit", [None, 4000])
def test_prompts_that_leave_no_room_are_left_out_and_counted(task, limit):
    lengths = [len(task.messages(problem)[-1]["content"]) for problem in task.problems]
    options = {} if limit is None else {"max_prompt_tokens": limit}
    collector = make_collector(task, mixed, max_tokens=max(lengths), **options)
    num_longest = lengths.count(max(lengths))
    assert collector.num_left_out == num_longest < 20
    same = make_collector(task, mixed, max_tokens=max(lengths), max_prompt_tokens=max(lengths))
    assert same.num_left_out == num_longest  # what the model takes holds the answer too
    assert max(map(len, collector.prompts)) < max(lengths)
    assert collector.left_out_or_short()[0] == (
        f"{num_longest} of 20 problems are left out: their prompts have {max(lengths)} tokens or more, all that the "
        "model takes."
    )
    with pytest.raises(
        ValueError, match=f"has 9 tokens or more, all that the model takes, the shortest {min(lengths)}; take shorter"
    ):
        make_collector(task, mixed, max_tokens=9, **options)


def test_questions_over_the_prompt_limit_are_left_out_and_counted(task):
    lengths = [len(task.messages(problem)[-1]["content"]) for problem in task.problems]
    limit = sorted(set(lengths))[-2]
    collector = make_collector(task, mixed, max_prompt_tokens=limit)
    assert collector.num_left_out == sum(length > limit for length in lengths) > 0
    num_kept = NUM_PROBLEMS - collector.num_left_out
    groups = [group for step in range(10) for group in collector.next_rollout(step).groups]
    assert len(set(ids(groups[:num_kept]))) == num_kept
    assert max(len(group.prompt_ids) for group in groups) == limit
    with pytest.raises(
        ValueError,
        match=rf"has more than 3 tokens \(rollout.max_prompt_tokens\), the shortest {min(lengths)}; raise it",
    ):
        make_collector(task, mixed, max_prompt_tokens=3)


def test_one_right_answer_is_enough_where_k_is_one(task):
    collector = make_collector(task, lambda question, index: [(index % 2 == 0, "stop")], completions=1)
    rollout = collector.next_rollout(1)
    assert [group.pass_rate for group in rollout.groups] == [1.0] * 4
    assert {group.pass_rate for group in rollout.sampled} == {0.0, 1.0}


def raises(text: str, problem: Problem) -> bool:
    raise KeyError("x")


def test_a_verifier_that_fails_is_named_and_not_the_questions(task):
    verifier = FunctionVerifier(raises)
    try:
        collector = make_collector(replace(task, verifier=verifier), mixed)
        with pytest.raises(ValueError, match=r"failed on \d+ of this step's 128 answers, .*KeyError"):
            collector.next_rollout(1)
    finally:
        verifier.close()
