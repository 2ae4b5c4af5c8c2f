"""Answers that go on across updates: what is trained on, what is dropped, what a resumed run does."""

import json
import threading
from collections import Counter

import pytest
import torch

from negaware.ranks import ALONE
from negaware.rollout.ask import Asker
from negaware.rollout.collect import Collector, NothingToLearnError
from negaware.rollout.local import LocalEngine
from negaware.rollout.options import RolloutOptions
from negaware.rollout.records import begun_from_json, begun_to_json, groups_from_json, groups_to_json
from negaware.tasks.task import Task
from negaware.types import Problem, Span, Verdict
from scripted import ScriptedEngine
from tiny_models import llama, network

K, QUESTIONS, NUM_PROBLEMS = 4, 4, 24


class ByLength:
    """Half of the answers are right, by their length."""

    def grade(self, texts, problems):
        return [Verdict(right := len(text) % 2 == 0, "correct" if right else "wrong") for text in texts]

    def close(self):
        pass


class CountingEngine(LocalEngine):
    """Keeps the number of rows of each decode step."""

    def step(self):
        before = 0 if self.batch is None else len(self.batch.sequences)
        num_tokens = super().step()
        if num_tokens and num_tokens == before:
            self.__dict__.setdefault("rows", []).append(before)
        return num_tokens


class Alternately(ByLength):
    """Every other answer of a call is right."""

    def grade(self, texts, problems):
        return [Verdict(bool(n % 2), "correct" if n % 2 else "wrong") for n in range(len(texts))]


class Never(ByLength):
    def grade(self, texts, problems):
        return [Verdict(False, "wrong") for _ in texts]


def make_collector(engine=None, verifier=None, num_steps=None, **options) -> Collector:
    problems = [Problem(str(number), "", "") for number in range(NUM_PROBLEMS)]
    task = Task("lengths", problems, "{question}", verifier or ByLength())
    asker = Asker(engine or CountingEngine(network(llama(3)), 16), lambda _: [1, 2], lambda ids: "x" * len(ids), ALONE)
    rollout = RolloutOptions(**{"questions": QUESTIONS, "completions": K, "max_new_tokens": 40} | options)
    collector = Collector(asker, task, rollout.params((3, 4, 5), max_tokens=99), rollout, 0, num_steps=num_steps)
    collector.prompts[:] = [(10 + number, 20 + number % 3) for number in range(NUM_PROBLEMS)]
    return collector


def weights_of(step: int):
    """The policy after so many updates, each a small one."""
    model = llama(3)
    with torch.no_grad():
        for update in range(step):
            torch.manual_seed(update)
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight) * 0.01)
    return model.state_dict().items()


def rollouts(collector: Collector, steps) -> list:
    """Those of these steps, each after the update before it."""
    found = []
    for step in steps:
        collector.asker.engine.load_weights(weights_of(step - 1), version=step - 1)
        found.append(collector.next_rollout(step))
    return found


def spans(groups):
    return [span for group in groups for done in group.completions for span in done.spans]


class Scripted(ScriptedEngine):
    """Each answer is finished in the step that its question's number names; a token a step, `samples_alone`."""

    samples_alone = True

    def __init__(self, steps_of, spans_of=None) -> None:
        super().__init__(lambda prompt, number: [])
        self.steps_of, self.spans_of, self.made = steps_of, spans_of, 0

    def step(self) -> int:
        self.made += 1
        num_tokens = 0
        for request in list(self.waiting):
            number = self.asked.index(request)
            if self.made < self.steps_of(number):
                continue
            self.waiting.remove(request)
            for draft in list(request.drafts):
                spans = self.spans_of(number) if self.spans_of else [Span(self.version, 2)]
                count = sum(span.num_tokens for span in spans)
                draft.token_ids, draft.logprobs, draft.spans = [7] * count, [-1.0] * count, list(spans)
                num_tokens += count
                request.finish(draft, "stop")
        return num_tokens


