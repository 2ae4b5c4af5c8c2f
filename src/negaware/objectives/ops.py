"""The tensor operations that several objectives use: ratios that stay finite, a floored value, the reduction.

B answers, T tokens (padded), `mask` true on an answer's tokens.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Literal

import torch
from torch import Tensor

with suppress(ImportError):  # shapes are checked where jaxtyping is installed (the tests); torch alone is enough
    from jaxtyping import Float, Shaped

LOG_RATIO_CAP = 10.0
"""The log-ratio is capped here before `exp` (the NFT reference code's value)."""

Reduction = Literal["token_mean", "sequence_mean", "sequence_sum", "constant", "group_mean"]


def log_ratio(
    logprobs: Float[Tensor, "B T"], old_logprobs: Float[Tensor, "B T"], mask: Shaped[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """log π_θ − log π_old on the answer's tokens, 0 elsewhere, even if the inputs are NaN or infinite there."""
    # Selected here, before anything nonlinear: the gradient of exp or log at a masked infinity would be NaN.
    difference = logprobs - old_logprobs.detach()
    return torch.where(mask.bool(), difference, torch.zeros_like(difference))


def capped_exp(log_ratios: Tensor) -> Tensor:
    """exp with its argument capped at `LOG_RATIO_CAP`; no gradient flows beyond the cap."""
    return log_ratios.clamp(max=LOG_RATIO_CAP).exp()


def floor_value(x: Tensor, epsilon: float) -> Tensor:
    """max_v(x, ε) = x + stop_gradient(max(x, ε) − x): the value is floored, the gradient flows through x."""
    # x − x.detach() is exactly 0, so the value is exactly the floor; in the textbook's order it isn't if |x| is large.
    return x.detach().clamp(min=epsilon) + (x - x.detach())


def answer_lengths(mask: Shaped[Tensor, "B T"]) -> Shaped[Tensor, " B"]:
    """Tokens of each answer, at least 1 so that it can divide."""
    return mask.bool().sum(-1).clamp(min=1)


def denominator(
    reduction: Reduction, num_tokens: int, num_answers: int, max_answer_tokens: int, num_groups: int = 1
) -> int:
    """What a reduction divides by, counted over all micro-batches of the mini-batch."""
    return {
        "token_mean": num_tokens,
        "sequence_mean": num_answers,
        "sequence_sum": num_answers,
        "constant": num_answers * max_answer_tokens,
        "group_mean": num_groups,
    }[reduction]


def reduce_loss(
    loss: Float[Tensor, "B T"], mask: Shaped[Tensor, "B T"], reduction: Reduction, global_denominator: int
) -> Float[Tensor, ""]:
    """Σ loss / global denominator; `sequence_mean` first averages each answer over its tokens.

    The sum over micro-batches is the mini-batch's loss, however it was split.
    """
    if reduction == "sequence_mean":
        loss = loss / answer_lengths(mask)[:, None].to(loss.dtype)
    return loss.sum() / global_denominator
