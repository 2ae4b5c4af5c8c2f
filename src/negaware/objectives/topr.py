"""Tapered Off-Policy REINFORCE: right answers by maximum likelihood, wrong ones weighted by their likelihood ratio.

There is no baseline, so groups have no effect.
"""

from __future__ import annotations

import torch

from negaware.objectives.contract import Answers, Terms, objective
from negaware.objectives.ops import LOG_RATIO_CAP, capped_exp, log_ratio


@objective(reduction="sequence_mean", paper="arXiv 2503.14286")
def topr(answers: Answers) -> Terms:
    """Tapered Off-Policy REINFORCE.

    −log R for each token of a right answer, +min(ρ, 1) log R for those of a wrong one, where ρ, the likelihood ratio of
    the whole answer, has no gradient. Counted: tokens of wrong answers whose ρ is cut to 1, and those beyond the
    log-ratio cap.
    """
    log_ratios = log_ratio(answers.logprobs, answers.old_logprobs, answers.mask)
    kept, right = answers.mask.bool(), answers.correct[:, None]
    whole = capped_exp(log_ratios.detach().sum(-1, keepdim=True))
    loss = torch.where(right, -1.0, whole.clamp(max=1)) * log_ratios
    counts = {
        "at_cap": ((whole > 1) & kept & ~right).sum(),
        "at_log_ratio_cap": ((log_ratios > LOG_RATIO_CAP) & kept).sum(),
    }
    return Terms(torch.where(kept, loss, torch.zeros_like(loss)), counts)
