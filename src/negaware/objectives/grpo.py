"""The clipped policy gradients that NFT is compared with: GRPO, Dr. GRPO and DAPO.

They differ in the advantage, the clip and (see `negaware.objectives.OBJECTIVES`) the reduction.
"""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor

from negaware.objectives.credit import centred_advantage, inverse_std, standardised_advantage
from negaware.objectives.ops import LOG_RATIO_CAP, answer_lengths, capped_exp, log_ratio

with suppress(ImportError):
    from jaxtyping import Bool, Float, Int, Shaped


def grpo_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    correct: Bool[Tensor, " B"],
    pass_rate: Float[Tensor, " B"],
    *,
    clip: float = 0.2,
) -> Float[Tensor, "B T"]:
    """−min(R A, clip(R, 1 − c, 1 + c) A) with A = (r − mean)/std, for each token (arXiv 2402.03300, eq. 3)."""
    advantage = standardised_advantage(correct, pass_rate)
    return _clipped_loss(logprobs, old_logprobs, mask, advantage, clip, clip)


def dr_grpo_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    correct: Bool[Tensor, " B"],
    pass_rate: Float[Tensor, " B"],
    *,
    clip: float = 0.2,
) -> Float[Tensor, "B T"]:
    """GRPO with A = r − mean: no division by the group's std nor by the answer's length (arXiv 2503.20783)."""
    advantage = centred_advantage(correct, pass_rate)
    return _clipped_loss(logprobs, old_logprobs, mask, advantage, clip, clip)


def dapo_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    correct: Bool[Tensor, " B"],
    pass_rate: Float[Tensor, " B"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    overlong_from: int | None = None,
    overlong_to: int | None = None,
) -> Float[Tensor, "B T"]:
    """GRPO with a higher upper clip and a mean over tokens (arXiv 2503.14476, eq. 8).

    With both `overlong_*` (tokens) given, an answer's reward falls linearly from 0 to −1 between the two lengths
    (eq. 13). The group's mean and std stay those of the verdicts. ValueError if only one is given or they are reversed.
    """
    advantage = _dapo_advantage(mask, correct, pass_rate, overlong_from, overlong_to)
    return _clipped_loss(logprobs, old_logprobs, mask, advantage, clip_low, clip_high)


def grpo_counts(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    correct: Bool[Tensor, " B"],
    pass_rate: Float[Tensor, " B"],
    *,
    clip: float = 0.2,
) -> dict[str, Int[Tensor, ""]]:
    """How many tokens the clip silences (their gradient is 0), and how many exceed the log-ratio cap."""
    return dapo_counts(logprobs, old_logprobs, mask, correct, pass_rate, clip_low=clip, clip_high=clip)


def dapo_counts(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    correct: Bool[Tensor, " B"],
    pass_rate: Float[Tensor, " B"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    overlong_from: int | None = None,
    overlong_to: int | None = None,
) -> dict[str, Int[Tensor, ""]]:
    """As `grpo_counts`, with DAPO's two clips."""
    log_ratios = log_ratio(logprobs, old_logprobs, mask)
    ratios = capped_exp(log_ratios)
    advantage = _dapo_advantage(mask, correct, pass_rate, overlong_from, overlong_to)[:, None]
    silenced = ((advantage > 0) & (ratios > 1 + clip_high)) | ((advantage < 0) & (ratios < 1 - clip_low))
    return {
        "at_clip": silenced.sum(),
        "at_log_ratio_cap": (log_ratios > LOG_RATIO_CAP).sum(),
    }


def _clipped_loss(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, advantage: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    if clip_low <= 0 or clip_high <= 0:
        raise ValueError(f"the clip is {clip_low} below and {clip_high} above 1; both must be above 0 (0.2 is usual).")
    ratios = capped_exp(log_ratio(logprobs, old_logprobs, mask))
    clipped = ratios.clamp(1 - clip_low, 1 + clip_high)
    loss = -torch.minimum(ratios * advantage[:, None], clipped * advantage[:, None])
    return torch.where(mask.bool(), loss, torch.zeros_like(loss))


def _dapo_advantage(
    mask: Tensor, correct: Tensor, pass_rate: Tensor, overlong_from: int | None, overlong_to: int | None
) -> Tensor:
    advantage = standardised_advantage(correct, pass_rate)
    if overlong_from is None and overlong_to is None:
        return advantage
    penalty = _overlong_penalty(answer_lengths(mask), overlong_from, overlong_to).to(pass_rate.dtype)
    return advantage + penalty * inverse_std(pass_rate)


def _overlong_penalty(lengths: Tensor, overlong_from: int | None, overlong_to: int | None) -> Tensor:
    """0 up to `overlong_from` tokens, −1 from `overlong_to` on, linear between."""
    if overlong_from is None or overlong_to is None or not 0 <= overlong_from < overlong_to:
        raise ValueError(
            f"overlong_from is {overlong_from} and overlong_to is {overlong_to}; "
            "give both, in tokens, with overlong_from below overlong_to."
        )
    return -((lengths - overlong_from) / (overlong_to - overlong_from)).clamp(0, 1)
