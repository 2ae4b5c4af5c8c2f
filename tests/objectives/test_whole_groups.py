"""REAL and InfoNCA, which see a group as a whole: numbers made apart from this code, and on-policy theorems."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import logsigmoid

from negaware.objectives import OBJECTIVES, Answers, Objective, of_groups
from negaware.objectives.ops import reduce_loss
from negaware.objectives.whole_groups import Whole, WholeGroups

NO_SFT = {"sft_weight": 0.0}


def group_of(log_ratios, correct, number=0):
    """One group's answers, a row of log R each; its tensors, the group's number last."""
    longest = max(map(len, log_ratios))
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in log_ratios]).bool()
    rows = torch.tensor([[*row, *[0.0] * (longest - len(row))] for row in log_ratios], dtype=torch.float64)
    old = torch.full_like(rows, math.log(0.25))
    rate = torch.full((len(correct),), sum(correct) / len(correct), dtype=torch.float64)
    return old + rows, old, mask, torch.tensor(correct), rate, torch.full((len(correct),), number)


# K = 4, one right answer of one token: the group's loss and the gradient of each answer. REAL's public code and
# InfoNCA's give the same on these four answers.
@pytest.mark.parametrize(
    ("name", "options", "loss", "gradients"),
    [
        ("real", {}, 0.59814 + 1.50240, [-0.90033, 0.29842, 0.81119, 0.44519]),
        ("infonca", NO_SFT, 1.38146, [-0.07488, 0.02438, 0.02563, 0.02487]),
        ("infonca", {}, 1.38146 - 0.1, [-1.07488, 0.02438, 0.02563, 0.02487]),
        ("infonca", {"sft_weight": 0.5}, 1.38146 - 0.05, [-0.57488, 0.02438, 0.02563, 0.02487]),
    ],
)
def test_four_answers(name, options, loss, gradients, gradient):
    tensors = group_of([[0.1], [-0.2], [0.3], [0.0]], [True, False, False, False])
    assert OBJECTIVES[name](*tensors, **options).sum().item() == pytest.approx(
        loss, abs=1.001e-5
    )  # two numbers of five decimals
    assert gradient(OBJECTIVES[name], tensors, **options)[:, 0].tolist() == pytest.approx(gradients, abs=5.001e-6)


ROWS = [[0.3, -0.5, 0.1], [0.4], [-0.2, -0.1], [0.25, 0.15, -0.6]]
RIGHT = [True, False, True, False]


def test_real_is_of_means_and_infonca_of_sums(gradient):
    """Answers of 1 to 3 tokens, by the papers' formulas; the loss is spread evenly over the group's nine tokens."""
    tensors = group_of(ROWS, RIGHT)
    sums = [sum(row) for row in ROWS]
    means = [sum(row) / len(row) for row in ROWS]
    odds = [math.exp((-1 if right else 1) * mean / 0.5) for mean, right in zip(means, RIGHT, strict=True)]
    real = math.log(1 + odds[0] + odds[2]) + math.log(1 + odds[1] + odds[3])
    found = OBJECTIVES["real"](*tensors)
    assert found[tensors[2]].tolist() == pytest.approx([real / 9] * 9)
    slopes = [
        (-1 if right else 1)
        * odd
        / (1 + sum(o for o, r in zip(odds, RIGHT, strict=True) if r == right))
        / 0.5
        / len(row)
        for row, right, odd in zip(ROWS, RIGHT, odds, strict=True)
    ]
    expected = torch.tensor(slopes, dtype=torch.float64)[:, None] * tensors[2]
    torch.testing.assert_close(gradient(OBJECTIVES["real"], tensors), expected, rtol=1e-9, atol=1e-12)

    powers = [math.exp(0.2 * total) for total in sums]
    shares = [power / sum(powers) for power in powers]
    infonca = -sum(math.log(shares[k]) + 0.7 * means[k] for k in (0, 2)) / 2
    options = {"beta": 0.2, "sft_weight": 0.7}
    assert OBJECTIVES["infonca"](*tensors, **options).sum().item() == pytest.approx(infonca)
    slopes = [
        0.2 * share - right * (0.2 + 0.7 / len(row)) / 2 for row, right, share in zip(ROWS, RIGHT, shares, strict=True)
    ]
    expected = torch.tensor(slopes, dtype=torch.float64)[:, None] * tensors[2]
    torch.testing.assert_close(gradient(OBJECTIVES["infonca"], tensors, **options), expected, rtol=1e-9, atol=1e-12)


# --- theorems ---


@pytest.mark.parametrize(("num_answers", "num_right"), [(k, n) for k in (2, 3, 4, 8, 50) for n in range(1, k)])
def test_on_policy(num_answers, num_right, gradient):
    """InfoNCA's weights, its group's loss divided by answers, are β times MaxRL's; its SFT term's are those of a mean
    over right answers; REAL's are K/(τT(1 + n)) of each side's n."""
    correct = [index < num_right for index in range(num_answers)]
    tensors = group_of([[0.0] * 3] * num_answers, correct)
    maxrl = gradient(OBJECTIVES["maxrl"], tensors[:5])
    infonca = num_answers * gradient(OBJECTIVES["infonca"], tensors, beta=0.3, sft_weight=0.0)
    torch.testing.assert_close(infonca, 0.3 * maxrl, rtol=1e-9, atol=1e-12)
    right = tensors[3][:, None].double().expand(-1, 3)
    with_sft = gradient(OBJECTIVES["infonca"], tensors, beta=0.3, sft_weight=2.0)
    torch.testing.assert_close(with_sft, infonca / num_answers - 2 * right / 3 / num_right, rtol=1e-9, atol=1e-12)
    sides = -right / (1 + num_right) + (1 - right) / (1 + num_answers - num_right)
    expected = num_answers / (0.5 * 3) * sides
    torch.testing.assert_close(num_answers * gradient(OBJECTIVES["real"], tensors), expected, rtol=1e-9, atol=1e-12)


def test_on_policy_the_parameters_gradient_of_infonca_is_maxrls():
    """Three ragged groups, InfoNCA under the mean over groups, MaxRL divided by the number of answers."""
    generator = torch.Generator().manual_seed(3)
    policy = torch.randn(5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([9, 1, 4, 2, 3, 3, 8, 1, 5, 9, 2, 6])
    correct = torch.tensor([1, 0, 0, 0, 1, 1, 0, 1, 0, 1, 1, 0], dtype=torch.bool)
    states, tokens = (torch.randint(top, (12, 9), generator=generator) for top in (5, 7))
    mask = torch.arange(9) < lengths[:, None]
    logprobs = policy.log_softmax(-1)[states, tokens]
    rate = correct.view(3, 4).double().mean(1).repeat_interleave(4)
    five, group = (logprobs, logprobs.detach(), mask, correct, rate), torch.arange(3).repeat_interleave(4)
    infonca = reduce_loss(OBJECTIVES["infonca"](*five, group, **NO_SFT), mask, "group_mean", 3)
    maxrl = reduce_loss(OBJECTIVES["maxrl"](*five), mask, "sequence_sum", 12)
    ours, theirs = (torch.autograd.grad(loss, policy, retain_graph=True)[0] for loss in (infonca, maxrl))
    torch.testing.assert_close(ours, 0.1 * theirs, rtol=1e-9, atol=1e-12)
    assert ours.norm() > 1e-3


def test_of_two_answers_infonca_is_dpo():
    tensors = group_of([[0.3, 0.2], [-0.4]], [False, True])
    found = OBJECTIVES["infonca"](*tensors, **NO_SFT).sum()
    expected = -logsigmoid(torch.tensor(0.1 * (-0.4 - 0.5), dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


# --- groups ---


@pytest.mark.parametrize("name", ["real", "infonca"])
def test_the_other_answers_of_a_group_may_be_elsewhere(name, gradient):
    """An answer by itself, the rest of its group known by numbers alone: its gradient is what it is beside them, and
    another where they are elsewhere."""
    whole = group_of([*ROWS, [0.2]], [*RIGHT, False])
    expected = gradient(OBJECTIVES[name], whole)
    sums = (whole[0] - whole[1]).mul(whole[2]).sum(1)
    # Beside it in the mini-batch: a group of two, numbered first.
    groups = WholeGroups(
        torch.cat([torch.tensor([0.9, -0.9]), sums]),
        torch.cat([torch.tensor([4, 4]), whole[2].sum(1)]),
        torch.cat([torch.tensor([True, False]), whole[3]]),
        torch.tensor([0, 0, 1, 1, 1, 1, 1]),
    )
    for index in range(5):
        leaf, *others = (tensor[index : index + 1].clone() for tensor in whole)
        leaf.requires_grad_()
        answers = Answers(leaf, *others, whole=Whole(groups, torch.tensor([2 + index])))
        loss = OBJECTIVES[name].terms(answers).per_token
        loss.sum().backward()
        torch.testing.assert_close(leaf.grad, expected[index : index + 1], rtol=1e-9, atol=1e-12)
        moved = groups.log_ratio + 5.0
        moved[2 + index] -= 5.0
        answers = Answers(leaf, *others, whole=Whole(replace(groups, log_ratio=moved), torch.tensor([2 + index])))
        (other,) = torch.autograd.grad(OBJECTIVES[name].terms(answers).per_token.sum(), leaf)
        assert (other - expected[index : index + 1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["real", "infonca"])
def test_a_group_with_nothing_to_compare_teaches_nothing(name, gradient):
    """It counts in the number of groups, though, by which a mini-batch's loss is divided."""
    both = group_of([[0.3, 0.2], [-0.4]], [False, True])
    for right in (True, False):
        alike = group_of([[0.3, -0.1], [0.2, 0.2]], [right, right], number=1)
        assert OBJECTIVES[name](*alike).eq(0).all()
        assert gradient(OBJECTIVES[name], alike).eq(0).all()
        together = tuple(torch.cat(pair) for pair in zip(both, alike, strict=True))
        found = gradient(OBJECTIVES[name], together)
        torch.testing.assert_close(found[:2], gradient(OBJECTIVES[name], both), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["real", "infonca"])
