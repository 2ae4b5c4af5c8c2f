"""Negative-aware Fine-Tuning (arXiv 2505.18116): right answers fit the policy, wrong answers the implicit negative
policy π⁻_θ = (π_old − r̂ π_θ)/(1 − r̂), both by maximum likelihood. It knows nothing of how answers were sampled.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from negaware.objectives import credit
from negaware.objectives.contract import Answers, Option, Terms, five_tensors, objective
from negaware.objectives.credit import PromptWeight, clamp_pass_rate
from negaware.objectives.ops import LOG_RATIO_CAP, answer_lengths, capped_exp, floor_value, log_ratio

Ratio = Literal["token", "sequence"]


@objective(reduction="token_mean", paper="arXiv 2505.18116")
def nft(
    answers: Answers,
    *,
    epsilon: Annotated[
        float, Option("ε: the floor under the implicit negative ratio (the paper's 1.0).", above=0)
    ] = 1.0,
    negative_weight: Annotated[float, Option("λ: the weight of wrong answers; 0 leaves RFT.", at_least=0)] = 1.0,
    prompt_weight: Annotated[
        PromptWeight, Option("ω(q): how much a question counts by its pass rate.")
    ] = "one_minus_rate",
    ratio: Annotated[Ratio, Option("Whether the likelihood ratio is a token's or the whole answer's.")] = "token",
    positive_weight: Annotated[
        float, Option("ρ: the weight of right answers; 0 learns from wrong ones alone.", at_least=0)
    ] = 1.0,
) -> Terms:
    """Negative-aware Fine-Tuning.

    −ω(q) [ ρ r log R + λ (1 − r) log max_v((1 − r̂R)/(1 − r̂), ε) ] for each token, 0 where mask is 0. Counted: tokens
    that the floor ε, the log-ratio cap and the clamp on r̂ touch.

    R is the likelihood ratio π_θ/π_old of a token, or with `ratio="sequence"` of the whole answer; that answer's one
    term is then spread evenly over its tokens, so that their sum is the term. A group without right or without wrong
    answers has loss 0. ValueError for an unknown name, a negative weight or floor, or two weights of 0. (ε = 0 is the
    paper's theory: the loss is infinite once R reaches 1/r̂. A training run may not have it.)
    """
    if epsilon < 0:
        raise ValueError(f"epsilon is {epsilon}; it may not be below 0.")
    credit.refuse_side_weights(positive_weight, negative_weight)
    rate = clamp_pass_rate(answers.pass_rate)
    kept = answers.mask.bool() & credit.is_informative(answers.pass_rate)[:, None]
    right = answers.correct[:, None]
    log_ratios = _log_ratios(answers, ratio)
    unfloored = (1 - rate[:, None] * capped_exp(log_ratios)) / (1 - rate[:, None])  # π⁻_θ/π_old
    # Selected before the log: at ε = 0 a right answer's implicit ratio may be 0, and its gradient NaN.
    implicit = torch.where(kept & ~right, floor_value(unfloored, epsilon), torch.ones_like(unfloored))
    likelihood = torch.where(right, positive_weight * log_ratios, negative_weight * implicit.log())
    if ratio == "sequence":
        likelihood = likelihood / answer_lengths(answers.mask)[:, None].to(likelihood.dtype)
    loss = -credit.prompt_weight(rate, prompt_weight)[:, None] * likelihood
    counts = {
        "at_epsilon": ((unfloored < epsilon) & kept & ~right).sum(),
        "at_log_ratio_cap": ((log_ratios > LOG_RATIO_CAP) & kept).sum(),
        "pass_rate_clamped": ((rate != answers.pass_rate)[:, None] & kept).sum(),
    }
    return Terms(torch.where(kept, loss, torch.zeros_like(loss)), counts)


def _log_ratios(answers: Answers, ratio: Ratio) -> Tensor:
    """log R of each token, or of the whole answer repeated at its tokens."""
    log_ratios = log_ratio(answers.logprobs, answers.old_logprobs, answers.mask)
    if ratio == "token":
        return log_ratios
    if ratio == "sequence":
        return log_ratios.sum(-1, keepdim=True).expand_as(log_ratios)
    raise ValueError(f"ratio is {ratio!r}; it must be 'token' or 'sequence'.")


nft_loss = five_tensors(nft)