@pytest.mark.parametrize("max_staleness", [1, 2])
def test_no_token_is_older_than_the_bound_and_answers_go_on_across_updates(max_staleness):
    collector = make_collector(max_staleness=max_staleness)
    found = rollouts(collector, range(1, 9))
    for step, rollout in enumerate(found, 1):
        ages = Counter()
        for span in spans(rollout.groups):
            ages[step - 1 - span.version] += span.num_tokens
        assert min(ages) >= 0
        assert max(ages) <= max_staleness
        assert rollout.metrics["rollout/staleness_max"] == max(ages)
        mean = sum(age * number for age, number in ages.items()) / ages.total()
        assert rollout.metrics["rollout/staleness_mean"] == pytest.approx(mean)
        assert len(rollout.groups) == QUESTIONS
        for done in (done for group in rollout.groups for done in group.completions):
            assert [span.version for span in done.spans] == sorted({span.version for span in done.spans})
            assert len(done.logprobs) == len(done.token_ids) == done.num_tokens
    answers = [done for rollout in found for group in rollout.groups for done in group.completions]
    assert any(len(done.spans) > 1 for done in answers)
    assert len({done.seed for done in answers}) == len(answers)
    assert any(rollout.metrics["rollout/num_tokens_ahead"] for rollout in found)


def test_each_token_has_the_log_probability_of_the_version_that_drew_it():
    collector = make_collector(max_staleness=2)
    groups = [group for rollout in rollouts(collector, range(1, 6)) for group in rollout.groups]
    model, compared = llama(3), set()
    for group in groups:
        for done in group.completions:
            if len(done.spans) < 2:
                continue
            tokens = torch.tensor([[*group.prompt_ids, *done.token_ids.tolist()]])
            for version in done.versions:
                compared.add(int(version))
            start = 0
            for span in done.spans:
                model.load_state_dict(dict(weights_of(span.version)))
                with torch.no_grad():
                    exact = model(tokens).logits[0, 1:-1].log_softmax(-1).gather(-1, tokens[0, 2:, None])[:, 0]
                own = slice(start, start + span.num_tokens)
                assert torch.allclose(
                    exact[own], torch.tensor(done.logprobs[own]), rtol=0, atol=1e-4
                )  # 0.01 moves more
                start += span.num_tokens
    assert len(compared) > 1


def test_decode_batches_stay_full():
    """As long as questions are asked: at staleness 0 a step waits for its longest answer, with fewer and fewer rows."""
    full = {}
    for max_staleness in (0, 2):
        collector = make_collector(max_staleness=max_staleness)
        rollouts(collector, range(1, 7))
        rows = collector.asker.engine.rows
        full[max_staleness] = sum(number > 16 - K for number in rows) / len(rows)
    assert full[2] > 0.9 > 0.6 > full[0]


@pytest.mark.parametrize("last", [1, 3, 4])
def test_a_run_resumed_from_its_checkpoint_samples_the_same(last):
    straight = make_collector(max_staleness=2)
    rollouts(straight, range(1, last + 1))
    ahead, state = straight.ahead, straight.state
    kept = json.loads(
        json.dumps([begun_to_json(ahead.begun, ALONE), groups_to_json(state.surplus, ALONE), state.position])
    )
    assert any(one["drafts"][0]["token_ids"] for one in kept[0] if one["drafts"])
    resumed = make_collector(max_staleness=2)
    resumed.ahead.begun = begun_from_json(kept[0], resumed.prompts, resumed.params, ALONE)
    resumed.state.surplus, resumed.state.position = groups_from_json(kept[1], ALONE), kept[2]
    steps = range(last + 1, last + 5)
    for found, expected in zip(rollouts(resumed, steps), rollouts(straight, steps), strict=True):
        assert found.groups == expected.groups  # bit for bit
        assert found.sampled == expected.sampled
        same = found.metrics | {"rollout/tokens_per_second": 0}
        assert same == expected.metrics | {"rollout/tokens_per_second": 0}


def test_what_is_too_old_is_dropped_counted_and_asked_again():
    """One step leaves questions half answered, and two updates pass before the next."""
    collector = make_collector(max_staleness=1)
    rollouts(collector, [1])
    left, surplus = list(collector.ahead.begun), collector.state.surplus
    tokens = sum(span.num_tokens for each in left for span in each.spans) + sum(n for _, n in spans(surplus))
    begun = [each for each in left if each.spans]
    assert begun
    (rollout,) = rollouts(collector, [4])
    assert rollout.metrics["rollout/num_dropped_tokens"] == tokens
    assert rollout.metrics["rollout/num_dropped_questions"] == len(begun) + len(surplus)
    assert {span.version for span in spans(rollout.groups)} == {3}
    asked_again = {group.problem.id for group in rollout.sampled} | {str(e.index) for e in collector.ahead.begun}
    assert {str(each.index) for each in left} <= asked_again


def test_long_answers_are_waited_for_before_they_are_too_old():
    """No question is asked again for its length: until all its answers are short, it would be."""
    collector = make_collector(max_staleness=1, max_sequences=8, questions=2)
    ages = set()
    for step in range(1, 13):
        (rollout,) = rollouts(collector, [step])
        assert collector.ahead.num_dropped_questions == 0
        ages.add(rollout.metrics["rollout/staleness_max"])
    assert ages == {0, 1}


