"""What belongs to an objective's name: its loss, what it counts, its reduction. One explicit dict of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from negaware.objectives.grpo import dapo_counts, dapo_loss, dr_grpo_loss, grpo_counts, grpo_loss
from negaware.objectives.nft import nft_counts, nft_loss
from negaware.objectives.ops import Reduction
from negaware.objectives.rft import rft_counts, rft_loss


@dataclass(frozen=True, slots=True)
class Objective:
    """An objective: call it for the per-token loss [B, T].

    `counts` says how many tokens each safeguard touched; `needs_group` that K = 1 cannot teach it anything.
    """

    name: str
    loss: Callable[..., Tensor]
    counts: Callable[..., dict[str, Tensor]]
    reduction: Reduction
    needs_group: bool = True

    def __call__(self, *tensors: Tensor, **options: Any) -> Tensor:
        """The per-token loss [B, T] of the five tensors under these options."""
        return self.loss(*tensors, **options)

    def reduction_under(self, options: dict[str, Any]) -> Reduction:
        """The reduction; a ratio of whole answers gives one term an answer, so the mean is over answers."""
        return "sequence_sum" if options.get("ratio") == "sequence" else self.reduction


OBJECTIVES: dict[str, Objective] = {
    "nft": Objective("nft", nft_loss, nft_counts, "token_mean"),
    "rft": Objective("rft", rft_loss, rft_counts, "token_mean", needs_group=False),
    "grpo": Objective("grpo", grpo_loss, grpo_counts, "sequence_mean"),
    "dr_grpo": Objective("dr_grpo", dr_grpo_loss, grpo_counts, "constant"),
    "dapo": Objective("dapo", dapo_loss, dapo_counts, "token_mean"),
}


def gradient_weights(
    objective: Objective, tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Σ|∂loss/∂logprob| over the tokens of right and of wrong answers: the weight that each side got."""
    logprobs, *others = tensors
    with torch.enable_grad():
        leaf = logprobs.detach().requires_grad_()
        (weights,) = torch.autograd.grad(objective(leaf, *others, **options).sum(), leaf)
    correct = others[2]
    return weights[correct].abs().sum(), weights[~correct].abs().sum()
