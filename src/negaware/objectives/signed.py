"""The naive way to learn from wrong answers: their log-likelihood is decreased as that of right ones is increased.

It has no bound: a wrong answer's weight never decreases. It is here for comparison with NFT.
"""

from __future__ import annotations

from typing import Annotated

import torch

from negaware.objectives import credit
from negaware.objectives.contract import Answers, Option, Terms, objective
from negaware.objectives.credit import PromptWeight, clamp_pass_rate
from negaware.objectives.ops import LOG_RATIO_CAP, log_ratio


@objective(reduction="token_mean", paper="no published original")
def signed(
    answers: Answers,
    *,
    prompt_weight: Annotated[
        PromptWeight, Option("ω(q): how much a question counts by its pass rate.")
    ] = "one_minus_rate",
) -> Terms:
    """Signed log-likelihood, the naive idea.

    −ω(q) (2r − 1) log R for each token; a group without right or without wrong answers has loss 0. Counted: tokens
    beyond ±`LOG_RATIO_CAP`, which is not applied, and those whose r̂ is clamped. ValueError for an unknown name.
    """
    log_ratios = log_ratio(answers.logprobs, answers.old_logprobs, answers.mask)
    rate = clamp_pass_rate(answers.pass_rate)
    kept = answers.mask.bool() & credit.is_informative(answers.pass_rate)[:, None]
    weight = torch.where(answers.correct, 1, -1) * credit.prompt_weight(rate, prompt_weight)
    counts = {
        "at_log_ratio_cap": ((log_ratios.abs() > LOG_RATIO_CAP) & kept).sum(),
        "pass_rate_clamped": ((rate != answers.pass_rate)[:, None] & kept).sum(),
    }
    return Terms(torch.where(kept, -weight[:, None] * log_ratios, torch.zeros_like(log_ratios)), counts)