def test_without_groups_it_is_refused(name, batch):
    with pytest.raises(
        ValueError, match=f"the objective {name} compares all answers of a group, but it wasn't told which"
    ):
        OBJECTIVES[name](*batch)


@pytest.mark.parametrize("size", [300.0, -300.0])
@pytest.mark.parametrize("name", ["real", "infonca"])
def test_answers_far_from_the_sampler_have_a_finite_gradient_and_are_counted(name, size, gradient):
    tensors = group_of([[size, 0.1], [0.0, -size], [-size, 5.0], [size, 0.0]], RIGHT)
    assert gradient(OBJECTIVES[name], tensors).isfinite().all()
    assert OBJECTIVES[name](*tensors).isfinite().all()
    assert int(OBJECTIVES[name].counts(*tensors)["at_log_ratio_cap"]) == 4


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("real", {"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ("infonca", {"beta": 0.0}, "beta is 0.0 and sft_weight is 1.0; the first must be above 0"),
        ("infonca", {"sft_weight": -1.0}, "beta is 0.1 and sft_weight is -1.0; the first"),
    ],
)
def test_bad_options_are_refused(name, options, said):
    with pytest.raises(ValueError, match=said):
        OBJECTIVES[name](*group_of([[0.0], [0.0]], [True, False]), **options)


