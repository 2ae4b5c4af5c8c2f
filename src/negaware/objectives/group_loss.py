"""A loss of whole groups as an objective: spread over tokens, and exact however a group is split over micro-batches.

What it needs to know of all answers under the present policy comes from an earlier pass without gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor

from negaware.objectives.contract import Answers, Terms
from negaware.objectives.ops import LOG_RATIO_CAP, log_ratio
from negaware.objectives.whole_groups import WholeGroups

P = ParamSpec("P")


def of_groups(function: Callable[Concatenate[WholeGroups, P], Tensor]) -> Callable[Concatenate[Answers, P], Terms]:
    """Makes an objective from a function of `WholeGroups` that returns the loss [G], differentiable in `log_ratio`.

    A group's loss is spread over its answers' tokens. The gradient of a token is the gradient of the group's loss with
    respect to its log R_t, with the group's other answers as in `Answers.whole`. Without `whole` the answers given must
    be whole groups. Counted: tokens beyond ±`LOG_RATIO_CAP`, which is not applied.

    The objective raises ValueError for answers without `group`, and for a loss of the wrong shape or without gradient.
    """

    @wraps(function)  # its options are the function's
    def terms(answers: Answers, *arguments: P.args, **options: P.kwargs) -> Terms:
        log_ratios, kept = log_ratio(answers.logprobs, answers.old_logprobs, answers.mask), answers.mask.bool()
        groups, places = _groups_of(answers, log_ratios, function.__name__)
        with torch.enable_grad():
            sums = groups.log_ratio.detach().requires_grad_()
            losses = function(replace(groups, log_ratio=sums), *arguments, **options)
            _require_losses(losses, groups.num_groups)
            (slopes,) = torch.autograd.grad(losses.sum(), sums)
        per_token = losses.detach() / groups.sums(groups.length).clamp(min=1)
        # log R − sg(log R) is 0 and has the gradient of log R; the value is in the group's loss.
        loss = per_token[groups.group[places], None] + slopes[places, None] * (log_ratios - log_ratios.detach())
        counts = {"at_log_ratio_cap": (log_ratios.abs() > LOG_RATIO_CAP).sum()}
        return Terms(torch.where(kept, loss, torch.zeros_like(loss)), counts)

    terms.sees_groups = True  # type: ignore[attr-defined]
    return terms


def _groups_of(answers: Answers, log_ratios: Tensor, name: str) -> tuple[WholeGroups, Tensor]:
    """The groups that the loss compares, and the places of the given answers in them."""
    if answers.group is None:
        raise ValueError(
            f"the objective {name} compares all answers of a group, but it wasn't told which answers form a group; "
            "give `group` too (TRL and verl don't provide it, so take another objective there)."
        )
    if answers.whole is not None:
        return answers.whole.groups, answers.whole.places
    numbers = answers.group.unique(return_inverse=True)[1]
    groups = WholeGroups(log_ratios.sum(1), answers.mask.bool().sum(1), answers.correct, numbers)
    return groups, torch.arange(len(numbers), device=numbers.device)


def _require_losses(losses: object, num_groups: int) -> None:
    """ValueError unless this is the loss of each group, with a gradient."""
    if not isinstance(losses, Tensor) or losses.shape != (num_groups,):
        given = f"a tensor of shape {list(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(f"a loss of groups gave {given}; it should be [{num_groups}], the loss of each group")
    if not losses.requires_grad:
        raise ValueError("a loss of groups has no gradient; it should be computed from groups.log_ratio, not detached")
