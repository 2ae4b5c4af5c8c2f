"""Statements 1 to 4 of the method (docs/method.md, "What holds"), on numbers, in float64."""

import math

import pytest
import torch

from negaware.objectives import OBJECTIVES, dapo_loss, dr_grpo_loss, grpo_loss, nft_loss, rft_loss
from negaware.objectives.credit import prompt_weight
from negaware.objectives.ops import denominator, reduce_loss

EVERY_RATE = [(k, right) for k in (2, 3, 4, 5, 8, 16, 50) for right in range(1, k)]
RATIOS = torch.logspace(-2, 2, 41, dtype=torch.float64)


def on_policy_group(num_answers, num_right, num_tokens=3):
    correct = torch.arange(num_answers) < num_right
    logprobs = -torch.rand(num_answers, num_tokens, dtype=torch.float64) - 0.1
    pass_rate = torch.full((num_answers,), num_right / num_answers, dtype=torch.float64)
    return logprobs, logprobs.clone(), torch.ones(num_answers, num_tokens, dtype=torch.bool), correct, pass_rate


def at_ratios(correct, rate):
    """One answer whose tokens have the likelihood ratios RATIOS."""
    old = torch.full((1, len(RATIOS)), -2.0, dtype=torch.float64)
    mask = torch.ones_like(old, dtype=torch.bool)
    return old + RATIOS.log(), old, mask, torch.tensor([correct]), torch.tensor([rate], dtype=torch.float64)


@pytest.mark.parametrize(("num_answers", "num_right"), EVERY_RATE)
def test_on_policy_nft_is_grpo(num_answers, num_right, gradient):
    tensors = on_policy_group(num_answers, num_right)
    rewards = tensors[3].double()
    advantage = (rewards - rewards.mean()) / rewards.std(correction=0)
    expected = -advantage[:, None].expand(-1, 3)
    torch.testing.assert_close(gradient(nft_loss, tensors, prompt_weight="grpo"), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(gradient(grpo_loss, tensors), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("num_answers", "num_right"), EVERY_RATE)
def test_on_policy_nft_is_dr_grpo(num_answers, num_right, gradient):
    tensors = on_policy_group(num_answers, num_right)
    rewards = tensors[3].double()
    expected = -(rewards - rewards.mean())[:, None].expand(-1, 3)
    torch.testing.assert_close(gradient(nft_loss, tensors, prompt_weight="one_minus_rate"), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(gradient(dr_grpo_loss, tensors), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.0])
def test_on_policy_equality_holds_for_every_floor_up_to_one(epsilon, gradient):
    tensors = on_policy_group(8, 3)
    weighted = gradient(nft_loss, tensors, prompt_weight="grpo", epsilon=epsilon)
    torch.testing.assert_close(weighted, gradient(grpo_loss, tensors), rtol=0, atol=1e-9)


def test_nft_without_negatives_is_rft(batch, gradient):
    options = {"negative_weight": 0.0, "prompt_weight": "uniform"}
    torch.testing.assert_close(nft_loss(*batch, **options), rft_loss(*batch), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(nft_loss, batch, **options), gradient(rft_loss, batch), rtol=0, atol=1e-12)
    expected = -(batch[2] & batch[3][:, None]).double()
    torch.testing.assert_close(gradient(rft_loss, batch), expected, rtol=0, atol=0)
    assert OBJECTIVES["nft"].reduction == OBJECTIVES["rft"].reduction


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "constant"])
def test_dapo_with_equal_clips_is_grpo_under_one_reduction(reduction, batch, gradient):
    mask = batch[2]
    divisor = denominator(reduction, int(mask.sum()), len(mask), mask.shape[1])

    def reduced(loss, **options):
        return lambda *tensors: reduce_loss(loss(*tensors, **options), mask, reduction, divisor)

    ours = gradient(reduced(dapo_loss, clip_low=0.15, clip_high=0.15), batch)
    torch.testing.assert_close(ours, gradient(reduced(grpo_loss, clip=0.15), batch), rtol=0, atol=0)
    assert ours.abs().sum() > 0
    assert not torch.equal(ours, gradient(reduced(dapo_loss, clip_low=0.15, clip_high=0.9), batch))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("weight", ["uniform", "one_minus_rate", "grpo"])
@pytest.mark.parametrize(("epsilon", "negative_weight"), [(1.0, 1.0), (0.3, 1.0), (0.3, 0.5)])
def test_nft_gradient_off_policy(rate, weight, epsilon, negative_weight, gradient):
    options = {"prompt_weight": weight, "epsilon": epsilon, "negative_weight": negative_weight}
    omega = {"uniform": 1.0, "one_minus_rate": 1 - rate, "grpo": math.sqrt((1 - rate) / rate)}[weight]
    assert prompt_weight(torch.tensor([rate]), weight).item() == pytest.approx(omega, rel=1e-6)
    right = gradient(nft_loss, at_ratios(True, rate), **options)[0]
    torch.testing.assert_close(right, torch.full_like(RATIOS, -omega), rtol=1e-12, atol=0)
    wrong = gradient(nft_loss, at_ratios(False, rate), **options)[0]
    floored = ((1 - rate * RATIOS) / (1 - rate)).clamp(min=epsilon)
    expected = omega * negative_weight * rate * RATIOS / ((1 - rate) * floored)
    torch.testing.assert_close(wrong, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("loss", "clips"), [(grpo_loss, (0.2, 0.2)), (dr_grpo_loss, (0.2, 0.2)), (dapo_loss, (0.2, 0.28))]
)
def test_clipped_gradient_off_policy(loss, clips, gradient):
    """−A R inside; 0 for a right answer above the clip and a wrong one below it."""
    rate = 0.3
    std = 1 if loss is dr_grpo_loss else math.sqrt(rate * (1 - rate))
    right = gradient(loss, at_ratios(True, rate))[0]
    expected = torch.where(RATIOS.gt(1 + clips[1]), 0, -RATIOS * (1 - rate) / std)
    torch.testing.assert_close(right, expected, rtol=1e-9, atol=0)
    wrong = gradient(loss, at_ratios(False, rate))[0]
    expected = torch.where(RATIOS.lt(1 - clips[0]), 0, RATIOS * rate / std)
    torch.testing.assert_close(wrong, expected, rtol=1e-9, atol=0)


