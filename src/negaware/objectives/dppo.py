"""DPPO: a token is left out once its probability, not its likelihood ratio, has moved too far.

The paper measures ratio and distance from the sampler's policy; here it is π_old, as in all objectives. The two are the
same with `training.old_logprobs: recorded`.
"""

from __future__ import annotations

from typing import Annotated

import torch

from negaware.objectives.contract import Answers, Option, Terms, objective
from negaware.objectives.credit import centred
from negaware.objectives.ops import LOG_RATIO_CAP, capped_exp, log_ratio


@objective(reduction="constant", paper="arXiv 2602.04879")
def dppo(
    answers: Answers,
    *,
    delta: Annotated[
        float, Option("δ: how far a token's probability may move from π_old's (the paper's 0.15 and 0.2).", above=0)
    ] = 0.15,
    cap: Annotated[
        float | None, Option("C: what the ratio's weight is capped at; none: not at all (the paper has both).", above=0)
    ] = 5.0,
) -> Terms:
    """Divergence Proximal Policy Optimization, by the binary total variation.

    −M min(R, C) A for each token, with A = r − mean; the gradient is M min(R, C) A ∇log π_θ, at the cap too. M is 0
    where |π_θ − π_old| > δ and the token moves further that way (A > 0 and R > 1, or A < 0 and R < 1), else 1. Counted:
    tokens that M leaves out, at the cap C, and beyond the log-ratio cap. ValueError for δ or C that isn't above 0.
    """
    limit = torch.inf if cap is None else cap
    if delta <= 0 or limit <= 0:
        raise ValueError(f"delta is {delta} and cap is {cap}; both must be above 0 (0.15 and 5 are usual).")
    log_ratios = log_ratio(answers.logprobs, answers.old_logprobs, answers.mask)
    kept, advantage = answers.mask.bool(), centred(answers)[:, None]
    old = torch.where(kept, answers.old_logprobs, 0).exp()
    new = torch.where(kept, answers.logprobs, 0).exp()
    away = ((advantage > 0) & (log_ratios > 0)) | ((advantage < 0) & (log_ratios < 0))
    left_out = away & ((new - old).abs() > delta) & kept
    ratios = capped_exp(log_ratios.detach())
    # exp(x − sg(x)) is 1 and has the gradient of log R, which the capped weight doesn't have.
    weight = ratios.clamp(max=limit) * (log_ratios - log_ratios.detach()).exp()
    counts = {
        "at_clip": left_out.sum(),
        "at_cap": ((ratios > limit) & kept).sum(),
        "at_log_ratio_cap": ((log_ratios > LOG_RATIO_CAP) & kept).sum(),
    }
    return Terms(torch.where(kept & ~left_out, -weight * advantage, torch.zeros_like(weight)), counts)
