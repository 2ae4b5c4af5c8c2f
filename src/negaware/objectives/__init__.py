"""The objectives, as maths on tensors: log-probabilities and verdicts in, per-token loss out. torch alone is needed.

Each is a pure function with the same five tensors: `logprobs`, `old_logprobs`, `mask` [B, T]; `correct` [B] bool;
`pass_rate` [B] in (0, 1). `OBJECTIVES` says what else belongs to each name.
"""

from negaware.objectives.grpo import dapo_loss, dr_grpo_loss, grpo_loss
from negaware.objectives.nft import nft_loss
from negaware.objectives.objective import OBJECTIVES, Objective
from negaware.objectives.rft import rft_loss

__all__ = [
    "OBJECTIVES",
    "Objective",
    "dapo_loss",
    "dr_grpo_loss",
    "grpo_loss",
    "nft_loss",
    "rft_loss",
]
