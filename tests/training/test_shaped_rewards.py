"""Rewards that aren't verdicts alone: advantages by hand, and a gradient that no split of a group changes."""

from dataclasses import replace

import pytest
import torch
from definition import defined
from made_groups import make_group, off_policy, sampled_groups
from test_step import relative, train_without_updating

from negaware.objectives import OBJECTIVES
from negaware.objectives.credit import centred, standardised
from negaware.training.pack import answers_of, collate, rows_of
from negaware.training.step import answers_in
from negaware.types import Completion, Group
from rounding import assert_within, gamma
from tiny_models import llama

REWARDS = (1.0, -0.1, -0.25, 0.5)  # verdicts 1, 0, 0, 1 less half of DAPO's penalties 0, 0.2, 0.5, 1
DAPOS = (1.0, -1.2, -1.5, 0.0)  # 2r − 1 + penalty


def group(rewards: tuple[float, ...] | None, right=(True, False, False, True)) -> Group:
    completions = [Completion.drawn((7,) * 3, (-1.0,) * 3, "stop", 0, seed) for seed in range(len(right))]
    return replace(make_group((1, 2), completions, right), rewards=rewards)


def advantages(made: Group) -> tuple[torch.Tensor, torch.Tensor]:
    """Centred, and standardised, as a loss is given them."""
    batch = collate(rows_of(answers_of(made), 4))
    answers = answers_in(batch, torch.zeros(len(batch.targets)))
    return centred(answers), standardised(answers)


def test_advantages_are_dapos_by_hand():
    """Its rewards have mean −0.425 and variance (1.425² + 0.775² + 1.075² + 0.425²)/4 = 0.991875."""
    centred, standardised = advantages(group(REWARDS))
    wanted = torch.tensor([1.425, -0.775, -1.075, 0.425], dtype=torch.float64)
    # A reward, the mean's four terms and its quotient, and the difference: eight roundings at sizes of at most 1. The
    # standard deviation is a sum of four squares of such, and its root and the quotient are rounded.
    assert_within(centred, wanted / 2, gamma(8))  # on the scale of verdicts, which is half of DAPO's
    assert_within(standardised, wanted / 0.991875**0.5, 2 * gamma(8) + 1.5 * gamma(2 * 8 + 8))
    shaped = torch.tensor(DAPOS, dtype=torch.float64)
    by_torch = (shaped - shaped.mean()) / shaped.std(correction=0)
    assert_within(standardised, by_torch, 2 * gamma(8) + 1.5 * gamma(2 * 8 + 8))


def test_where_nobody_is_long_nothing_changes():
    for found, wanted in zip(advantages(group((1.0, 0.0, 0.0, 1.0))), advantages(group(None)), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("reward", [0.97, 0.95, 1.0])
def test_equal_rewards_are_no_advantage_whatever_rounding_does(reward):
    """The mean of three 0.97 isn't 0.97: what rounding leaves, divided by what it leaves, would be ±1."""
    for found in advantages(group((reward,) * 3, right=(True,) * 3)):
        assert found.eq(0).all()


@pytest.mark.parametrize(("name", "scale"), [("dapo", "std"), ("grpo", "std"), ("dr_grpo", None), ("cispo", "std")])
def test_the_objective_uses_them(name, scale):
    """On-policy, the gradient on each token's log-probability is minus the advantage."""
    batch = collate(rows_of(answers_of(group(REWARDS)), 4))
    leaf = torch.full((12,), -1.0).requires_grad_()
    OBJECTIVES[name].terms(answers_in(batch, leaf)).per_token.sum().backward()
    advantage = advantages(group(REWARDS))[1 if scale else 0]
    exact = advantage.double()[:, None].expand(4, 3)
    assert_within(-leaf.grad.view(4, 3), exact, gamma(3) * exact.abs())  # a ratio of 1 exactly, and few products


def shaped(groups: list[Group]) -> list[Group]:
    """Rewards by length over a buffer that begins at 3 tokens and ends at 14."""
    return [
        replace(
            each,
            rewards=tuple(
                verdict.correct - min(max((done.num_tokens - 3) / 11, 0), 1) / 2
                for done, verdict in zip(each.completions, each.verdicts, strict=True)
            ),
        )
        for each in groups
    ]


@pytest.mark.parametrize("name", ["dapo", "dr_grpo"])
def test_the_gradient_is_the_definitions_however_a_group_is_split(name, make_trainer):
    plain = off_policy(sampled_groups(llama(0)))
    groups = shaped(plain)

    def gradient(groups, micro_batch_tokens=10_000):
        trainer = make_trainer(llama(0), name, micro_batch_tokens=micro_batch_tokens)
        return train_without_updating(trainer, groups)[0]

    exact, *_ = defined(llama(0), groups, name, {})
    for tokens in (10_000, 40, 1):
        exact.assert_near(gradient(groups, micro_batch_tokens=tokens))
    assert relative(gradient(plain), exact.value) > 0.05
