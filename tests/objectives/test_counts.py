"""What lies on a bound is not beyond it: it has its gradient, and no metric counts it."""

import math

import pytest
import torch
from test_rivals import group

from negaware.objectives import OBJECTIVES, Answers


def counts(name, tensors, **options):
    answers = Answers(*tensors, group=torch.zeros(len(tensors[0]), dtype=torch.int64))
    return {counted: int(count) for counted, count in OBJECTIVES[name].terms(answers, **options).counts.items()}


BOTH_SIDES = ("asymre", "infonca", "real", "signed")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_log_ratio_cap(name):
    """Of a right and a wrong answer each, at the cap of 10 and just beyond."""
    beyond = math.nextafter(10, 11)
    for log_ratio, counted in ((10.0, 0), (beyond, 2), (-10.0, 0), (-beyond, 2 if name in BOTH_SIDES else 0)):
        tensors = group([log_ratio, log_ratio, 0.0], [True, False, False], old=0.0)
        assert counts(name, tensors)["at_log_ratio_cap"] == counted


CLIPPED = {
    "grpo": "clip",
    "dr_grpo": "clip",
    "dapo": "clip_low",
    "maxrl": "clip",
    "psr_nsr": "clip",
    "gspo": "clip_low",
}


@pytest.mark.parametrize("name", CLIPPED)
def test_the_clip(name, gradient):
    """A right answer at 1 + c' and a wrong one at 1 − c; both differences are exact."""
    tensors = group([0.25, -0.25], [True, False], old=0.0)
    above, below = tensors[0][:, 0].exp().tolist()
    high, low = above - 1, 1 - below
    assert counts(name, tensors, **{"clip_high": high, CLIPPED[name]: low})["at_clip"] == 0
    for factor in (0.5, 1 - 1e-9):
        narrow = {"clip_high": factor * high, CLIPPED[name]: factor * low}
        assert counts(name, tensors, **narrow)["at_clip"] == 2
        assert gradient(OBJECTIVES[name], tensors, **narrow).tolist() == [[0.0], [0.0]]
    turned = group([-0.25, 0.25], [True, False], old=0.0)  # back towards π_old's side: never clipped
    assert counts(name, turned, **{"clip_high": 0.1, CLIPPED[name]: 0.1})["at_clip"] == 0


def test_an_answer_that_counts_for_nothing_is_not_clipped():
    for log_ratio in (-1.0, 1.0):
        for name in ("grpo", "dapo", "gspo", "dppo"):
            assert counts(name, group([log_ratio], [True], old=-1.0))["at_clip"] == 0
        assert counts("psr_nsr", group([log_ratio], [True]), positive_weight=0.0)["at_clip"] == 0
        assert counts("psr_nsr", group([log_ratio], [False]), negative_weight=0.0)["at_clip"] == 0


@pytest.mark.parametrize("name", ["cispo", "dppo", "topr"])
def test_the_cap_of_a_weight(name):
    """Of a wrong answer at R = 1, and just beyond."""
    options = {} if name == "topr" else {"cap": 1.0}
    for log_ratio, counted in ((0.0, 0), (1e-6, 1)):
        assert counts(name, group([log_ratio, 0.0], [False, True]), **options)["at_cap"] == counted


def test_dppos_distance(gradient):
    tensors = group([0.5, -0.5], [True, False], old=-1.0)
    right, wrong = (tensors[0].exp() - tensors[1].exp()).abs()[:, 0].tolist()
    for delta, counted in ((right, 0), ((right + wrong) / 2, 1), (wrong, 1), (math.nextafter(wrong, 0), 2)):
        assert counts("dppo", tensors, delta=delta)["at_clip"] == counted
        assert int((gradient(OBJECTIVES["dppo"], tensors, delta=delta) == 0).sum()) == counted
    turned = group([-0.5, 0.5], [True, False], old=-1.0)  # as far, but not where it is pushed
    assert counts("dppo", turned, delta=0.01)["at_clip"] == 0


def test_nfts_floor_and_the_clamp_of_the_pass_rate():
    for log_ratio, counted in ((0.0, 0), (1e-6, 1), (-1e-6, 0)):
        assert counts("nft", group([log_ratio, 0.0], [False, True]))["at_epsilon"] == counted
    for rate, counted in ((0.02, 0), (0.98, 0), (0.0199, 2), (0.9801, 2)):
        for name in ("nft", "signed"):
            assert counts(name, group([0.0, 0.0], [False, True], rate=rate))["pass_rate_clamped"] == counted
