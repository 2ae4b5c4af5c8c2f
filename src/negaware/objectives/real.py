"""REAL, Rewards as Labels: a group's answers are classified as right or wrong, their mean log-ratio the logit."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from negaware.objectives.contract import Option, objective
from negaware.objectives.group_loss import of_groups
from negaware.objectives.whole_groups import WholeGroups


@objective(reduction="group_mean", paper="arXiv 2602.05630")
@of_groups
def real(
    groups: WholeGroups,
    *,
    temperature: Annotated[float, Option("τ: what an answer's mean log-ratio is divided by.", above=0)] = 0.5,
) -> Tensor:
    """Rewards as Labels.

    log(1 + Σ e^(−s/τ) over right answers) + log(1 + Σ e^(s/τ) over wrong ones) for each group, with s the mean of
    log R over an answer; 0 for a group without right or without wrong answers. Counted: tokens beyond
    ±`LOG_RATIO_CAP`, which is not applied. ValueError for a τ that isn't above 0.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0 (0.5 is the paper's).")
    logits = groups.mean_log_ratio / temperature
    right = groups.log_sum_exp(-logits, groups.correct)
    wrong = groups.log_sum_exp(logits, ~groups.correct)
    zero = torch.zeros_like(right)
    return torch.where(groups.is_informative, right.logaddexp(zero) + wrong.logaddexp(zero), 0)
