"""GRPO, Dr. GRPO and DAPO by hand-made numbers: clips, advantages, overlong shaping, counts."""

import math
from dataclasses import replace

import pytest
import torch

from negaware.objectives import OBJECTIVES, Answers, dapo_loss, dr_grpo_loss, grpo_loss

grpo_counts, dapo_counts = OBJECTIVES["grpo"].counts, OBJECTIVES["dapo"].counts


def rows(ratios, correct, rate):
    """[B, T] of one likelihood ratio a row, all tokens kept."""
    old = torch.full((len(ratios), 2), -1.0, dtype=torch.float64)
    log_ratios = torch.tensor(ratios, dtype=torch.float64).log()[:, None]
    mask = torch.ones_like(old, dtype=torch.bool)
    rates = torch.full((len(ratios),), rate, dtype=torch.float64)
    return old + log_ratios, old, mask, torch.tensor(correct), rates


def test_losses_in_closed_form():
    tensors = rows([1.1, 1.5, 1.1, 1.5, 0.5], [True, True, False, False, False], 0.4)
    right, wrong = 0.6, -0.4
    # min(R A, clip(R) A): the clip bounds what a right answer gains, never what a wrong one costs from above
    expected = torch.tensor([-1.1 * right, -1.2 * right, -1.1 * wrong, -1.5 * wrong, -0.8 * wrong], dtype=torch.float64)
    torch.testing.assert_close(dr_grpo_loss(*tensors)[:, 0], expected, rtol=1e-12, atol=0)
    std = math.sqrt(0.24)
    torch.testing.assert_close(grpo_loss(*tensors)[:, 1], expected / std, rtol=1e-12, atol=0)
    expected[1] = -1.28 * right
    torch.testing.assert_close(dapo_loss(*tensors)[:, 0], expected / std, rtol=1e-12, atol=0)


def test_the_clip_is_an_option():
    tensors = rows([3.0], [True], 0.5)
    assert grpo_loss(*tensors, clip=0.5)[0, 0].item() == pytest.approx(-1.5)
    assert dr_grpo_loss(*tensors, clip=0.1)[0, 0].item() == pytest.approx(-0.55)
    assert dapo_loss(*tensors, clip_low=0.9, clip_high=1.0)[0, 0].item() == pytest.approx(-2.0)


def test_clip_higher_is_an_option(batch, gradient):
    """`clip_high` alone changes the side above 1: with DAPO's, GRPO is DAPO, and Dr. GRPO that times √0.24."""
    tensors = rows([1.25, 1.5, 0.7, 1.5], [True, True, False, False], 0.4)
    torch.testing.assert_close(grpo_loss(*tensors, clip_high=0.28), dapo_loss(*tensors), rtol=0, atol=0)
    centred = dr_grpo_loss(*tensors, clip_high=0.28)
    torch.testing.assert_close(centred, dapo_loss(*tensors) * math.sqrt(0.24), rtol=1e-12, atol=0)
    assert centred[:, 0].tolist() == pytest.approx([-1.25 * 0.6, -1.28 * 0.6, 0.8 * 0.4, 1.5 * 0.4])
    assert torch.equal(gradient(grpo_loss, batch, clip_high=0.28), gradient(dapo_loss, batch))
    assert not torch.equal(
        gradient(grpo_loss, batch, clip_high=0.3), gradient(grpo_loss, batch)
    )  # one token is at 1.295
    assert torch.equal(grpo_loss(*batch, clip=0.1, clip_high=0.1), grpo_loss(*batch, clip=0.1))


def test_reductions_are_the_papers():
    reductions = {name: objective.reduction for name, objective in OBJECTIVES.items()}
    assert reductions == {
        "nft": "token_mean",
        "rft": "token_mean",
        "grpo": "sequence_mean",
        "dr_grpo": "constant",
        "dapo": "token_mean",
        "asymre": "token_mean",
        "cispo": "token_mean",
        "dppo": "constant",
        "gspo": "sequence_mean",
        "infonca": "group_mean",
        "maxrl": "token_mean",
        "psr_nsr": "token_mean",
        "real": "group_mean",
        "signed": "token_mean",
        "topr": "sequence_mean",
    }


@pytest.mark.parametrize("rate", [0.0, 1.0])
@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "maxrl", "cispo", "gspo", "dppo", "nft", "signed"])
def test_a_group_with_nothing_to_compare_teaches_nothing(name, rate, gradient):
    tensors = rows([1.0, 1.1], [rate == 1.0] * 2, rate)
    assert gradient(OBJECTIVES[name], tensors).eq(0).all()


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_penalty_on_five_tensors_teaches_nothing_of_a_group_with_nothing_to_compare(rate, gradient):
    tensors = rows([1.0, 1.1], [rate == 1.0] * 2, rate)
    assert gradient(dapo_loss, tensors, overlong_from=0, overlong_to=1).eq(0).all()