def test_nft_decays_where_grpo_is_cut(gradient):
    wrong = at_ratios(False, 0.5)
    clipped, smooth = gradient(grpo_loss, wrong)[0], gradient(nft_loss, wrong)[0]
    below = RATIOS < 0.8
    assert clipped[below].eq(0).all()
    assert clipped[~below].gt(0).all()
    assert smooth.gt(0).all()
    assert smooth.diff().gt(0).all()  # falls to 0 as R does, without a step: it is never steeper than R²
    assert (smooth[1:] / smooth[:-1]).max() < (RATIOS[1] / RATIOS[0]) ** 2
    assert smooth[0] < 0.02 * smooth[(RATIOS - 1).abs().argmin()]


def fit_wrong_answers(old, right_share, policy, logits, ratio, *, natural=False):
    """Minimises the exact expectation over wrong answers of nft_loss with ε = 0, from `logits`.

    `policy(logits)` and `old` are [answers, tokens]; an answer is right with probability `right_share`. Returns the
    probabilities of the answers that it ends with, and those of π⁺.
    """
    probability = old.sum(-1).exp()
    rate = (probability * right_share).sum()
    met = right_share < 1  # the answers that are ever wrong
    weight = (probability * (1 - right_share))[met]
    fixed = (old[met], torch.ones_like(old[met]), torch.zeros(len(weight), dtype=torch.bool), rate.expand(len(weight)))
    optimizer = torch.optim.Adam([logits], lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500, eta_min=1e-4)
    for _ in range(1500):
        optimizer.zero_grad()
        loss = nft_loss(policy(logits)[met], *fixed, epsilon=0.0, ratio=ratio, prompt_weight="uniform")
        (loss.sum(-1) * weight).sum().backward()
        if natural:  # the gradient by the policy's own metric: ∂/∂logits divided by the probabilities
            logits.data -= 0.05 * logits.grad / logits.detach().softmax(-1)
        else:
            optimizer.step()
            schedule.step()
    return policy(logits).detach().sum(-1).exp(), probability * right_share / rate


def test_wrong_answers_alone_recover_the_right_policy_tokens():
    """One table over six tokens; a token's answer is right with the probability `right_share`."""
    old = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.07, 0.03], dtype=torch.float64).log()[:, None]
    right_share = torch.tensor([0.1, 0.6, 0.3, 0.9, 0.5, 0.2], dtype=torch.float64)
    logits = old[:, 0].clone().requires_grad_()
    learnt, positive = fit_wrong_answers(old, right_share, lambda z: z.log_softmax(0)[:, None], logits, "token")
    torch.testing.assert_close(learnt, positive, rtol=0, atol=1e-5)
    assert (learnt - old.exp()[:, 0]).abs().max() > 0.1


def test_wrong_answers_alone_recover_the_right_policy_sequences():
    """Answers of two tokens out of three; the table holds the first token's logits, then the second's after each."""
    vocabulary = 3
    pairs = torch.cartesian_prod(torch.arange(vocabulary), torch.arange(vocabulary))

    def logprobs(table):
        logs = table.log_softmax(-1)
        return torch.stack([logs[0, pairs[:, 0]], logs[1 + pairs[:, 0], pairs[:, 1]]], -1)

    table = torch.randn(1 + vocabulary, vocabulary, dtype=torch.float64)
    right_share = 0.1 + 0.8 * torch.rand(len(pairs), dtype=torch.float64)
    logits = table.clone().requires_grad_()
    learnt, positive = fit_wrong_answers(logprobs(table), right_share, logprobs, logits, "sequence")
    torch.testing.assert_close(learnt, positive, rtol=0, atol=1e-5)
    assert (learnt - logprobs(table).sum(-1).exp()).abs().max() > 0.03


def test_wrong_answers_alone_recover_the_right_policy_with_certain_verdicts():
    """With each answer wholly right or wrong every split of the mass among right ones is optimal (π⁻_θ may be below 0
    there); the natural gradient from π_old treats them alike and so ends at π⁺."""
    old = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.07, 0.03], dtype=torch.float64).log()[:, None]
    right_share = torch.tensor([0, 1, 0, 1, 1, 0], dtype=torch.float64)
    logits = old[:, 0].clone().requires_grad_()
    learnt, positive = fit_wrong_answers(
        old, right_share, lambda z: z.log_softmax(0)[:, None], logits, "token", natural=True
    )
    torch.testing.assert_close(learnt, positive, rtol=0, atol=1e-6)
