"""Statements 1 to 4 of the method (docs/method.md, "What holds"), on numbers, in float64."""

import math

import pytest
import torch

from negaware.objectives import OBJECTIVES, dapo_loss, dr_grpo_loss, grpo_loss, nft_loss, rft_loss
from negaware.objectives.credit import prompt_weight
from negaware.objectives.ops import denominator, reduce_loss
from rounding import gamma

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


@pytest.mark.parametrize(("num_answers", "num_right"), EVERY_RATE)
def test_on_policy_nft_is_maxrl(num_answers, num_right, gradient):
    tensors = on_policy_group(num_answers, num_right)
    rewards = tensors[3].double()
    expected = -((rewards - rewards.mean()) / rewards.mean())[:, None].expand(-1, 3)
    torch.testing.assert_close(gradient(nft_loss, tensors, prompt_weight="maxrl"), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(gradient(OBJECTIVES["maxrl"], tensors), expected, rtol=0, atol=1e-9)


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


def side_weights(name, reduction, lengths, **options):
    """What a question's right and wrong answers weigh on-policy: Σ|∂ reduced loss/∂ log π| of each side."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    correct = torch.arange(len(lengths)) == 0
    leaf = torch.zeros(mask.shape, dtype=torch.float64, requires_grad=True)
    rate = torch.full((len(lengths),), 1 / len(lengths), dtype=torch.float64)
    loss = OBJECTIVES[name](leaf, leaf.detach(), mask, correct, rate, **options)
    divisor = denominator(reduction, sum(lengths), len(lengths), max(lengths))
    (found,) = torch.autograd.grad(reduce_loss(loss, mask, reduction, divisor), leaf)
    return found[correct].abs().sum().item(), found[~correct].abs().sum().item()


def test_answers_of_different_lengths_weigh_as_the_reduction_has_it():
    """K = 4, r̂ = 1/4, the right answer 100 tokens long and each wrong one 300: 100 √3 / 1000 and 900 / √3 / 1000 under
    a token mean, √3 / 4 each under a sequence mean."""
    lengths = [100, 300, 300, 300]
    by_tokens = pytest.approx((3**0.5 / 10, 0.9 / 3**0.5))  # 0.173 and 0.520
    by_answers = pytest.approx((3**0.5 / 4, 3**0.5 / 4))  # 0.433 and 0.433
    own = {name: OBJECTIVES[name].reduction for name in ("nft", "grpo")}
    assert side_weights("nft", own["nft"], lengths, prompt_weight="grpo") == by_tokens
    assert side_weights("grpo", own["grpo"], lengths) == by_answers
    assert side_weights("nft", "sequence_mean", lengths, prompt_weight="grpo") == by_answers
    assert side_weights("grpo", "token_mean", lengths) == by_tokens


ON_POLICY_PAIRS = [("grpo", "grpo"), ("one_minus_rate", "dr_grpo"), ("grpo", "dapo"), ("maxrl", "maxrl")]


def parameter_gradient(name, reduction, **options):
    """∂ reduced loss/∂ parameters of a small policy, on-policy, on ragged answers of three questions of four."""
    generator = torch.Generator().manual_seed(3)
    policy = torch.randn(5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([9, 1, 4, 2, 3, 3, 8, 1, 5, 9, 2, 6])
    correct = torch.tensor([1, 0, 0, 0, 1, 1, 0, 1, 0, 1, 1, 0], dtype=torch.bool)
    states = torch.randint(5, (12, 9), generator=generator)
    tokens = torch.randint(7, (12, 9), generator=generator)
    mask = torch.arange(9) < lengths[:, None]
    logprobs = policy.log_softmax(-1)[states, tokens]
    rate = correct.view(3, 4).double().mean(1).repeat_interleave(4)
    loss = OBJECTIVES[name](logprobs, logprobs.detach(), mask, correct, rate, **options)
    divisor = denominator(reduction, int(lengths.sum()), 12, 9)
    (found,) = torch.autograd.grad(reduce_loss(loss, mask, reduction, divisor), policy)
    return found


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "constant"])
@pytest.mark.parametrize(("weight", "other"), ON_POLICY_PAIRS)
def test_on_policy_the_parameters_have_one_gradient_under_one_reduction(reduction, weight, other):
    ours = parameter_gradient("nft", reduction, prompt_weight=weight)
    torch.testing.assert_close(ours, parameter_gradient(other, reduction), rtol=1e-9, atol=1e-12)
    assert ours.norm() > 1e-3


@pytest.mark.parametrize(("weight", "other"), [("grpo", "grpo"), ("one_minus_rate", "dr_grpo")])
def test_on_policy_the_parameters_gradients_differ_under_their_own_reductions(weight, other):
    """GRPO's by direction; Dr. GRPO's by a constant alone, which changes from batch to batch."""
    ours = parameter_gradient("nft", OBJECTIVES["nft"].reduction, prompt_weight=weight)
    theirs = parameter_gradient(other, OBJECTIVES[other].reduction)
    assert (ours - theirs).norm() > 0.1 * ours.norm()
    cosine = torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0).item()
    assert cosine == pytest.approx(1, abs=1e-9) if other == "dr_grpo" else cosine < 0.99


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("weight", ["uniform", "one_minus_rate", "grpo", "maxrl"])
@pytest.mark.parametrize(("epsilon", "negative_weight"), [(1.0, 1.0), (0.3, 1.0), (0.3, 0.5)])
def test_nft_gradient_off_policy(rate, weight, epsilon, negative_weight, gradient):
    options = {"prompt_weight": weight, "epsilon": epsilon, "negative_weight": negative_weight}
    odds = (1 - rate) / rate
    omega = {"uniform": 1.0, "one_minus_rate": 1 - rate, "grpo": math.sqrt(odds), "maxrl": odds}[weight]
    assert prompt_weight(torch.tensor([rate]), weight).item() == pytest.approx(omega, rel=gamma(8))
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


LAST_STEP = 1e-4
"""Adam's last learning rate. With every logit so far off, a probability is off by 2 p (1 − p) times that, its half."""


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
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500, eta_min=LAST_STEP)
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
    torch.testing.assert_close(learnt, positive, rtol=0, atol=LAST_STEP / 2)
    assert (learnt - old.exp()[:, 0]).abs().max() > 0.1


@pytest.mark.slow
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
    torch.testing.assert_close(learnt, positive, rtol=0, atol=0.6 * LAST_STEP)  # 2 p q (2 − p − q)
    assert (learnt - logprobs(table).sum(-1).exp()).abs().max() > 0.03


@pytest.mark.slow
def test_wrong_answers_alone_recover_the_right_policy_with_certain_verdicts():
    """With each answer wholly right or wrong every split of the mass among right ones is optimal (π⁻_θ may be below 0
    there); the natural gradient from π_old treats them alike and so ends at π⁺."""
    old = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.07, 0.03], dtype=torch.float64).log()[:, None]
    right_share = torch.tensor([0, 1, 0, 1, 1, 0], dtype=torch.float64)
    logits = old[:, 0].clone().requires_grad_()
    learnt, positive = fit_wrong_answers(
        old, right_share, lambda z: z.log_softmax(0)[:, None], logits, "token", natural=True
    )
    # Each step takes a share of what is missing, and 1,500 leave nothing but rounding: float64's unit is 1e-16.
    torch.testing.assert_close(learnt, positive, rtol=0, atol=1e-12)
