"""CISPO (MiniMax-M1): the weight of the likelihood ratio is capped, so that every token has a gradient."""

from __future__ import annotations

from typing import Annotated

import torch

from negaware.objectives.contract import Answers, Option, Terms, objective
from negaware.objectives.credit import standardised
from negaware.objectives.ops import LOG_RATIO_CAP, capped_exp, log_ratio


@objective(reduction="token_mean", paper="arXiv 2506.13585")
def cispo(
    answers: Answers,
    *,
    cap: Annotated[
        float,
        Option(
            "What the likelihood ratio's weight is capped at. Its paper gives none; 4, 5 and 8 did equally well in "
            "arXiv 2510.13786.",
            above=0,
        ),
    ] = 5.0,
) -> Terms:
    """Clipped Importance-Sampling Policy Optimization.

    −min(R, c) A log R for each token with A = (r − mean)/std, where min(R, c) has no gradient. Counted: tokens at the
    cap, and those beyond the log-ratio cap. ValueError for a cap that isn't above 0.
    """
    if cap <= 0:
        raise ValueError(f"cap is {cap}; it must be above 0 (5 is usual).")
    log_ratios = log_ratio(answers.logprobs, answers.old_logprobs, answers.mask)
    advantage = standardised(answers)[:, None]
    kept, ratios = answers.mask.bool(), capped_exp(log_ratios.detach())
    loss = -ratios.clamp(max=cap) * advantage * log_ratios
    counts = {"at_cap": ((ratios > cap) & kept).sum(), "at_log_ratio_cap": ((log_ratios > LOG_RATIO_CAP) & kept).sum()}
    return Terms(torch.where(kept, loss, torch.zeros_like(loss)), counts)
