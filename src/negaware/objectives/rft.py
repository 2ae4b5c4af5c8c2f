"""Rejection-sampling fine-tuning: maximum likelihood on the right answers; wrong ones are thrown away.

It is NFT with negative weight 0 and prompt weight 1.
"""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor

from negaware.objectives.ops import LOG_RATIO_CAP, log_ratio

with suppress(ImportError):
    from jaxtyping import Bool, Float, Int, Shaped


def rft_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    correct: Bool[Tensor, " B"],
    pass_rate: Float[Tensor, " B"],
) -> Float[Tensor, "B T"]:
    """−r log R for each token: the gradient of −log π_θ on right answers, 0 on wrong ones."""
    kept = mask.bool() & correct[:, None]
    loss = -log_ratio(logprobs, old_logprobs, mask)
    return torch.where(kept, loss, torch.zeros_like(loss))


def rft_counts(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    correct: Bool[Tensor, " B"],
    pass_rate: Float[Tensor, " B"],
) -> dict[str, Int[Tensor, ""]]:
    """RFT has no safeguard to report but the log-ratio that NFT would cap."""
    return {"at_log_ratio_cap": (log_ratio(logprobs, old_logprobs, mask) > LOG_RATIO_CAP).sum()}
