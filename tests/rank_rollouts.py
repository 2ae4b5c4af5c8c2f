"""What tests/test_ranks.py runs on several ranks: sampling, and who has whose tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from negaware.ranks import ALONE, Ranks, joined_ranks
from negaware.rollout.ask import Asker
from negaware.rollout.collect import Collector
from negaware.rollout.local import LocalEngine
from negaware.rollout.options import RolloutOptions
from negaware.rollout.records import groups_from_json, groups_to_json
from negaware.tasks.task import Task
from negaware.training.exchange import with_tokens
from negaware.training.pack import IDLE, MicroBatch, Row, answers_of
from negaware.types import Completion, Group, Problem, Verdict
from tiny_models import llama, network
from training.made_groups import sampled_groups


class EveryThird:
    """Finds the answers to every third question right or wrong by their length, and all others wrong."""

    def grade(self, texts: Sequence[str], problems: Sequence[Problem]) -> list[Verdict]:
        rights = [
            int(problem.id) % 3 == 0 and len(text) % 2 == 0 for text, problem in zip(texts, problems, strict=True)
        ]
        return [Verdict(right, "correct" if right else "wrong") for right in rights]

    def close(self) -> None: ...


class RecordingEngine(LocalEngine):
    """Keeps the prompts that it was asked in each call."""

    def run(self, requests: Any, *arguments: Any, **options: Any) -> Any:
        self.__dict__.setdefault("calls", []).append([request.prompt for request in requests])
        return super().run(requests, *arguments, **options)


def collector(engine: Any, verifier: Any, options: RolloutOptions, ranks: Ranks) -> Collector:
    """Thirty questions in an order of the collector's own, of which ten can be informative."""
    problems = [Problem(str(number), "", "") for number in range(30)]
    params = options.params((1, 2, 3, 4, 5, 6, 7, 8), max_tokens=99)
    task = Task("thirds", problems, "{question}", verifier)
    prompts = {problem.id: [10 + int(problem.id), 20] for problem in problems}
    asker = Asker(engine, lambda _: [1, 2], lambda ids: "x" * len(ids), ranks)
    made = Collector(asker, replace(task, prompt="{question}"), params, options, 0)
    made.prompts = [tuple(prompts[problem.id]) for problem in made.problems]
    made._order = (0, list(range(30)))  # so that in a call of six, the first and fourth question alone can teach
    return made


def collect_with_poor_shares(arguments: Sequence[str]) -> None:
    """Two of three ranks get questions that teach nothing; all three end with the batches that one process has."""
    options = RolloutOptions(questions=6, completions=4, max_new_tokens=9, max_sequences=8)
    with joined_ranks() as ranks:
        model = llama(3)
        engine = RecordingEngine(network(model))
        shared = collector(engine, EveryThird(), options, ranks)
        expected = collector(LocalEngine(network(model)), EveryThird(), options, ALONE)
        told: list[int] = []
        for step in (1, 2):
            found, alone = shared.next_rollout(step, told.append), expected.next_rollout(step)
            assert [g.problem.id for g in found.groups] == [g.problem.id for g in alone.groups]
            assert [g.verdicts for g in found.sampled] == [g.verdicts for g in alone.sampled]
            of_ranks = ranks.gather([done for group in found.sampled for done in group.completions])
            expected_ones = [done for group in alone.sampled for done in group.completions]
            for expected_one, *completions in zip(expected_ones, *of_ranks, strict=True):
                (here,) = [done.token_ids.tolist() for done in completions if done.is_here]  # where it was sampled
                assert here == expected_one.token_ids.tolist()
                known = {(done.finish_reason, done.spans, done.seed) for done in completions}
                assert known == {(expected_one.finish_reason, expected_one.spans, expected_one.seed)}
            texts = [group.texts for group in alone.sampled]
            assert [group.texts for group in found.sampled] == texts or not ranks.is_first
            assert shared.state.position == expected.state.position
            assert len(shared.state.surplus) == len(expected.state.surplus)
            tokens = sum(c.num_tokens for g in found.sampled for c in g.completions)
            assert sum(told) == tokens
            told.clear()
        first_questions = ranks.gather([prompt[0] - 10 for prompt in engine.calls[0]])
        assert first_questions == [[0, 3], [1, 4], [2, 5]], "only the first rank's share should have something to teach"
        batches = ranks.gather([g.problem.id for g in found.groups])
        assert all(batch == batches[0] for batch in batches)


