"""A user's own loss as an objective: what it gives is looked at before anything is learnt from it.

It knows neither where the function comes from nor who trains with it.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from negaware.objectives.contract import Answers, Objective, OwnLossError, Terms
from negaware.objectives.ops import Reduction


def own_objective(name: str, function: Callable[..., object]) -> Objective:
    """The objective of `function(answers, *, option=…)`, which gives the per-token loss [B, T] or `Terms`.

    Its reduction is a mean over tokens, or over groups if it is a loss of whole groups (`of_groups`). The function
    raises OwnLossError, in one sentence with the loss's name, for all that can be seen to be wrong with what it gives;
    what only its values tell stands in `Terms.faults`.
    """

    @wraps(function)  # its options are the function's
    def checked(answers: Answers, **options: Any) -> Terms:
        try:
            given = function(answers, **options)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a user's own function may raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{where.filename.rpartition('/')[2]}, line {where.lineno}"
            told = " ".join(str(error).split())[:300]
            raise OwnLossError(f"the loss {name} raised {type(error).__name__}: {told} ({place}); mend it") from error
        loss, counts = (given.per_token, given.counts) if isinstance(given, Terms) else (given, {})
        if fault := _fault_of_loss(loss, answers) or _fault_of_counts(counts):
            raise OwnLossError(f"the loss {name} {fault}")
        assert isinstance(loss, Tensor)
        return Terms(
            loss, {counted: torch.as_tensor(count) for counted, count in counts.items()}, _odd_values(loss, answers)
        )

    reduction: Reduction = "group_mean" if getattr(function, "sees_groups", False) else "token_mean"
    return Objective(name, checked, reduction, needs_group=False, is_own=True)


def _fault_of_loss(loss: object, answers: Answers) -> str | None:
    """What is wrong with a per-token loss, and what would do."""
    wanted = answers.logprobs
    if not isinstance(loss, Tensor):
        return (
            f"gives {type(loss).__name__}; it should give the loss of each token, a tensor of the shape of "
            "answers.logprobs, or Terms of it"
        )
    if loss.shape != wanted.shape:
        return (
            f"gives a tensor of shape {list(loss.shape)}; it should be {list(wanted.shape)}, that of answers.logprobs: "
            "a loss for each token (reduction takes the mean)"
        )
    if loss.dtype != wanted.dtype:
        return f"gives {_word(loss.dtype)}; it should give {_word(wanted.dtype)}, as answers.logprobs has it"
    if wanted.requires_grad and not loss.requires_grad:
        return "has no gradient; it should be computed from answers.logprobs, not detached"
    return None


def _odd_values(loss: Tensor, answers: Answers) -> dict[str, Tensor]:
    """What its values may show to be wrong with a per-token loss, and whether they do."""
    loss, mask = loss.detach(), answers.mask.bool()
    # Where the model itself gives no number the loss is not to blame.
    known = answers.logprobs.detach().isfinite() & answers.old_logprobs.isfinite() & mask
    found = {
        "isn't 0 where the mask is 0; it should end with torch.where(answers.mask, loss, 0.0)": (
            (loss != 0) & ~mask  # NaN is not 0 either
        ).any()
    }
    for value, is_there in (("nan", loss.isnan()), ("-inf", loss == -torch.inf), ("inf", loss == torch.inf)):
        sentence = f"is {value} at a token; it should be finite (look for log or a root of 0, and for division)"
        found[sentence] = (is_there & known).any()
    return found


def _fault_of_counts(counts: object) -> str | None:
    if isinstance(counts, Mapping) and all(
        isinstance(name, str) and (isinstance(count, int) or (isinstance(count, Tensor) and count.ndim == 0))
        for name, count in counts.items()
    ):
        return None
    return "has counts that are none; they should be a dictionary from names to numbers of tokens, such as mask.sum()"


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
