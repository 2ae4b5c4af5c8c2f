"""What the collector counts, asks and says, number by number, on groups written out by hand."""

import math
import random
import time
from itertools import product

import pytest
from test_collect import K, make_collector, mixed

from negaware.rollout import collect
from negaware.rollout.collect import NothingToLearnError, Rollout, rollout_metrics, short_of_room
from negaware.rollout.engine import SamplingParams
from negaware.seeds import evaluation_seed, mini_batch_seed, order_seed, sampling_seed
from negaware.tasks.load import load_task
from negaware.tasks.options import ArithmeticOptions
from negaware.types import Completion, Group, Problem, Verdict

RIGHT, WRONG = Verdict(True, "correct", "1"), Verdict(False, "wrong", "2")
LOST, FAILED, LATE = Verdict(False, "no_answer"), Verdict(False, "error", "KeyError: 'x'"), Verdict(False, "timeout")


def group(verdicts: list[Verdict], lengths: list[int], cut: int = 0) -> Group:
    """Answers of so many tokens; the first `cut` of them stopped at the length limit."""
    done = [
        Completion.drawn((5,) * n, (-1.0,) * n, "length" if k < cut else "stop", 0, k) for k, n in enumerate(lengths)
    ]
    return Group(Problem("p", "?", "1"), (1,), tuple(done), ("",) * len(done), tuple(verdicts))


GROUPS = [
    group([RIGHT, RIGHT], [3, 4]),
    group([RIGHT, WRONG], [10, 2]),
    group([WRONG, LOST], [1, 5]),
    group([FAILED, LOST], [30, 9], cut=1),
    group([LATE, FAILED], [7, 29], cut=1),
]


def test_every_figure_of_a_rollout() -> None:
    assert rollout_metrics(GROUPS, 4.0) == {
        "rollout/num_groups_sampled": 5,
        "rollout/pass_rate": pytest.approx(1.5 / 5),
        "rollout/all_right_share": pytest.approx(1 / 5),
        "rollout/all_wrong_share": pytest.approx(3 / 5),
        "rollout/truncated_share": pytest.approx(2 / 10),
        "rollout/unverifiable_share": pytest.approx(3 / 10),
        "rollout/answer_tokens": pytest.approx(100 / 10),
        "rollout/tokens_per_second": pytest.approx(100 / 4),
        "verifier/correct": 3,
        "verifier/wrong": 2,
        "verifier/no_answer": 2,
        "verifier/timeout": 1,
        "verifier/error": 2,
    }
    assert all(value == 0 for value in rollout_metrics([], 0.0).values())
    alone = rollout_metrics([group([RIGHT], [8], cut=1)], 2.0)
    assert (alone["rollout/pass_rate"], alone["rollout/truncated_share"], alone["rollout/answer_tokens"]) == (1, 1, 8)


def test_what_a_short_batch_and_a_failing_verifier_say() -> None:
    assert Rollout(GROUPS[1:2], GROUPS, {}).shortcomings(2) == [
        "1 of 2 informative questions found in 5 asked (rollout.max_sampled_questions); training on those",
        "the verifier failed on 2 of 10 answers, which count as wrong; first with \"KeyError: 'x'\"",
    ]
    assert Rollout(GROUPS[1:2], GROUPS[:3], {}).shortcomings(1) == []
    three = group([FAILED, Verdict(False, "error", "second"), Verdict(False, "error", "third")], [1, 1, 1])
    assert Rollout([three], [three], {}).shortcomings(1) == [
        "the verifier failed on 3 of 3 answers, which count as wrong; first with \"KeyError: 'x'\""
    ]


@pytest.fixture(scope="module")
def task():
    loaded = load_task(ArithmeticOptions(kind="arithmetic", split="train", forms=("add",), low=2, high=12))
    yield loaded
    loaded.verifier.close()


def test_a_batch_that_was_carried_over_whole_asks_nothing(task) -> None:
    collector = make_collector(task, mixed)
    collector.state.surplus = [GROUPS[1]] * 5
    rollout = collector.next_rollout(1)
    assert (rollout.groups, rollout.sampled, collector.state.surplus) == ([GROUPS[1]] * 4, [], [GROUPS[1]])
    assert rollout.metrics["rollout/informative_share"] == rollout.metrics["rollout/tokens_per_second"] == 0
    assert collector.asker.engine.calls == []


def test_tokens_a_second_are_those_of_the_sampling(task) -> None:
    collector = make_collector(task, mixed)
    began = time.perf_counter()
    rollout = collector.next_rollout(1)
    slowest = time.perf_counter() - began  # what the collector measured lies within
    num_tokens = sum(done.num_tokens for group in rollout.sampled for done in group.completions)
    assert rollout.metrics["rollout/tokens_per_second"] >= num_tokens / slowest


def test_an_engine_that_loses_an_answer_is_no_rollout(task) -> None:
    collector = make_collector(task, mixed)
    engine = collector.asker.engine
    answers, engine.answers = engine.answers, lambda prompt, number: answers(prompt, number)[number == 2 :]
    step = engine.step

    def losing_step() -> int:
        num_tokens = step()
        for request in engine.asked:
            request.drafts.clear()
        return num_tokens

    engine.step = losing_step
    with pytest.raises(KeyError):
        collector.next_rollout(1)


