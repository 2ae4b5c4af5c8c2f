"""The objectives that NFT is compared with, by numbers made apart from this code, and what they count."""

import math

import pytest
import torch

from negaware.objectives import OBJECTIVES

# K = 4, one right answer, log R = (.1, −.2, .3, 0), π_old = 1/4: the loss of each answer, and its gradient (None: the
# same). Taken from the papers' formulas, and where they publish code from that code, run on these four answers.
TABLE = [
    ("nft", {"prompt_weight": "maxrl"}, [-0.3, -0.17600, 0, 0], [-3, 0.77208, 1.34986, 1]),
    ("maxrl", {}, [-3.31551, 0.81873, 1.34986, 1], None),
    ("psr_nsr", {"positive_weight": 1.0, "negative_weight": 0.0}, [-1.10517, 0, 0, 0], None),
    ("psr_nsr", {"positive_weight": 0.0}, [0, 0.81873, 1.34986, 1], None),
    ("psr_nsr", {}, [-0.11052, 0.81873, 1.34986, 1], None),
    ("psr_nsr", {"positive_weight": 1.0}, [-1.10517, 0.81873, 1.34986, 1], None),
    ("signed", {}, [-0.075, -0.15, 0.225, 0], [-0.75, 0.75, 0.75, 0.75]),
    ("topr", {}, [-0.1, -0.16375, 0.3, 0], [-1, 0.81873, 1, 1]),
    ("cispo", {}, [-0.19142, -0.09454, 0.23380, 0], [-1.91421, 0.47269, 0.77934, 0.57735]),
    ("gspo", {}, [-1.73274, 0.57718, 0.77934, 0.57735], [0, 0, 0.77934, 0.57735]),
    ("dppo", {}, [-0.82888, 0.20468, 0.33746, 0.25], None),
    ("asymre", {}, [-0.085, -0.03, 0.045, 0], [-0.85, 0.15, 0.15, 0.15]),
]

HALF_A_DIGIT = 5.001e-6
"""The table has five decimals."""
QUARTER = math.log(0.25)


def group(log_ratios, correct, old=QUARTER, rate=None):
    """Answers of one token each, or of the tokens of each row."""
    ratios = torch.tensor(log_ratios, dtype=torch.float64)
    ratios = ratios if ratios.dim() == 2 else ratios[:, None]
    verdicts = torch.tensor(correct)
    rates = torch.full((len(verdicts),), sum(correct) / len(correct) if rate is None else rate, dtype=torch.float64)
    olds = torch.full_like(ratios, old)
    return olds + ratios, olds, torch.ones_like(olds, dtype=torch.bool), verdicts, rates


@pytest.mark.parametrize(("name", "options", "losses", "gradients"), TABLE)
def test_four_answers(name, options, losses, gradients, gradient):
    tensors = group([0.1, -0.2, 0.3, 0.0], [True, False, False, False])
    assert OBJECTIVES[name](*tensors, **options)[:, 0].tolist() == pytest.approx(losses, abs=HALF_A_DIGIT)
    found = gradient(OBJECTIVES[name], tensors, **options)[:, 0].tolist()
    assert found == pytest.approx(gradients or losses, abs=HALF_A_DIGIT)


# --- at R = 1, where the clip, cap and taper rest ---

ON_POLICY = [
    ("signed", {"prompt_weight": "uniform"}, lambda rate: (1, -1)),
    ("psr_nsr", {}, lambda rate: (0.1, -1)),
    ("psr_nsr", {"positive_weight": 0.0}, lambda rate: (0, -1)),
    ("psr_nsr", {"positive_weight": 1.0, "negative_weight": 0.0}, lambda rate: (1, 0)),
    ("topr", {}, lambda rate: (1, -1)),
    ("maxrl", {}, lambda rate: ((1 - rate) / rate, -1)),
    ("cispo", {}, lambda rate: (((1 - rate) / rate) ** 0.5, -((rate / (1 - rate)) ** 0.5))),
    ("gspo", {}, lambda rate: (((1 - rate) / rate) ** 0.5, -((rate / (1 - rate)) ** 0.5))),
    ("dppo", {}, lambda rate: (1 - rate, -rate)),
    ("asymre", {}, lambda rate: (1.1 - rate, 0.1 - rate)),
]


