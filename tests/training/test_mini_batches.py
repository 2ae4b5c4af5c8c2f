"""The mini-batches of one rollout: which questions share one, and what π_old is after the first has been learnt."""

import math
from typing import Any

import pytest
import torch
from definition import defined
from made_groups import make_group, off_policy, sampled_groups

from negaware.ranks import Ranks
from negaware.training.pack import IDLE, Row, answers_of, collate
from negaware.training.step import Trainer
from negaware.types import Completion, Group
from tiny_models import llama


def gradients_of_mini_batches(
    trainer: Trainer, groups: list[Group]
) -> tuple[list[tuple[dict, torch.Tensor, list[Group]]], dict[str, float]]:
    """The weights before each optimizer step of a rollout, its gradient and its groups; and the rollout's metrics."""
    of_prompt = {group.prompt_ids: group for group in groups}
    mini_batches, found = [], []
    original_pack, original_step = trainer.pack, trainer.optimizer.step

    def pack(questions: Any) -> Any:
        mini_batches.append([of_prompt[answers[0].prompt_ids] for answers in questions])
        return original_pack(questions)

    def step(norm: torch.Tensor) -> None:
        weights = {name: weight.detach().clone() for name, weight in trainer.network.model.state_dict().items()}
        gradient = torch.cat([master.grad.flatten() for master in trainer.optimizer.masters.values()])
        found.append((weights, gradient, mini_batches[len(found)]))
        original_step(norm)

    trainer.pack, trainer.optimizer.step = pack, step
    return found, trainer.step(groups, 0)


@pytest.mark.parametrize("objective", ["nft", "grpo"])
def test_pi_old_is_the_policy_before_the_first_mini_batch(objective: str, make_trainer: Any) -> None:
    """Each mini-batch's gradient is the definition's, at the weights of its moment, against the weights of the start.

    What the sampler recorded is wrong here, so that it can't stand in for π_old.
    """
    groups = sampled_groups(llama(0), num_groups=4)  # these hold the log-probabilities of the weights of the start
    trainer = make_trainer(llama(0), objective, old_logprobs="recomputed", optimizer_steps=2, learning_rate=0.02)
    steps, metrics = gradients_of_mini_batches(trainer, off_policy(groups))
    losses, norms = [], []
    recorded = {group.prompt_ids: group for group in groups}
    for weights, gradient, distorted in steps:
        model = llama(0)
        model.load_state_dict(weights)
        mini_batch = [recorded[group.prompt_ids] for group in distorted]
        expected, loss, norm = defined(model, mini_batch, objective, {})
        # Twice: what the trainer computes again, π_old, is rounded too.
        expected.assert_near(gradient, times=2)
        losses.append(loss)
        norms.append(norm)
    assert len(losses) == metrics["train/num_optimizer_steps"] == 2
    for found, of_steps in (("train/loss", losses), ("train/grad_norm", norms)):
        mean = sum(float(one.value) for one in of_steps) / 2
        assert metrics[found] == pytest.approx(mean, rel=0, abs=sum(2 * one.error for one in of_steps) / 2)


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "constant"])
@pytest.mark.parametrize("objective", ["nft", "grpo"])
def test_a_chosen_reduction_is_the_one_that_is_trained(objective: str, reduction: str, make_trainer: Any) -> None:
    groups = off_policy(sampled_groups(llama(0), num_groups=3))
    trainer = make_trainer(llama(0), objective, reduction=reduction, micro_batch_tokens=40)
    ((_, gradient, _),), _ = gradients_of_mini_batches(trainer, groups)
    defined(llama(0), groups, objective, {}, reduction)[0].assert_near(gradient)


def test_the_seed_decides_which_questions_share_a_mini_batch(make_trainer: Any) -> None:
    """Four questions of 2, 4, 8 and 16 answer tokens: the tokens of the first mini-batch tell which two are in it."""
    groups = [
        make_group([n], [Completion.drawn((7,) * n, (-1.0,) * n, "stop", 0, k) for k in range(2)], [True, False])
        for n in (1, 2, 4, 8)
    ]
    trainer = make_trainer(llama(0), optimizer_steps=2)

    def first_mini_batch(seed: int) -> int:
        told: list[int] = []
        trainer.step(groups, seed, told.append)
        assert sum(told) == 30
        return told[0]

    found = [first_mini_batch(seed) for seed in range(16)]
    assert set(found) == {6, 10, 12, 18, 20, 24}  # every two of the four
    assert found[:4] == [first_mini_batch(seed) for seed in range(4)]


