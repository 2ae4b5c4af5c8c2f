"""The clipped policy gradient that several objectives use, each with its own advantage."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from negaware.objectives.contract import Answers, Option, Terms
from negaware.objectives.ops import LOG_RATIO_CAP, capped_exp, log_ratio

Clip = Annotated[float, Option("The likelihood ratio's clip, both sides.", above=0)]
ClipHigh = Annotated[
    float | None, Option("The clip above 1, if it differs (clip-higher is 0.28); by default as `clip`.", above=0)
]


def clipped_gradient(answers: Answers, advantage: Tensor, clip_low: float, clip_high: float | None = None) -> Terms:
    """−min(R A, clip(R, 1 − clip_low, 1 + clip_high) A) for each token, R its likelihood ratio, A [B].

    Without `clip_high` both sides have the same clip. Counted: tokens without gradient for the clip, and those beyond
    the log-ratio cap.
    """
    log_ratios = log_ratio(answers.logprobs, answers.old_logprobs, answers.mask)
    return clipped_terms(answers, log_ratios, advantage, clip_low, clip_low if clip_high is None else clip_high)


def clipped_terms(answers: Answers, log_ratios: Tensor, advantage: Tensor, clip_low: float, clip_high: float) -> Terms:
    """`clipped_gradient` of any log-ratios [B, T]. ValueError for a clip that isn't above 0."""
    if clip_low <= 0 or clip_high <= 0:
        raise ValueError(f"the clip is {clip_low} below and {clip_high} above 1; both must be above 0 (0.2 is usual).")
    kept, ratios, advantage = answers.mask.bool(), capped_exp(log_ratios), advantage[:, None]
    clipped = ratios.clamp(1 - clip_low, 1 + clip_high)
    loss = -torch.minimum(ratios * advantage, clipped * advantage)
    silenced = ((advantage > 0) & (ratios > 1 + clip_high)) | ((advantage < 0) & (ratios < 1 - clip_low))
    counts = {"at_clip": (silenced & kept).sum(), "at_log_ratio_cap": ((log_ratios > LOG_RATIO_CAP) & kept).sum()}
    return Terms(torch.where(kept, loss, torch.zeros_like(loss)), counts)