# --- a loss of one's own ---


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda groups: groups.log_ratio, r"gave a tensor of shape \[2\]; it should be \[1\], the loss of each group"),
        (lambda groups: groups.log_ratio.sum(), r"gave a tensor of shape \[\]; it should be \[1\]"),
        (lambda groups: 0.0, r"gave float; it should be \[1\]"),
        (
            lambda groups: groups.sums(groups.log_ratio.detach()),
            "has no gradient; it should be computed from groups.log",
        ),
    ],
)
def test_what_is_no_loss_of_groups_is_told(function, said):
    answers = Answers(*group_of([[0.0], [0.0]], [True, False]))
    with pytest.raises(ValueError, match=said):
        of_groups(function)(answers)


def test_groups_may_be_compared_with_each_other(gradient):
    """A loss of one's own may: it sees all groups of the mini-batch, wherever its answers are."""

    @of_groups
    def apart(groups: WholeGroups) -> torch.Tensor:
        sums = groups.sums(groups.log_ratio)
        return (sums - sums.mean()).square()

    logprobs = torch.tensor([[0.1, -0.2], [0.3, 0.0], [0.4, 0.2], [-0.1, 0.6]], dtype=torch.float64)
    mask, right = torch.ones(4, 2, dtype=torch.bool), torch.tensor([True, False] * 2)
    group, rate = torch.tensor([0, 0, 1, 1]), torch.full((4,), 0.5, dtype=torch.float64)
    objective = Objective("apart", apart, "group_mean")
    tensors = (logprobs, torch.zeros_like(logprobs), mask, right, rate, group)
    expected = gradient(objective, tensors)
    assert expected.abs().min() > 0.1
    groups = WholeGroups(logprobs.sum(1), mask.sum(1), right, group)
    for index in range(4):
        leaf, *others = (tensor[index : index + 1].clone() for tensor in tensors)
        answers = Answers(leaf.requires_grad_(), *others, whole=Whole(groups, torch.tensor([index])))
        objective.terms(answers).per_token.sum().backward()
        torch.testing.assert_close(leaf.grad, expected[index : index + 1], rtol=1e-9, atol=1e-12)