@pytest.mark.parametrize(
    ("num_groups", "sizes"), [(12, [2] * 6), (11, [2, 2, 2, 2, 3]), (5, [2, 3]), (4, [2, 2]), (3, [3]), (1, [1])]
)
def test_a_short_rollout_has_mini_batches_of_the_size_of_a_whole_one(
    num_groups: int, sizes: list[int], make_trainer: Any
) -> None:
    """⌊groups ÷ size⌋ of them, at least one, the remainder spread: 12 questions in 6 steps are 2 a step, always."""
    trainer = make_trainer(llama(0), optimizer_steps=6, questions=12)
    steps, _ = gradients_of_mini_batches(trainer, sampled_groups(llama(0), num_groups=num_groups))
    assert sorted(len(mini_batch) for _, _, mini_batch in steps) == sizes
    trained = sorted(group.prompt_ids for _, _, mini_batch in steps for group in mini_batch)
    assert len(set(trained)) == len(trained) == num_groups  # none is left out


@pytest.mark.parametrize(
    ("num_groups", "num_steps"), [(512, 16), (511, 15), (480, 15), (64, 2), (63, 1), (32, 1), (31, 1), (1, 1)]
)
def test_the_papers_mini_batches_keep_their_32_questions(num_groups: int, num_steps: int, make_trainer: Any) -> None:
    trainer = make_trainer(llama(0), optimizer_steps=16, questions=512)
    assert trainer._num_mini_batches(num_groups) == num_steps


def test_the_schedule_goes_on_by_rollouts_however_many_steps_they_make(make_trainer: Any) -> None:
    groups = sampled_groups(llama(0), num_groups=4)
    options = {"optimizer_steps": 4, "questions": 4, "num_steps": 4, "learning_rate": 1.0e-3, "warmup_rollouts": 2}
    trainer = make_trainer(llama(0), schedule="cosine", **options)
    rates, coming = [], [trainer.optimizer.learning_rate()]
    for number in (1, 4, 2, 4):
        rates.append(trainer.step(groups[:number], 0)["train/learning_rate"])
        coming.append(trainer.optimizer.learning_rate())  # the rate of a rollout of one step
    assert coming == pytest.approx([0.5e-3, 1e-3, 1e-3, 0.5e-3, 0])
    assert rates == pytest.approx([0.5e-3, 1e-3, 1e-3 * (1 + 0.5**0.5) / 2, 1e-3 * (1 + math.cos(math.pi * 7 / 8)) / 2])
    assert trainer.optimizer.num_steps_done == 1 + 4 + 2 + 4


def test_weights_that_were_changed_since_are_the_ones_that_train(make_trainer: Any) -> None:
    """What a pass made of the weights of then, joined or packed, is forgotten when a rollout begins."""
    groups = off_policy(sampled_groups(llama(0), num_groups=2))
    expected = make_trainer(llama(0)).step(groups, 0)
    trainer = make_trainer(llama(1))
    rows = [row for micro_batch in trainer.pack([answers_of(group) for group in groups])[0] for row in micro_batch.rows]
    trainer.logprobs(collate(rows))
    trainer.network.model.load_state_dict(llama(0).state_dict())
    assert trainer.step(groups, 0) == expected


def _numbers(row: Row) -> tuple[int, ...]:
    return tuple(id(answer) for answer in row.answers)


def test_every_rank_has_as_many_micro_batches_and_every_row_counts_once(make_trainer: Any) -> None:
    """A rank that has fewer runs rows of nobody."""
    groups = off_policy(sampled_groups(llama(0), num_groups=3))
    questions = [answers_of(group) for group in groups]
    trainer = make_trainer(llama(0), micro_batch_tokens=50)
    alone = [row for micro_batch in trainer.pack(questions)[0] for row in micro_batch.rows]
    assert len(alone) > 5
    for size in (2, 4, 5):
        trainer.ranks = Ranks(0, size)
        packed = trainer.pack(questions)
        assert len({len(of_rank) for of_rank in packed}) == 1
        counting = [row for of_rank in packed for one in of_rank if one.counts for row in one.rows]
        assert sorted(map(_numbers, counting)) == sorted(map(_numbers, alone))
    assert any(one is IDLE for of_rank in packed for one in of_rank)


def test_a_micro_batch_that_only_keeps_a_rank_busy_adds_nothing(make_trainer: Any) -> None:
    groups = off_policy(sampled_groups(llama(0), num_groups=2))
    (expected,), metrics = gradients_of_mini_batches(make_trainer(llama(0)), groups)
    trainer = make_trainer(llama(0))
    original = trainer.pack
    trainer.pack = lambda questions: [[IDLE, *original(questions)[0]]]
    num_passes = []
    trainer.network.model.get_input_embeddings().weight.register_post_accumulate_grad_hook(num_passes.append)
    (found,), same = gradients_of_mini_batches(trainer, groups)
    assert len(num_passes) == 1 + len(
        original([answers_of(group) for group in groups])[0]
    )  # the others wait for its pass
    assert torch.equal(found[1], expected[1])
    assert same == metrics
