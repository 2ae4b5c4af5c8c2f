"""Rejection-sampling fine-tuning: maximum likelihood on the right answers; wrong ones are thrown away.

It is NFT with negative weight 0 and prompt weight 1.
"""

from __future__ import annotations

import torch

from negaware.objectives.contract import Answers, Terms, five_tensors, objective
from negaware.objectives.ops import LOG_RATIO_CAP, log_ratio


@objective(reduction="token_mean", paper="NFT's baseline, arXiv 2505.18116", needs_group=False)
def rft(answers: Answers) -> Terms:
    """Rejection-sampling fine-tuning.

    −r log R for each token: the gradient of −log π_θ on right answers, 0 on wrong ones. It has no safeguard to count
    but the log-ratio that NFT would cap.
    """
    log_ratios = log_ratio(answers.logprobs, answers.old_logprobs, answers.mask)
    kept = answers.mask.bool() & answers.correct[:, None]
    counts = {"at_log_ratio_cap": (log_ratios > LOG_RATIO_CAP).sum()}
    return Terms(torch.where(kept, -log_ratios, torch.zeros_like(log_ratios)), counts)


rft_loss = five_tensors(rft)