def collect_ahead(arguments: Sequence[str]) -> None:
    """Two ranks ask ahead, each its part: all know the same, one has the tokens, and none is older than the bound."""
    options = RolloutOptions(questions=5, completions=4, max_new_tokens=40, max_sequences=12, max_staleness=2)
    with joined_ranks() as ranks:
        engine = LocalEngine(network(llama(3)))
        shared = collector(engine, EveryThird(), options, ranks)
        asked: list[tuple[str, tuple[int, ...]]] = []
        ages = set()
        for step in range(1, 7):
            with torch.no_grad():
                moved = [(name, weight * 0.99) for name, weight in engine.network.model.named_parameters()]
            engine.load_weights(moved, version=step - 1)
            found = shared.next_rollout(step)
            assert len(found.groups) == options.questions
            seeds = [tuple(done.seed for done in group.completions) for group in found.sampled]
            asked += zip([group.problem.id for group in found.sampled], seeds, strict=True)
            known = [
                (group.problem.id, group.verdicts, tuple((done.spans, done.seed) for done in group.completions))
                for group in found.groups
            ]
            metrics = {name: value for name, value in found.metrics.items() if "per_second" not in name}
            assert (
                len({repr((known, sorted(metrics.items()))) for known, metrics in ranks.gather((known, metrics))}) == 1
            )
            is_here = [[done.is_here for done in group.completions] for group in found.groups]
            for of_group in zip(*ranks.gather(is_here), strict=True):
                assert sorted(map(tuple, of_group)) == [(False,) * 4, (True,) * 4], "one rank has the group's tokens"
            ages |= {step - 1 - span.version for g in found.groups for done in g.completions for span in done.spans}
            under_way = ranks.gather([each.index for each in shared.ahead.begun])
            assert all(under_way), "each rank's engine has something to do"
            assert sum(map(len, under_way)) + len(shared.state.surplus) <= 2 * options.questions
        assert min(ages) == 0 < max(ages) <= 2, ages
        assert len({seeds for _, seeds in asked}) == len(asked)
        positions = ranks.gather(shared.state.position)
        assert [position % 2 for position in positions] == [0, 1]
        most = max(Counter(problem for problem, _ in asked).values())
        assert most <= max(positions) // 30 + 1, "a question is asked once an epoch, by one rank"
        assert found.metrics["rollout/num_tokens_ahead"] > 0


def sampled_in_turn(groups: Sequence[Group], ranks: Ranks) -> list[Group]:
    """The groups as ranks have them that sampled one after the other."""
    return groups_from_json(groups_to_json(groups, ALONE), ranks)


def send_tokens(arguments: Sequence[str]) -> None:
    """Each rank gets the tokens of the answers that it trains, as they were sampled, and those of no others."""
    with joined_ranks() as ranks:
        everyone = range(ranks.size)
        assert ranks.exchange([f"{ranks.rank} to {other}" for other in everyone]) == [
            f"{other} to {ranks.rank}" for other in everyone
        ]
        whole = sampled_groups(llama(0), num_groups=6)
        # Of two mini-batches, by the rank that trains.
        numbers = [[[7, 0], [1, 2, 9], []], [[3], [20], [1, 5, 30]]]

        def dealt(groups: Sequence[Group]) -> list[list[list[MicroBatch]]]:
            answers = [replace(each, number=n) for n, each in enumerate(a for g in groups for a in answers_of(g))]
            rows = {n: Row((answer,)) for n, answer in enumerate(answers)}
            return [[[MicroBatch([rows[n]]) for n in own] or [IDLE] for own in each] for each in numbers]

        lengths: list[int] = []
        exchange = Ranks.exchange

        def counted(self: Ranks, parcels: Sequence[Any]) -> Any:
            arrived = exchange(self, parcels)
            lengths.extend(len(token_ids) for _, token_ids, _ in arrived)
            return arrived

        Ranks.exchange = counted  # type: ignore[method-assign, assignment]
        mini_batches = dealt(sampled_in_turn(whole, ranks))
        expected = [completions(each[ranks.rank]) for each in dealt(whole)]
        assert [completions(own) for own in with_tokens(mini_batches, ranks)] == expected
        missing = [done for each in mini_batches for done in completions(each[ranks.rank]) if not done.is_here]
        assert sum(lengths) == sum(done.num_tokens for done in missing) > 0


def completions(micro_batches: Sequence[MicroBatch]) -> list[Completion]:
    """Those of all rows."""
    return [answer.completion for one in micro_batches for row in one.rows for answer in row.answers]