def overlong_advantages(lengths, correct, rate, **options):
    """The advantage that dapo_loss gives each answer: minus its loss where R = 1."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    logprobs = torch.full(mask.shape, -1.0, dtype=torch.float64)
    rates = torch.full((len(lengths),), rate, dtype=torch.float64)
    return -dapo_loss(logprobs, logprobs, mask, torch.tensor(correct), rates, **options)[:, 0]


def test_overlong_shaping():
    """The reward falls from 0 at four tokens to −1 at eight: 0, 0, −1/4, −1/2, −1, −1."""
    lengths, correct = [2, 4, 5, 6, 8, 10], [True, True, True, False, False, True]
    shaped = overlong_advantages(lengths, correct, 0.5, overlong_from=4, overlong_to=8)
    plain = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    penalty = torch.tensor([0.0, 0.0, -0.25, -0.5, -1.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(overlong_advantages(lengths, correct, 0.5), plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(shaped, plain + penalty / 0.5, rtol=0, atol=1e-12)


def test_counts_of_tokens_at_the_clip():
    tensors = rows([1.1, 1.25, 1.5, 0.5, 0.5, 1.5, 0.9], [True, True, True, True, False, False, False], 0.5)
    tensors[2][2, 1] = False
    tensors = (*tensors[:2], tensors[2], *tensors[3:])
    # silenced: right at 1.25 (two tokens) and at 1.5 (one is masked), wrong at 0.5 (two)
    assert {name: int(count) for name, count in grpo_counts(*tensors).items()} == {"at_clip": 5, "at_log_ratio_cap": 0}
    assert int(dapo_counts(*tensors)["at_clip"]) == 3
    assert int(grpo_counts(*tensors, clip=0.6)["at_clip"]) == 0
    # a right answer whose reward is the group's mean: its advantage is nought, and nothing is silenced
    answers = Answers(*rows([0.5, 1.5], [True, True], 0.5))
    spread = torch.ones(2, dtype=torch.float64)
    shaped = replace(answers, centred_reward=torch.zeros_like(spread), reward_std=spread)
    assert int(OBJECTIVES["dapo"].terms(shaped).counts["at_clip"]) == 0
    assert int(grpo_counts(*rows([math.exp(10.5), 1.0], [False, True], 0.5))["at_log_ratio_cap"]) == 2


@pytest.mark.parametrize("rewards", [None, [-0.4, 0.3, 0.0, 0.1, -0.2, 0.3, 0.4, -0.5]])
def test_at_clip_counts_exactly_the_tokens_without_gradient(rewards, batch):
    """Overlong shaping may turn a right answer's advantage negative, and with it the side on which it is clipped."""
    answers = Answers(batch[0].clone().requires_grad_(), *batch[1:])
    if rewards:
        centred = torch.tensor(rewards, dtype=torch.float64)
        answers = replace(answers, centred_reward=centred, reward_std=torch.full_like(centred, 0.3))
    terms = OBJECTIVES["dapo"].terms(answers)
    (gradient,) = torch.autograd.grad(terms.per_token.sum(), answers.logprobs)
    idle = batch[2] & (answers.centred_reward == 0)[:, None] if rewards else torch.zeros_like(batch[2])
    assert int(terms.counts["at_clip"]) == int((gradient.eq(0) & batch[2] & ~idle).sum()) > 0


@pytest.mark.parametrize(
    ("loss", "options", "said"),
    [
        (grpo_loss, {"clip": 0.0}, "must be above 0"),
        (dr_grpo_loss, {"clip": -0.2}, "must be above 0"),
        (grpo_loss, {"clip_high": 0.0}, "the clip is 0.2 below and 0.0 above 1; both must be above 0"),
        (dapo_loss, {"clip_high": -0.28}, "0.2 below and -0.28 above"),
        (dapo_loss, {"overlong_from": 8}, "overlong_to is None"),
        (dapo_loss, {"overlong_to": 8}, "overlong_from is None"),
        (dapo_loss, {"overlong_from": 8, "overlong_to": 8}, "give both, the first below the second, or none"),
    ],
)
def test_bad_options_are_refused(loss, options, said, batch):
    with pytest.raises(ValueError, match=said):
        loss(*batch, **options)
