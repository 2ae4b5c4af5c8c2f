"""Negative-aware Fine-Tuning (arXiv 2505.18116): right answers fit the policy, wrong answers the implicit negative
policy π⁻_θ = (π_old − r̂ π_θ)/(1 − r̂), both by maximum likelihood. It knows nothing of how answers were sampled.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Literal

import torch
from torch import Tensor

from negaware.objectives import credit
from negaware.objectives.credit import PromptWeight, clamp_pass_rate
from negaware.objectives.ops import LOG_RATIO_CAP, answer_lengths, capped_exp, floor_value, log_ratio

with suppress(ImportError):
    from jaxtyping import Bool, Float, Int, Shaped

Ratio = Literal["token", "sequence"]


def nft_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    correct: Bool[Tensor, " B"],
    pass_rate: Float[Tensor, " B"],
    *,
    epsilon: float = 1.0,
    negative_weight: float = 1.0,
    prompt_weight: PromptWeight = "one_minus_rate",
    ratio: Ratio = "token",
) -> Float[Tensor, "B T"]:
    """−ω(q) [ r log R + λ (1 − r) log max_v((1 − r̂R)/(1 − r̂), ε) ] for each token, 0 where mask is 0.

    R is the likelihood ratio π_θ/π_old of a token, or with `ratio="sequence"` of the whole answer; that answer's one
    term is then spread evenly over its tokens, so that their sum is the term. ValueError for an unknown name
    or a negative weight or floor. (ε = 0 is the paper's theory: the loss is infinite once R reaches 1/r̂.)
    """
    if epsilon < 0 or negative_weight < 0:
        raise ValueError(f"epsilon is {epsilon} and negative_weight is {negative_weight}; neither may be below 0.")
    rate = clamp_pass_rate(pass_rate)
    kept = mask.bool()
    log_ratios = _log_ratios(logprobs, old_logprobs, mask, ratio)
    implicit = floor_value(_implicit_negative_ratio(log_ratios, rate), epsilon)
    # Selected before the log: at ε = 0 a right answer's implicit ratio may be 0, and its gradient NaN.
    implicit = torch.where(kept & ~correct[:, None], implicit, torch.ones_like(implicit))
    likelihood = torch.where(correct[:, None], log_ratios, negative_weight * implicit.log())
    if ratio == "sequence":
        likelihood = likelihood / answer_lengths(mask)[:, None].to(likelihood.dtype)
    loss = -credit.prompt_weight(rate, prompt_weight)[:, None] * likelihood
    return torch.where(kept, loss, torch.zeros_like(loss))


def nft_counts(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    correct: Bool[Tensor, " B"],
    pass_rate: Float[Tensor, " B"],
    *,
    epsilon: float = 1.0,
    negative_weight: float = 1.0,
    prompt_weight: PromptWeight = "one_minus_rate",
    ratio: Ratio = "token",
) -> dict[str, Int[Tensor, ""]]:
    """How many tokens each safeguard of `nft_loss` touches: the floor ε, the log-ratio cap, the clamp on r̂."""
    kept = mask.bool()
    rate = clamp_pass_rate(pass_rate)
    log_ratios = _log_ratios(logprobs, old_logprobs, mask, ratio)
    floored = _implicit_negative_ratio(log_ratios, rate) < epsilon
    return {
        "at_epsilon": (floored & kept & ~correct[:, None]).sum(),
        "at_log_ratio_cap": ((log_ratios > LOG_RATIO_CAP) & kept).sum(),
        "pass_rate_clamped": ((rate != pass_rate)[:, None] & kept).sum(),
    }


def _log_ratios(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, ratio: Ratio) -> Tensor:
    """log R of each token, or of the whole answer repeated at its tokens."""
    log_ratios = log_ratio(logprobs, old_logprobs, mask)
    if ratio == "token":
        return log_ratios
    if ratio == "sequence":
        return log_ratios.sum(-1, keepdim=True).expand_as(log_ratios)
    raise ValueError(f"ratio is {ratio!r}; it must be 'token' or 'sequence'.")


def _implicit_negative_ratio(log_ratios: Tensor, rate: Tensor) -> Tensor:
    """π⁻_θ/π_old = (1 − r̂R)/(1 − r̂)."""
    return (1 - rate[:, None] * capped_exp(log_ratios)) / (1 - rate[:, None])
