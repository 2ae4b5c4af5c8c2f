"""Truncated importance weights: their numbers, the gradient they give, and what they do to groups of older weights."""

import copy
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from definition import defined
from made_groups import prompts_and_tokens, sampled_groups

from negaware.objectives import OBJECTIVES
from negaware.training.pack import Answer, Row, collate
from negaware.training.step import importance_weights
from negaware.types import Completion, Span
from rounding import EXPONENTIAL, assert_within, exact_logprobs, exactly, gamma
from tiny_models import llama


def recorded_otherwise(groups, shift):
    """The groups as a sampler records them whose log-probabilities lie `shift(group, token)` below the policy's."""
    return [
        replace(
            group,
            completions=tuple(
                replace(
                    done,
                    logprobs=np.float32([p - shift(number, i) for i, p in enumerate(done.logprobs)]),
                    spans=(Span(number, done.num_tokens),),
                )
                for done in group.completions
            ),
        )
        for number, group in enumerate(groups)
    ]


def gradient_of_a_step(trainer, groups):
    gradients = []

    def collect(norm):
        gradients.append(torch.cat([master.grad.flatten() for master in trainer.optimizer.masters.values()]))
        trainer.optimizer.discard_gradients()

    trainer.optimizer.step = collect
    return gradients, trainer.step(groups, seed=0)


def test_weights_are_ratios_up_to_the_cap():
    answers = [
        Answer((1,), Completion.drawn([2, 3, 4], np.log([0.5, 0.1, 0.2]), "stop", 0, 0), True, 0.5),
        Answer((1,), Completion.drawn([2], np.log([0.4]), "stop", 0, 1), False, 0.5),
    ]
    batch = collate([Row((answers[0],)), Row((answers[1],))])
    old = torch.tensor([[0.25, 0.15, 0.9], [0.4, 1.0, 1.0]]).log()
    expected = torch.tensor([[0.5, 1.5, 2.0], [1.0, 1.0, 1.0]]).double()  # the last two are padding
    # Both logarithms and their difference are rounded, at most 2.4 each, and an exponential of the difference is taken.
    assert_within(importance_weights(batch, old, cap=2.0), expected, expected * (gamma(4 * 2.4) + EXPONENTIAL))


@pytest.mark.parametrize("objective", ["nft", "rft", "grpo", "dapo"])
def test_the_gradient_is_the_weighted_sum_of_the_tokens_gradients(objective, make_trainer):
    """Recorded log-probabilities up to a factor 3 off either way, some from older weights; weights end at 1.5."""
    noise, cap = random.Random(4), 1.5
    shifts = {(number, i): noise.uniform(-1.1, 1.1) for number in range(2) for i in range(14)}
    groups = recorded_otherwise(sampled_groups(llama(0), 2), lambda number, i: shifts[number, i])
    options = {"old_logprobs": "recomputed", "importance_weight_cap": cap, "micro_batch_tokens": 64}
    (found, *_), metrics = gradient_of_a_step(make_trainer(llama(0), objective, **options), groups)

    reference, double = sampled_groups(llama(0), 2), copy.deepcopy(llama(0)).double()
    lengths = [done.num_tokens for group in groups for done in group.completions]
    numbered = [(n, done.num_tokens) for n, group in enumerate(reference) for done in group.completions]
    weights = [min(math.exp(shifts[n, i]), cap) for n, length in numbered for i in range(length)]
    reduction = OBJECTIVES[objective].reduction_under({})

    def compute():
        loss = torch.zeros(())
        for number, group in enumerate(reference):
            for done, verdict in zip(group.completions, group.verdicts, strict=True):
                sequence = torch.tensor([[*group.prompt_ids, *done.token_ids]])
                logits = double(sequence).logits[0, len(group.prompt_ids) - 1 : -1]
                logprobs = logits.log_softmax(-1).gather(-1, sequence[0, len(group.prompt_ids) :, None]).T
                facts = torch.tensor([verdict.correct]), torch.tensor([group.pass_rate])
                mask = torch.ones_like(logprobs, dtype=torch.bool)
                per_token = OBJECTIVES[objective](logprobs, logprobs.detach(), mask, *facts)
                own = torch.tensor([min(math.exp(shifts[number, i]), cap) for i in range(logprobs.shape[1])])
                loss = loss + (per_token * own).sum() / (len(own) if reduction == "sequence_mean" else 1)
        loss = loss / (sum(lengths) if reduction == "token_mean" else len(lengths))
        return [torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(double.parameters()))])]

    # Each weight measures from the sampler's log-probability to the trainer's: both are rounded, as is the gradient.
    exactly(compute)[0].assert_near(found, times=3)
    error = exact_logprobs(llama(0), prompts_and_tokens(reference)).mean_difference()
    assert metrics["train/importance_weight"] == pytest.approx(sum(weights) / len(weights), rel=0, abs=cap * error)


def test_a_sampler_that_agrees_changes_nothing(make_trainer):
    groups = sampled_groups(llama(0))
    with_weights = make_trainer(llama(0), old_logprobs="recomputed", importance_weight_cap=2.0)
    (found,), metrics = gradient_of_a_step(with_weights, groups)
    (expected,), without = gradient_of_a_step(make_trainer(llama(0), old_logprobs="recomputed"), groups)
    allowed = exact_logprobs(llama(0), prompts_and_tokens(groups))
    assert metrics["train/importance_weight"] == pytest.approx(1, abs=allowed.mean_difference())
    exact, *_ = defined(llama(0), groups, "nft", {})
    for gradient, times in ((expected, 2), (found, 3)):
        exact.assert_near(gradient, times)
    assert "train/importance_weight" not in without