def test_what_a_server_finishes_too_late_is_not_trained_on():
    """Its versions are known at its end alone, and then some tokens are too old."""
    engine = Scripted(lambda number: 3 * number, lambda number: [Span(0, 5), Span(engine.version, 5)])
    collector = make_collector(engine, Alternately(), max_staleness=1, questions=2)
    engine.load_weights((), 0)
    collector.next_rollout(1)
    for step in (2, 3, 4, 5):
        engine.load_weights((), step - 1)
        if step > 2:
            engine.spans_of = lambda number: [Span(0 if number < 6 else engine.version, 10)]
        rollout = collector.next_rollout(step)
        assert rollout.metrics["rollout/staleness_max"] <= 1
        assert min(span.version for span in spans(rollout.groups)) >= step - 2


def test_a_server_has_questions_while_the_trainer_works_and_none_after_the_last_step():
    engine = Scripted(lambda number: number + 1)
    collector = make_collector(engine, Alternately(), num_steps=3, max_staleness=2, max_sequences=K)
    under_way = []
    for step in (1, 2, 3):
        engine.load_weights((), step - 1)
        collector.next_rollout(step)
        under_way.append(len(engine.waiting))
    assert under_way == [2 * QUESTIONS, QUESTIONS, 0]  # as many batches ahead as steps are left, two at most


def test_in_the_last_step_as_many_are_asked_as_it_takes():
    """Nothing is asked ahead then, and of what is asked little teaches."""
    found = {}

    class Seldom(ByLength):
        def grade(self, texts, problems):
            return [Verdict(int(each.id) % 5 == 0 and bool(n % 2), "wrong") for n, each in enumerate(problems)]

    for max_staleness in (0, 2):
        collector = make_collector(Scripted(lambda number: 0), Seldom(), num_steps=1, max_staleness=max_staleness)
        found[max_staleness] = collector.next_rollout(1)
        assert len(found[max_staleness].groups) == QUESTIONS
    assert len(found[2].sampled) <= len(found[0].sampled) + QUESTIONS


def test_the_search_is_bounded_when_more_questions_end_at_once_than_were_asked_for():
    engine = Scripted(lambda number: 0)
    collector = make_collector(engine, Never(), max_staleness=1, max_sampled_questions=6)
    with pytest.raises(NothingToLearnError, match="None of the"):
        rollouts(collector, [1])


def test_verdicts_are_given_while_sampling_goes_on():
    """The verifier doesn't answer before three more steps were made; a caller that waited for it would make none."""
    engine = CountingEngine(network(llama(3)), 8)
    begun, more, step = threading.Event(), threading.Event(), engine.step

    class Patient(ByLength):
        def grade(self, texts, problems):
            begun.set()
            assert more.wait(60), "nothing was sampled while the verifier worked"
            return super().grade(texts, problems)

    meanwhile = []

    def watched_step():
        running = [] if engine.batch is None else engine.batch.requests
        if sum(len(request.drafts) for request in [*running, *engine.waiting]) < K * QUESTIONS:
            assert begun.wait(60)  # the first that was finished is being judged
            meanwhile.append(1)
            if len(meanwhile) == 3:
                more.set()
        return step()

    engine.step = watched_step
    collector = make_collector(engine, Patient())
    assert len(rollouts(collector, [1])[0].groups) == QUESTIONS


def test_an_error_of_the_verifier_reaches_the_caller_and_nothing_stays_under_way():
    class Failing(ByLength):
        def grade(self, texts, problems):
            raise ValueError("no judge")

    for max_staleness in (0, 1):
        collector = make_collector(verifier=Failing(), max_staleness=max_staleness)
        with pytest.raises(ValueError, match="no judge"):
            rollouts(collector, [1])
        assert collector.asker.engine.withdraw() == []


def test_answers_that_are_cut_off_can_be_left_out_of_their_groups():
    collector = make_collector(max_staleness=2, truncated_answers="excluded", max_new_tokens=6)
    for rollout in rollouts(collector, range(1, 4)):
        assert all(done.finish_reason == "stop" for group in rollout.groups for done in group.completions)


def test_at_staleness_0_nothing_is_asked_ahead():
    collector = make_collector()
    for rollout in rollouts(collector, range(1, 4)):
        assert "rollout/num_tokens_ahead" not in rollout.metrics
    assert collector.ahead.begun == []
