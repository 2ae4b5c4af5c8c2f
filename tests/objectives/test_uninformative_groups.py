"""What each objective makes of groups that are all right or all wrong, which `rollout.filter: none` trains on."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from negaware.objectives import OBJECTIVES
from negaware.objectives.contract import Answers, Objective, Terms, made_up_answers, reads_rewards, teaching_rates
from rounding import gamma

LEARNS = {
    # all wrong; all right: the weight on the log-probability of each token at R = 1, minus its gradient
    "nft": (0.0, 0.0),
    "signed": (0.0, 0.0),
    "grpo": (0.0, 0.0),
    "dr_grpo": (0.0, 0.0),
    "dapo": (0.0, 0.0),
    "cispo": (0.0, 0.0),
    "gspo": (0.0, 0.0),
    "dppo": (0.0, 0.0),
    "maxrl": (0.0, 0.0),
    "infonca": (0.0, 0.0),
    "real": (0.0, 0.0),
    "rft": (0.0, 1.0),
    "topr": (-1.0, 1.0),
    "psr_nsr": (-1.0, 0.1),
    "asymre": (0.1, 0.1),
}
OTHERS: list[tuple[str, dict[str, Any], tuple[float, float]]] = [
    *((name, {"prompt_weight": weight}, (0.0, 0.0)) for name in ("nft", "signed") for weight in ("grpo", "maxrl")),
    ("nft", {"prompt_weight": "uniform", "epsilon": 0.1}, (0.0, 0.0)),
    ("nft", {"positive_weight": 0.0}, (0.0, 0.0)),
    ("nft", {"ratio": "sequence"}, (0.0, 0.0)),
    *(("rft", {"prompt_weight": weight}, (0.0, 0.0)) for weight in ("one_minus_rate", "grpo", "maxrl")),
    ("psr_nsr", {"positive_weight": 0.0}, (-1.0, 0.0)),
    ("psr_nsr", {"positive_weight": 1.0, "negative_weight": 0.0}, (0.0, 1.0)),
]
ALL = [*((name, {}, weights) for name, weights in LEARNS.items()), *OTHERS]
REWARDED = {"grpo", "dr_grpo", "dapo", "cispo", "gspo", "dppo", "asymre"}


def weights_of(name: str, options: dict[str, Any], answers: Answers) -> torch.Tensor:
    """Minus the gradient on each token's log-probability."""
    leaf = answers.logprobs.detach().requires_grad_()
    loss = OBJECTIVES[name].terms(replace(answers, logprobs=leaf), **options).per_token
    assert loss.isfinite().all()
    (found,) = torch.autograd.grad(loss.sum(), leaf)
    assert found.isfinite().all()
    return -found


@pytest.mark.parametrize(("name", "options", "weights"), ALL)
def test_the_weight_of_a_group_without_a_difference(name, options, weights):
    for right, wanted in zip((False, True), weights, strict=True):
        off_policy = made_up_answers([right] * 8)
        on_policy = replace(off_policy, logprobs=off_policy.old_logprobs)
        expected = torch.where(on_policy.mask, torch.tensor(wanted), 0.0)
        torch.testing.assert_close(weights_of(name, options, on_policy), expected, rtol=gamma(16), atol=0)
        taught = weights_of(name, options, off_policy).ne(0).any()
        assert bool(taught) == (wanted != 0)
        assert (float(right) in teaching_rates(OBJECTIVES[name], options)) == (wanted != 0)


@pytest.mark.parametrize(("name", "options", "weights"), ALL)
def test_beside_it_an_informative_group_counts_as_it_does_alone(name, options, weights):
    verdicts = (True, False, False, False)
    alone = weights_of(name, options, made_up_answers((*verdicts, True, True, False, True)))[:4]
    for right in (False, True):
        beside = weights_of(name, options, made_up_answers((*verdicts, *(right,) * 4)))
        assert torch.equal(beside[:4], alone)


def test_the_table_has_every_objective_of_ours():
    assert set(LEARNS) == set(OBJECTIVES)


def test_which_objectives_read_rewards():
    assert {name for name, entry in OBJECTIVES.items() if reads_rewards(entry, {})} == REWARDED


def test_a_loss_that_divides_by_a_rate_of_0_is_no_loss_of_all_groups():
    def divides(answers: Answers) -> Terms:
        rate = answers.pass_rate[:, None]
        return Terms(torch.where(answers.mask & (rate > 0), -answers.logprobs / rate, 0.0))

    with pytest.raises(ValueError, match="divides has no finite gradient on a group whose answers are all wrong"):
        teaching_rates(Objective("divides", divides, "token_mean"), {})
