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
}


def standardised(rate, right):
    return (right - rate) / math.sqrt(rate * (1 - rate))


@pytest.mark.parametrize("rate", [1 / 8, 1 / 2, 7 / 8])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_weight_against_the_ratio(name, rate, gradient):
    """Answers of one token each, right and wrong, under the objective's defaults."""
    ratios = torch.tensor([*RATIOS, *RATIOS], dtype=torch.float64)[:, None]
    correct = torch.arange(len(ratios)) < len(RATIOS)
    old = torch.full_like(ratios, math.log(OLD))
    rates = torch.full((len(ratios),), rate, dtype=torch.float64)
    tensors = (old + ratios.log(), old, torch.ones_like(ratios, dtype=torch.bool), correct, rates)
    found = -gradient(OBJECTIVES[name], tensors)[:, 0]
    expected = [WEIGHTS[name](ratio, rate, right) for right in (True, False) for ratio in RATIOS]
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