def test_prompts_that_leave_an_answer_less_room_are_counted() -> None:
    params = SamplingParams(max_new_tokens=10, max_tokens=12)
    prompts = [(7,) * n for n in (1, 2, 3, 11, 12, 13)]
    assert short_of_room("sums", prompts, params) == [
        "sums: 4 of 6 prompts leave an answer fewer tokens than max_new_tokens, 10, for the model takes 12 in all; "
        "the longest leaves 0; 2 leave none: they are not asked, and count as wrong."
    ]
    assert short_of_room("sums", prompts[:2], params) == []
    (said,) = short_of_room("sums", prompts[1:4], params)
    assert said.endswith("the longest leaves 1.")


@pytest.mark.parametrize(
    ("informative", "calls"),
    [
        ([0, 3, 6, 9], [4, 4, 3]),  # two of four, then one of four: 1 ÷ 3/8 is 2.7
        ([0, 1, 2, 5], [4, 1, 2]),  # three of four: 1 ÷ 3/4 is 1.3, then 1 ÷ 3/5 is 1.7
        ([8, 9, 10, 11], [4, 4, 4]),  # nothing found yet: a whole batch each time
    ],
)
def test_how_many_are_asked_at_once(task, informative, calls) -> None:
    """What is missing, divided by the share of informative questions so far in this step, at most a batch."""
    collector = make_collector(
        task, lambda question, index: mixed(question, index) if index in informative else [(False, "stop")] * K
    )
    rollout = collector.next_rollout(1)
    asked = collector.asker.engine.calls
    assert (asked, len(rollout.groups)) == (calls, 4)
    num_informative = 4 + len(collector.state.surplus)
    assert rollout.metrics["rollout/informative_share"] == pytest.approx(num_informative / sum(asked))


def test_one_question_of_one_is_all(task) -> None:
    assert make_collector(task, mixed, questions=1).next_rollout(1).metrics["rollout/informative_share"] == 1


def test_one_answer_left_of_several_teaches_nothing(task) -> None:
    def cut(question, index):
        return [(True, "stop"), *[(False, "length")] * (K - 1)]

    with pytest.raises(NothingToLearnError, match="None of the 32 questions"):
        make_collector(task, cut, truncated_answers="excluded").next_rollout(1)


@pytest.mark.parametrize(("limit", "num_left_out"), [(None, 0), (1, None), (1000, 0)])
def test_a_model_that_takes_any_number_of_tokens_leaves_out_what_the_limit_does(task, limit, num_left_out) -> None:
    if num_left_out is None:
        with pytest.raises(ValueError, match="more than 1 tokens"):
            make_collector(task, mixed, max_tokens=None, max_prompt_tokens=limit)
    else:
        assert make_collector(task, mixed, max_tokens=None, max_prompt_tokens=limit).num_left_out == num_left_out


def test_the_order_of_an_epoch_is_the_one_that_an_older_run_asked_in(task) -> None:
    collector = make_collector(task, mixed)
    order = list(range(len(task.problems)))
    random.Random(7845531041580707923).shuffle(order)
    assert [collector._next_problem() for _ in order] == order


def test_an_epoch_is_put_in_order_once(task, monkeypatch) -> None:
    """Not at each question: of a million, that would be hours."""
    made = []
    monkeypatch.setattr(collect, "order_seed", lambda *place: made.append(place) or order_seed(*place))
    collector = make_collector(task, mixed, seed=5)
    for _ in range(2 * len(task.problems) + 1):
        collector._next_problem()
    assert made == [(5, 0), (5, 1), (5, 2)]


def test_every_call_has_a_seed_of_its_own_that_any_generator_takes() -> None:
    """And always the same: a run that goes on must draw what it would have drawn."""
    seeds = [evaluation_seed(seed) for seed in range(4)]
    for seed, step in product(range(4), range(1, 17)):
        seeds += [sampling_seed(seed, step, num_sampled) for num_sampled in range(13)]
        seeds += [order_seed(seed, step - 1), mini_batch_seed(seed, step)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
    assert math.log2(sum(seeds) / len(seeds)) == pytest.approx(62, abs=0.1)
    assert sampling_seed(0, 1, 2) == 217875049918638303
    assert (order_seed(0, 0), mini_batch_seed(0, 1), evaluation_seed(0)) == (
        7845531041580707923,
        6929145806728260212,
        2067341437274412062,
    )


@pytest.mark.parametrize(
    ("num_right", "said"),
    [
        (16, "(16 all right, 16 all wrong, 0 answers cut at the length limit). The questions are too hard"),
        (17, "(17 all right, 15 all wrong, 0 answers cut at the length limit). The questions are too easy"),
    ],
)
def test_which_advice_is_given(task, num_right, said) -> None:
    collector = make_collector(task, lambda question, index: [(index < num_right, "stop")] * K)
    with pytest.raises(NothingToLearnError) as caught:
        collector.next_rollout(1)
    assert said in str(caught.value)


def test_a_verifier_that_fails_on_more_than_half_is_what_is_told(task) -> None:
    collector = make_collector(task, mixed)
    other = Verdict(False, "error", "the last one")
    half = [group([FAILED, WRONG], [1, 1]), group([other, WRONG], [1, 1])]
    assert "The verifier failed" not in str(collector._nothing_to_learn(half))
    more = [*half, group([other], [1])]
    assert str(collector._nothing_to_learn(more)).startswith(
        "The verifier failed on 3 of this step's 5 answers, first with \"KeyError: 'x'\", so there is nothing"
    )


def test_another_reason_leaves_what_was_found_and_how_to_go_on() -> None:
    error = NothingToLearnError("None of 8.", "Too hard.", " Resume it.", 0.0)
    assert error.because(None) is error
    assert str(error.because("The rate is too high.")) == "None of 8. The rate is too high. Resume it."
