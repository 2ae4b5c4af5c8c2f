"""A token's gradient weight against its likelihood ratio, for all objectives: the values behind the figure.

The paper's Figure 4 has NFT, GRPO and DAPO. Each closed form is written here apart from the code.
"""

import math

import pytest
import torch

from negaware.objectives import OBJECTIVES

OLD = 0.1  # π_old of every token, so that DPPO leaves out what moved by more than 1.5 of R
RATIOS = (0.1, 0.5, 0.79, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 8.0)


def inside(ratio, correct, low, high):
    """R, or 0 where the clip silences the token."""
    return ratio if (ratio <= 1 + high if correct else ratio >= 1 - low) else 0.0


# −∂loss/∂log π of each objective at its defaults, by the likelihood ratio r, the pass rate p and the verdict.
WEIGHTS = {
    "nft": lambda r, p, right: 1 - p if right else -p * r * (1 - p) / max(1 - p * r, 1 - p),
    "rft": lambda r, p, right: 1.0 if right else 0.0,
    "grpo": lambda r, p, right: standardised(p, right) * inside(r, right, 0.2, 0.2),
    "dr_grpo": lambda r, p, right: (right - p) * inside(r, right, 0.2, 0.2),
    "dapo": lambda r, p, right: standardised(p, right) * inside(r, right, 0.2, 0.28),
    "asymre": lambda r, p, right: right - p + 0.1,
    "cispo": lambda r, p, right: standardised(p, right) * min(r, 5.0),
    "dppo": lambda r, p, right: (right - p) * (0.0 if right and r > 2.5 else min(r, 5.0)),
    "gspo": lambda r, p, right: standardised(p, right) * inside(r, right, 3e-4, 4e-4),
    "maxrl": lambda r, p, right: (right - p) / p * inside(r, right, 0.2, 0.2),
    "psr_nsr": lambda r, p, right: (0.1 if right else -1.0) * inside(r, right, 0.2, 0.2),
    "signed": lambda r, p, right: (1 - p) * (1 if right else -1),
    "topr": lambda r, p, right: 1.0 if right else -min(r, 1.0),
    # Of a group's eight answers, the others at R = 1; times eight, as if it were divided by answers.
    "infonca": lambda r, p, right: 8 * (right * (0.1 + 1) / (8 * p) - 0.1 * r**0.1 / (r**0.1 + 7)),
    "real": lambda r, p, right: 16 * r**-2 / (8 * p + r**-2) if right else -16 * r**2 / (8 * (1 - p) + r**2),
}


def standardised(rate, right):
    return (right - rate) / math.sqrt(rate * (1 - rate))


@pytest.mark.parametrize("rate", [1 / 8, 1 / 2, 7 / 8])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_weight_against_the_ratio(name, rate, gradient):
    """The first answer of each group of eight, all of one token, right or wrong, under the objective's defaults."""
    ratios = torch.ones(2 * len(RATIOS), 8, dtype=torch.float64)
    ratios[:, 0] = torch.tensor([*RATIOS, *RATIOS], dtype=torch.float64)
    correct = torch.arange(8) >= 8 - torch.full((len(ratios), 1), 8 * rate)
    correct[: len(RATIOS)] = correct[: len(RATIOS)].flip(1)  # the first is right
    group = torch.arange(len(ratios)).repeat_interleave(8)
    ratios, correct = ratios.view(-1, 1), correct.flatten()
    old = torch.full_like(ratios, math.log(OLD))
    tensors = (old + ratios.log(), old, torch.ones_like(old).bool(), correct, torch.full_like(old[:, 0], rate))
    objective = OBJECTIVES[name]
    found = -gradient(objective, (*tensors, group))[::8, 0] * (8 if objective.sees_groups else 1)
    expected = [WEIGHTS[name](ratio, rate, right) for right in (True, False) for ratio in RATIOS]
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