@pytest.mark.parametrize("rate", [1 / 8, 1 / 2, 7 / 8])
@pytest.mark.parametrize(("name", "options", "weights"), ON_POLICY)
def test_weights_on_policy(name, options, weights, rate, gradient):
    """Of each token of answers of two tokens, added up as its paper does but for the division by the length."""
    tensors = group([[0.0, 0.0], [0.0, 0.0]], [True, False], rate=rate)
    right, wrong = weights(rate)
    found = -gradient(OBJECTIVES[name], tensors, **options)
    torch.testing.assert_close(found, torch.tensor([[right] * 2, [wrong] * 2], dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("rate", [1 / 8, 1 / 2, 7 / 8])
def test_off_policy_nft_is_cispo_on_wrong_answers_above_one(rate, gradient):
    """ω = `grpo`, ε = 1: the same weight for R ≥ 1; below, that times (1 − r̂)/(1 − r̂R)."""
    ratios = torch.tensor([0.1, 0.5, 0.9, 1.0, 1.5, 3.0, 4.9], dtype=torch.float64)
    tensors = group([ratios.log().tolist()], [False], rate=rate)
    nft = gradient(OBJECTIVES["nft"], tensors, prompt_weight="grpo")[0]
    cispo = gradient(OBJECTIVES["cispo"], tensors)[0]
    factor = torch.where(ratios < 1, (1 - rate) / (1 - rate * ratios), 1.0)
    torch.testing.assert_close(nft, cispo * factor, rtol=1e-9, atol=0)


# --- whole answers ---


def test_toprs_ratio_is_the_whole_answers(gradient):
    tensors = group([[0.3, -0.5], [0.3, -0.5], [0.4, -0.1]], [True, False, False])
    tapered = math.exp(-0.2)
    found = gradient(OBJECTIVES["topr"], tensors)
    expected = torch.tensor([[-1, -1], [tapered] * 2, [1, 1]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert OBJECTIVES["topr"](*tensors)[1].tolist() == pytest.approx([0.3 * tapered, -0.5 * tapered])


def test_gspos_ratio_is_the_answers_mean(gradient):
    """One term an answer, s A with s = e^(mean of log R), repeated at its tokens; under the mean, s A/T a token."""
    tensors = group([[0.3, -0.3002], [0.4, -0.2], [0.2, 0.2]], [True, False, False])
    loss = OBJECTIVES["gspo"](*tensors)
    right, wrong = -math.sqrt(2), 1 / math.sqrt(2)
    means = [-0.0001, 0.1, 0.2]
    expected = [right * math.exp(means[0]), wrong * math.exp(means[1]), wrong * math.exp(means[2])]
    assert loss.mean(1).tolist() == pytest.approx(expected, rel=1e-9)
    assert (loss[:, 0] == loss[:, 1]).all()
    torch.testing.assert_close(gradient(OBJECTIVES["gspo"], tensors), loss, rtol=1e-9, atol=0)


# --- what is silenced and capped, and that it is counted ---


def test_dppo_leaves_out_what_moved_too_far(gradient):
    """π_old = .74, δ = .13: .74 (1 − e^−.2) = .134. The same move back towards π_old is kept."""
    tensors = group([-0.2, -0.2, -0.19, 0.0], [False, True, False, False], old=math.log(0.74))
    found = gradient(OBJECTIVES["dppo"], tensors, delta=0.13)[:, 0]
    assert found.tolist() == pytest.approx([0, -0.75 * math.exp(-0.2), 0.25 * math.exp(-0.19), 0.25])
    assert int(OBJECTIVES["dppo"].counts(*tensors, delta=0.13)["at_clip"]) == 1


@pytest.mark.parametrize(("cap", "weight", "counted"), [(5.0, 5.0, 1), (None, 8.0, 0)])
def test_dppos_cap_keeps_the_gradient(cap, weight, counted, gradient):
    tensors = group([math.log(8.0), 0.0], [False, True], old=-9.0)
    assert gradient(OBJECTIVES["dppo"], tensors, cap=cap)[:, 0].tolist() == pytest.approx([0.5 * weight, -0.5])
    assert int(OBJECTIVES["dppo"].counts(*tensors, cap=cap)["at_cap"]) == counted


@pytest.mark.parametrize(("cap", "weights", "counted"), [(5.0, [5.0, 3.0], 1), (2.0, [2.0, 2.0], 2)])
def test_cispos_cap_keeps_the_gradient(cap, weights, counted, gradient):
    tensors = group([math.log(8.0), math.log(3.0)], [False, True])
    found = gradient(OBJECTIVES["cispo"], tensors, cap=cap)[:, 0]
    assert found.tolist() == pytest.approx([weights[0], -weights[1]])
    assert int(OBJECTIVES["cispo"].counts(*tensors, cap=cap)["at_cap"]) == counted


@pytest.mark.parametrize(
    ("name", "options", "counts"),
    [
        ("asymre", {}, {"at_log_ratio_cap": 4}),
        ("signed", {}, {"at_log_ratio_cap": 4, "pass_rate_clamped": 0}),
        ("topr", {}, {"at_cap": 2, "at_log_ratio_cap": 2}),
        ("cispo", {}, {"at_cap": 2, "at_log_ratio_cap": 2}),
        ("gspo", {}, {"at_clip": 6, "at_log_ratio_cap": 2}),
        ("dppo", {}, {"at_clip": 3, "at_cap": 2, "at_log_ratio_cap": 2}),
        ("maxrl", {}, {"at_clip": 3, "at_log_ratio_cap": 2}),
        ("psr_nsr", {"positive_weight": 0.0}, {"at_clip": 2, "at_log_ratio_cap": 2}),
    ],
)
def test_counts(name, options, counts):
    """Two tokens an answer: the right one's at R = e^0.5 and 1, wrong ones' at e^−11, at e^11 and at e^−0.1."""
    rows = [[0.5, 0.0], [-11.0, -11.0], [11.0, 11.0], [-0.1, -0.1]]
    tensors = group(rows, [True, False, False, False])
    found = {counted: int(count) for counted, count in OBJECTIVES[name].counts(*tensors, **options).items()}
    assert found == counts


def test_uninformative_groups_train_those_without_a_baseline(gradient):
    """An all-wrong group trains NSR and TOPR, an all-right one PSR too; AsymRE pushes both up by −δ."""
    wrong, right = group([0.0, 0.0], [False, False]), group([0.0, 0.0], [True, True])
    for name, all_wrong, all_right in [("psr_nsr", 1.0, -0.1), ("topr", 1.0, -1.0), ("asymre", -0.1, -0.1)]:
        assert gradient(OBJECTIVES[name], wrong)[:, 0].tolist() == pytest.approx([all_wrong] * 2)
        assert gradient(OBJECTIVES[name], right)[:, 0].tolist() == pytest.approx([all_right] * 2)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("cispo", {"cap": 0.0}, "cap is 0.0; it must be above 0"),
        ("dppo", {"delta": 0.0}, "delta is 0.0 and cap is 5.0; both must be above 0"),
        ("dppo", {"cap": -1.0}, "delta is 0.15 and cap is -1.0; both"),
        ("gspo", {"clip_low": 0.0}, "the clip is 0.0 below and 0.0004 above 1; both must be above 0"),
        ("maxrl", {"clip_high": 0.0}, "the clip is 0.2 below and 0.0 above 1"),
        ("psr_nsr", {"positive_weight": -1.0}, "positive_weight is -1.0; it may not be below 0"),
        ("psr_nsr", {"negative_weight": -1.0}, "negative_weight is -1.0; it may not be below 0"),
        ("psr_nsr", {"positive_weight": 0.0, "negative_weight": 0.0}, "both 0: nothing would be learnt"),
    ],
)
def test_bad_options_are_refused(name, options, said, batch):
    with pytest.raises(ValueError, match=said):
        OBJECTIVES[name](*batch, **options)
