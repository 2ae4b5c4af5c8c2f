"""Rejection-sampling fine-tuning: maximum likelihood on the right answers; wrong ones are discarded.

On groups with right and wrong answers it is NFT with negative weight 0 and the same prompt weight. It also fits groups
that are all right, which have no weight in NFT.
"""

from __future__ import annotations

from typing import Annotated

import torch

from negaware.objectives import credit
from negaware.objectives.contract import Answers, Option, Terms, five_tensors, objective
from negaware.objectives.credit import PromptWeight, clamp_pass_rate
from negaware.objectives.ops import LOG_RATIO_CAP, log_ratio


@objective(reduction="token_mean", paper="NFT's baseline, arXiv 2505.18116", needs_group=False)
def rft(
    answers: Answers,
    *,
    prompt_weight: Annotated[
        PromptWeight, Option("ω(q): how much a question counts by its pass rate (the paper's RFT has none).")
    ] = "uniform",
) -> Terms:
    """Rejection-sampling fine-tuning.

    −ω(q) r log R for each token: the gradient of −ω log π_θ on right answers, 0 on wrong ones. It has no safeguard to
    count but the log-ratio that NFT would cap. A group of right answers alone counts under `uniform`, and not at all
    under the others, which are 0 at r̂ = 1. ValueError for an unknown name.
    """
    log_ratios = log_ratio(answers.logprobs, answers.old_logprobs, answers.mask)
    weight = credit.prompt_weight(clamp_pass_rate(answers.pass_rate), prompt_weight)
    if prompt_weight != "uniform":
        weight = torch.where(answers.pass_rate < 1, weight, 0)
    kept = answers.mask.bool() & answers.correct[:, None]
    counts = {"at_log_ratio_cap": (log_ratios > LOG_RATIO_CAP).sum()}
    return Terms(torch.where(kept, -weight[:, None] * log_ratios, torch.zeros_like(log_ratios)), counts)


rft_loss = five_tensors(rft)
