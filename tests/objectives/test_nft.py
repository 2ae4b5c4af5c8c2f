"""NFT's loss and counts by hand-made numbers: the floor, the cap, the clamp, the ratio of whole answers."""

import math

import pytest
import torch

from negaware.objectives import OBJECTIVES, Answers, nft_loss, rft_loss
from negaware.objectives.contract import gradient_weights
from negaware.objectives.ops import LOG_RATIO_CAP, floor_value

nft_counts = OBJECTIVES["nft"].counts


def answers(log_ratios, correct, rate):
    """Rows of the log-ratios (None: masked), the verdicts and the pass rates given."""
    mask = torch.tensor([[value is not None for value in row] for row in log_ratios])
    ratios = torch.tensor([[value or 0.0 for value in row] for row in log_ratios], dtype=torch.float64)
    old = torch.full_like(ratios, -12.0)
    return old + ratios, old, mask, torch.tensor(correct), torch.tensor(rate, dtype=torch.float64)


def test_loss_in_closed_form():
    tensors = answers([[0.3, -0.2], [math.log(0.5), None]], [True, False], [0.25, 0.25])
    implicit = (1 - 0.25 * 0.5) / 0.75
    expected = torch.tensor([[-0.75 * 0.3, 0.75 * 0.2], [-0.75 * 0.5 * math.log(implicit), 0.0]], dtype=torch.float64)
    torch.testing.assert_close(nft_loss(*tensors, negative_weight=0.5), expected, rtol=1e-12, atol=0)


def test_floor_value_floors_the_value_and_passes_the_gradient():
    x = torch.tensor([-1e6, -1.0, 0.0005, 2.0], requires_grad=True)
    floored = floor_value(x, 0.001)
    floor = torch.tensor(0.001).item()
    assert floored.tolist() == [floor, floor, floor, 2.0]  # exactly, in float32, however far below
    floored.sum().backward()
    assert x.grad.tolist() == [1.0] * 4


def test_the_gradient_flows_at_the_floor(gradient):
    tensors = answers([[math.log(1.8)]], [False], [0.5])  # (1 − 0.9)/0.5 = 0.2, below ε
    assert nft_loss(*tensors, epsilon=0.4).item() == pytest.approx(-0.5 * math.log(0.4))
    assert gradient(nft_loss, tensors, epsilon=0.4).item() == pytest.approx(0.5 * 0.5 * 1.8 / (0.5 * 0.4))
    assert nft_loss(*tensors).item() == 0  # log 1
    assert gradient(nft_loss, tensors).item() == pytest.approx(0.5 * 0.5 * 1.8 / 0.5)


def test_without_a_floor_right_answers_stay_finite(gradient):
    tensors = answers([[3.0, math.log(2.0)]], [True], [0.5])  # (1 − r̂R)/(1 − r̂) is below 0, and 0
    assert gradient(nft_loss, tensors, epsilon=0.0).tolist() == [[-0.5, -0.5]]
    assert nft_loss(*answers([[3.0]], [False], [0.5]), epsilon=0.0).item() == float("inf")


@pytest.mark.parametrize("beyond", [10.5, 50.0, 800.0])
def test_the_log_ratio_is_capped_on_wrong_answers(beyond, gradient):
    tensors = answers([[beyond, 0.0]], [False], [0.5])
    value = nft_loss(*tensors, epsilon=1.0)
    assert value.isfinite().all()
    assert gradient(nft_loss, tensors)[0, 0].item() == 0
    at_cap = gradient(nft_loss, answers([[LOG_RATIO_CAP, 0.0]], [False], [0.5]))[0, 0].item()
    assert at_cap == pytest.approx(0.5 * 0.5 * math.exp(10) / 0.5)
    right = answers([[beyond]], [True], [0.5])
    assert nft_loss(*right).item() == pytest.approx(-0.5 * beyond)
    assert gradient(nft_loss, right).item() == pytest.approx(-0.5)
    assert gradient(rft_loss, right).item() == pytest.approx(-1)


@pytest.mark.parametrize(("rate", "clamped"), [(0.001, 0.02), (0.999, 0.98)])
@pytest.mark.parametrize("weight", ["uniform", "one_minus_rate", "grpo", "maxrl"])
def test_the_pass_rate_is_clamped(rate, clamped, weight):
    given = answers([[0.1], [-0.4]], [True, False], [rate, rate])
    meant = answers([[0.1], [-0.4]], [True, False], [clamped, clamped])
    loss = nft_loss(*given, prompt_weight=weight)
    assert loss.isfinite().all()
    torch.testing.assert_close(loss, nft_loss(*meant, prompt_weight=weight), rtol=0, atol=0)


@pytest.mark.parametrize("weight", ["uniform", "one_minus_rate", "grpo", "maxrl"])
def test_a_group_of_one_verdict_has_weight_0(weight):
    """Under a clamped r̂ the all-wrong group would have ω = 49 with `maxrl`. Nothing of it is counted either."""
    tensors = answers([[0.1, 11.0], [-0.4, 0.3]], [True, False], [1.0, 0.0])
    for ratio in ("token", "sequence"):
        assert nft_loss(*tensors, prompt_weight=weight, ratio=ratio).eq(0).all()
    assert [int(count) for count in nft_counts(*tensors, prompt_weight=weight).values()] == [0, 0, 0]


