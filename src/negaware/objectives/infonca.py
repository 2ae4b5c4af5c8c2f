"""InfoNCA, noise contrastive alignment: in a softmax over a group's answers, right ones should have all probability.

The NFT paper's iterative DPO. With two answers, one of them right, it is DPO with π_old as the reference.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from negaware.objectives.contract import Option, objective
from negaware.objectives.group_loss import of_groups
from negaware.objectives.whole_groups import WholeGroups


@objective(reduction="group_mean", paper="arXiv 2402.05369")
@of_groups
def infonca(
    groups: WholeGroups,
    *,
    beta: Annotated[
        float, Option("β: what an answer's log-ratio is multiplied by (the NFT paper tried 0.1, 0.01, 0.02).", above=0)
    ] = 0.1,
    sft_weight: Annotated[
        float,
        Option(
            "α: the weight of right answers' likelihood, which keeps it stable. The NFT paper gives none; 1 is that of "
            "Iterative RPO, arXiv 2404.19733.",
            at_least=0,
        ),
    ] = 1.0,
) -> Tensor:
    """InfoNCA, the NFT paper's iterative DPO, with its SFT term.

    −mean over right answers of [log softmax(β X) + α X/T] for each group, with X the sum of log R over an answer, T
    its tokens, and the softmax over the group's answers; 0 for a group without right or without wrong answers. Counted:
    tokens beyond ±`LOG_RATIO_CAP`, which is not applied. ValueError for a β that isn't above 0, or an α below 0.
    """
    if beta <= 0 or sft_weight < 0:
        raise ValueError(f"beta is {beta} and sft_weight is {sft_weight}; the first must be above 0, neither below 0.")
    scores = beta * groups.log_ratio
    likelihood = scores - groups.log_sum_exp(scores)[groups.group] + sft_weight * groups.mean_log_ratio
    right = groups.correct.to(scores.dtype)
    total = groups.sums(likelihood * right)
    return torch.where(groups.is_informative, -total / groups.sums(right).clamp(min=1), 0)
