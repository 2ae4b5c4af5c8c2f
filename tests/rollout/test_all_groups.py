"""What the collector does besides looking for informative groups: it keeps all, and it shapes rewards by length."""

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from test_collect import K, asker, every, make_collector, mixed, scripted

from negaware.ranks import ALONE
from negaware.rollout.collect import CollectorState, NothingToLearnError
from negaware.rollout.records import answer_records, groups_from_json, groups_to_json
from negaware.tasks.load import load_task
from negaware.tasks.options import ArithmeticOptions
from negaware.tasks.task import Task

LENGTHS = (10, 22, 25, 30)  # of at most 30 tokens, the last 10 of which cost


@pytest.fixture(scope="module")
def task() -> Iterator[Task]:
    loaded = load_task(ArithmeticOptions(forms=("add",)))
    yield replace(loaded, problems=loaded.problems[:20])
    loaded.verifier.close()


def test_without_a_filter_all_that_is_asked_is_trained_on(task):
    collector = make_collector(task, every(3, otherwise=True), filter="none")
    rollout = collector.next_rollout(1)
    assert rollout.groups == rollout.sampled
    assert [group.pass_rate for group in rollout.groups] == [0.5, 1.0, 1.0, 0.5]
    assert collector.asker.engine.calls[0] == collector.state.position == 4  # none is asked in place of the others
    figures = ("num_groups", "informative_share", "num_uninformative_groups", "all_right_share", "num_surplus_groups")
    assert [rollout.metrics[f"rollout/{name}"] for name in figures] == [4, 0.5, 2, 0.5, 0]
    assert rollout.shortcomings(4) == []
    assert [group.pass_rate for group in collector.next_rollout(2).groups] == [1.0, 1.0, 0.5, 1.0]
    assert all(record["trained"] for record in answer_records(1, rollout))


def test_the_filter_leaves_uninformative_groups_out_and_counts_none_of_them(task):
    rollout = make_collector(task, every(3)).next_rollout(1)
    assert rollout.metrics["rollout/num_uninformative_groups"] == 0 < rollout.metrics["rollout/all_wrong_share"]


def wrong_but_at(index: int):
    """All answers wrong, but for the question of this number."""
    return lambda question, number: mixed(question, number) if number == index else [(False, "stop")] * K


def test_steps_that_teach_nothing_go_on_until_the_budget_is_used_up(task):
    collector = make_collector(task, wrong_but_at(-1), filter="none", max_sampled_questions=12)
    for step in (1, 2):
        rollout = collector.next_rollout(step)
        assert (len(rollout.groups), rollout.teaches, collector.state.num_barren) == (4, False, 4 * step)
        assert rollout.shortcomings(4) == [
            "none of the 4 questions of this step taught anything: the loss is 0, and only the optimizer's momentum "
            "and weight decay move the weights"
        ]
    state = CollectorState(collector.state.position, num_barren=collector.state.num_barren)
    with pytest.raises(NothingToLearnError, match=r"a higher rollout\.max_sampled_questions than 12"):
        collector.next_rollout(3)
    resumed = make_collector(task, wrong_but_at(2), filter="none", max_sampled_questions=16)
    resumed.state = state
    assert resumed.next_rollout(3).teaches  # as the sentence says
    assert resumed.state.num_barren == 0


def test_what_one_objective_learns_nothing_from_another_does(task):
    collector = make_collector(task, wrong_but_at(-1), filter="none", max_sampled_questions=4)
    with pytest.raises(NothingToLearnError):
        collector.next_rollout(1)
    collector.teaching_rates = {1.0}
    with pytest.raises(NothingToLearnError):
        collector.next_rollout(2)
    collector.teaching_rates = {0.0}
    assert collector.next_rollout(3).teaches


def long_collector(task, script, **options):
    """The same answers, each drawn out to its length by spaces."""
    collector = make_collector(task, script, overlong_buffer=10, **options)
    engine = scripted(script)
    answers = engine.answers
    engine.answers = lambda prompt, number: [
        (tokens + [32] * (length - len(tokens)), ended)
        for (tokens, ended), length in zip(answers(prompt, number), LENGTHS, strict=True)
    ]
    collector.asker = asker(engine)
    return collector


def test_the_last_part_of_a_long_answer_costs(task):
    """Nothing up to 20 tokens, then linearly to half of what is earned by being right: DAPO's penalty on 2r − 1."""
    rollout = long_collector(task, mixed).next_rollout(1)
    for group in rollout.groups:
        assert group.rewards == pytest.approx((1.0, 0.0 - 0.1, 0.0 - 0.25, 1.0 - 0.5), abs=1e-12)
        assert group.pass_rate == 0.5  # verdicts, and what is informative, are as they were
    assert rollout.metrics["rollout/overlong_share"] == 0.75
    rewards = [record["reward"] for record in answer_records(1, rollout)]
    assert rewards[:4] == list(rollout.groups[0].rewards)


def test_without_the_buffer_there_are_no_rewards_but_verdicts(task):
    rollout = make_collector(task, mixed).next_rollout(1)
    assert {group.rewards for group in rollout.groups} == {None}
    assert "rollout/overlong_share" not in rollout.metrics
    assert not any("reward" in record for record in answer_records(1, rollout))


def test_groups_are_filtered_by_verdicts_whatever_their_rewards(task):
    rollout = long_collector(task, every(3, otherwise=True)).next_rollout(1)
    assert {group.pass_rate for group in rollout.groups} == {0.5}
    # Without the filter a group that is all right teaches by its lengths, as DAPO's code has it.
    assert long_collector(task, lambda question, index: [(True, "stop")] * K, filter="none").next_rollout(1).teaches


def test_rewards_go_with_their_answers_and_through_a_checkpoint(task):
    def script(question, index):
        return [(True, "stop"), (False, "length"), (False, "stop"), (True, "stop")]

    excluded = long_collector(task, script, truncated_answers="excluded").next_rollout(1)
    for group in excluded.groups:
        assert group.rewards == pytest.approx((1.0, -0.25, 0.5))
        (written,) = json.loads(json.dumps(groups_to_json([group], ALONE)))
        assert groups_from_json([written], ALONE) == [group]
        del written["rewards"]  # a checkpoint from before there were any, or several versions in an answer
        for done in written["completions"]:
            ((done["version"], _),) = done.pop("spans")
        assert groups_from_json([written], ALONE) == [replace(group, rewards=None)]
