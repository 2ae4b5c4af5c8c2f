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

TOKEN_REDUCTIONS: tuple[Reduction, ...] = ("token_mean", "sequence_mean", "constant")
"""Those of a loss with a term a token."""


@dataclass(frozen=True, slots=True)
class Objective:
    """An objective: call it for the per-token loss [B, T].

    `counts` says how many tokens each safeguard touched; `reduction` is its paper's; `needs_group` says that K = 1
    cannot teach it anything.
    """

    name: str
    loss: Callable[..., Tensor]
    counts: Callable[..., dict[str, Tensor]]
    reduction: Reduction
    needs_group: bool = True

    def __call__(self, *tensors: Tensor, **options: Any) -> Tensor:
        """The per-token loss [B, T] of the five tensors under these options."""
        return self.loss(*tensors, **options)

    def reduction_under(self, options: dict[str, Any], chosen: Reduction | None = None) -> Reduction:
        """The `chosen` reduction, by default the objective's own. ValueError for one that its loss can't have.

        A ratio of whole answers gives one term an answer, spread over its tokens: that is summed up, and the mean is
        over answers. Other losses have a term a token, whose sum would count an answer by its length.
        """
        if options.get("ratio") == "sequence":
            if chosen not in (None, "sequence_sum"):
                raise ValueError(
                    f"reduction is {chosen}, but with ratio sequence an answer has one term, whose reduction is "
                    "sequence_sum; leave it out, or take ratio token"
                )
            return "sequence_sum"
        if chosen == "sequence_sum":
            raise ValueError(
                f"reduction is sequence_sum, which is ratio sequence's alone; choose from {', '.join(TOKEN_REDUCTIONS)}"
            )
        return chosen or self.reduction


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
