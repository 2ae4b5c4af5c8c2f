"""A user's loss as an objective: what it returns is checked before anything is learnt from it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from negaware.objectives.contract import Answers, Objective, Terms, UserLossError
from negaware.objectives.ops import Reduction


def user_objective(name: str, function: Callable[..., object]) -> Objective:
    """The objective of `function(answers, *, option=…)`, which returns the per-token loss [B, T] or `Terms`.

    Its reduction is a mean over tokens, or over groups if it is a loss of whole groups (`of_groups`). It raises
    UserLossError, in one sentence with the loss's name, for what the function raises, and for a wrong type, shape or
    dtype of what it returns; faults of its values are in `Terms.faults`.
    """

    @wraps(function)  # its options are the function's
    def checked(answers: Answers, **options: Any) -> Terms:
        try:
            returned = function(answers, **options)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a user's function may raise anything
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{where.filename.rpartition('/')[2]}, line {where.lineno}"
            text = " ".join(str(error).split())[:300]
            raise UserLossError(
                f"the loss {name} raised {type(error).__name__}: {text} ({place}); correct it"
            ) from error
        loss, counts = (returned.per_token, returned.counts) if isinstance(returned, Terms) else (returned, {})
        if fault := _fault_of_loss(loss, answers) or _fault_of_counts(counts):
            raise UserLossError(f"the loss {name} {fault}")
        assert isinstance(loss, Tensor)
        return Terms(
            loss, {counted: torch.as_tensor(count) for counted, count in counts.items()}, _odd_values(loss, answers)
        )

    reduction: Reduction = "group_mean" if getattr(function, "sees_groups", False) else "token_mean"
    return Objective(name, checked, reduction, needs_group=False, is_user_loss=True)


def _fault_of_loss(loss: object, answers: Answers) -> str | None:
    """What is wrong with the type, shape or gradient of a per-token loss, and what is expected."""
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
    """The faults that a per-token loss may have in its values, and whether it has them."""
    loss, mask = loss.detach(), answers.mask.bool()
    # Where the model's log-probability isn't finite, the loss isn't at fault.
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
