"""Asymmetric REINFORCE: the baseline is lowered, so that off-policy right answers count more than wrong ones.

It has no likelihood ratio and no clip: its gradient doesn't depend on π_old.
"""

from __future__ import annotations

from typing import Annotated

import torch

from negaware.objectives.contract import Answers, Option, Terms, objective
from negaware.objectives.credit import centred
from negaware.objectives.ops import LOG_RATIO_CAP, log_ratio


@objective(reduction="token_mean", paper="arXiv 2506.20520")
def asymre(
    answers: Answers,
    *,
    delta: Annotated[
        float, Option("δ: what is added to the group's mean to make the baseline; at 0 the paper's runs collapsed.")
    ] = -0.1,
) -> Terms:
    """Asymmetric REINFORCE.

    −(r − mean − δ) log R for each token: the gradient of the same with log π_θ. Counted: tokens beyond
    ±`LOG_RATIO_CAP`, which is not applied.
    """
    log_ratios = log_ratio(answers.logprobs, answers.old_logprobs, answers.mask)
    advantage = centred(answers)[:, None] - delta
    loss = torch.where(answers.mask.bool(), -advantage * log_ratios, torch.zeros_like(log_ratios))
    return Terms(loss, {"at_log_ratio_cap": (log_ratios.abs() > LOG_RATIO_CAP).sum()})
