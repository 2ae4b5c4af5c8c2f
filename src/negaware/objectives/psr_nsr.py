"""Positive and Negative Sample Reinforcement: right and wrong answers weighted apart, without a baseline.

Groups have no effect: an answer counts the same whatever the other answers of its group are.
"""

from __future__ import annotations

from typing import Annotated

import torch

from negaware.objectives.clipped import Clip, ClipHigh, clipped_gradient
from negaware.objectives.contract import Answers, Option, Terms, objective
from negaware.objectives.credit import refuse_side_weights


@objective(reduction="token_mean", paper="arXiv 2506.01347")
def psr_nsr(
    answers: Answers,
    *,
    positive_weight: Annotated[float, Option("λ: the weight of right answers (W-REINFORCE's 0.1).", at_least=0)] = 0.1,
    negative_weight: Annotated[float, Option("The weight of wrong answers.", at_least=0)] = 1.0,
    clip: Clip = 0.2,
    clip_high: ClipHigh = None,
) -> Terms:
    """Positive and Negative Sample Reinforcement, by default W-REINFORCE.

    −min(R A, clip(R, 1 − c, 1 + c) A) for each token, with A the positive weight for a right answer and minus the
    negative weight for a wrong one. W-REINFORCE is (0.1, 1), NSR (0, 1), PSR (1, 0). Counted: as GRPO's.
    ValueError for a weight below 0, or two of 0.
    """
    refuse_side_weights(positive_weight, negative_weight)
    rate = answers.pass_rate
    advantage = torch.where(answers.correct, torch.full_like(rate, positive_weight), -negative_weight)
    return clipped_gradient(answers, advantage, clip, clip_high)