def test_right_answers_have_a_weight_too():
    tensors = answers([[0.3, -0.2], [math.log(0.5), None]], [True, False], [0.25, 0.25])
    half, none, one = (nft_loss(*tensors, positive_weight=weight) for weight in (0.5, 0.0, 1.0))
    torch.testing.assert_close(half[0], one[0] / 2, rtol=1e-12, atol=0)
    assert none[0].eq(0).all()
    assert torch.equal(none[1], one[1])
    assert torch.equal(half[1], one[1])
    assert one[1, 0] < 0
    right, wrong = gradient_weights(OBJECTIVES["nft"], Answers(*tensors), {"positive_weight": 0.0})
    assert (right.item(), wrong.item()) == (0, pytest.approx(0.75 * 0.25 * 0.5 / (1 - 0.25 * 0.5)))


def test_rft_has_nfts_prompt_weights():
    """Under one ω only wrong answers separate them; a group of right answers alone counts under `uniform`."""
    tensors = answers([[0.3, -0.2], [-0.4, None], [0.7, None]], [True, False, True], [0.25, 0.25, 1.0])
    for weight, omega in {"uniform": 1.0, "one_minus_rate": 0.75, "grpo": 3**0.5, "maxrl": 3.0}.items():
        loss = rft_loss(*tensors, prompt_weight=weight)
        assert loss[0].tolist() == pytest.approx([-0.3 * omega, 0.2 * omega])
        assert torch.equal(loss[0], nft_loss(*tensors, prompt_weight=weight)[0])
        assert loss[1].eq(0).all()
        assert loss[2, 0].item() == (pytest.approx(-0.7) if weight == "uniform" else 0)
    assert torch.equal(rft_loss(*tensors), rft_loss(*tensors, prompt_weight="uniform"))


def test_a_sequence_ratio_gives_one_term_an_answer(gradient):
    rows = [[0.2, -0.5, 0.1], [-0.3, 0.05, None], [0.4, None, None]]
    tensors = answers(rows, [True, False, False], [0.25] * 3)
    loss = nft_loss(*tensors, ratio="sequence", epsilon=0.1)
    ratio = [math.exp(-0.2), math.exp(-0.25), math.exp(0.4)]
    terms = [0.2, *(-math.log((1 - 0.25 * r) / 0.75) for r in ratio[1:])]
    torch.testing.assert_close(loss.sum(1), 0.75 * torch.tensor(terms, dtype=torch.float64), rtol=1e-9, atol=0)
    assert loss[1, 0] == loss[1, 1]
    weights = gradient(nft_loss, tensors, ratio="sequence", epsilon=0.1)
    slope = [-0.75, *(0.75 * 0.25 * r / (1 - 0.25 * r) for r in ratio[1:])]
    for row, length, expected in zip(weights, (3, 2, 1), slope, strict=True):  # the same on each of its tokens
        torch.testing.assert_close(row[:length], torch.full((length,), expected, dtype=torch.float64))


def test_a_sequence_ratio_of_one_token_is_a_token_ratio():
    tensors = answers([[0.3], [-0.7], [0.9]], [True, False, False], [0.4] * 3)
    torch.testing.assert_close(nft_loss(*tensors, ratio="sequence"), nft_loss(*tensors), rtol=0, atol=0)


def test_counts():
    rows = [[math.log(1.5), math.log(0.5), None], [math.log(1.5), 11.0, math.log(0.5)], [11.0, 0.0, None]]
    tensors = answers(rows, [True, False, True], [0.5, 0.5, 0.01])
    counts = {name: int(count) for name, count in nft_counts(*tensors).items()}
    assert counts == {"at_epsilon": 2, "at_log_ratio_cap": 2, "pass_rate_clamped": 2}
    # (1 − 0.75)/0.5 = 0.5 is above a lower ε; only the capped token stays below it
    assert int(nft_counts(*tensors, epsilon=0.4)["at_epsilon"]) == 1
    assert int(nft_counts(*tensors, ratio="sequence")["at_log_ratio_cap"]) == 3 + 2
    on_policy = answers([[0.0, 0.0]], [False], [0.5])
    assert int(nft_counts(*on_policy)["at_epsilon"]) == 0


def test_gradient_weights_are_what_each_side_got():
    tensors = answers([[0.1, 0.2], [math.log(0.5), None]], [True, False], [0.25, 0.25])
    right, wrong = gradient_weights(OBJECTIVES["nft"], Answers(*tensors), {"prompt_weight": "uniform"})
    assert right.item() == pytest.approx(2.0)
    assert wrong.item() == pytest.approx(0.25 * 0.5 / (1 - 0.25 * 0.5))
    with torch.no_grad():  # also where no gradient is being recorded
        assert gradient_weights(OBJECTIVES["rft"], Answers(*tensors), {})[1].item() == 0


def test_on_policy_both_sides_get_the_same_weight():
    tensors = answers([[0.0], [0.0], [0.0], [0.0]], [True, False, False, False], [0.25] * 4)
    for weight in ("uniform", "one_minus_rate", "grpo", "maxrl"):
        right, wrong = gradient_weights(OBJECTIVES["nft"], Answers(*tensors), {"prompt_weight": weight})
        assert right.item() == pytest.approx(wrong.item())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epsilon": -0.1}, "epsilon is -0.1; it may not be below 0"),
        ({"negative_weight": -1.0}, "negative_weight is -1.0; it may not be below 0"),
        ({"positive_weight": -0.5}, "positive_weight is -0.5; it may not be below 0"),
        ({"positive_weight": 0.0, "negative_weight": 0.0}, "are both 0: nothing would be learnt; set one above 0"),
    ],
)
def test_bad_options_are_refused(options, said, batch):
    """Misspelt names too: test_import, since the checks of this process would refuse them first."""
    with pytest.raises(ValueError, match=said):
        nft_loss(*batch, **options)


def test_one_term_an_answer_is_averaged_over_answers():
    assert OBJECTIVES["nft"].reduction_under({"ratio": "sequence"}) == "sequence_sum"
    assert OBJECTIVES["nft"].reduction_under({}) == "token_mean"
