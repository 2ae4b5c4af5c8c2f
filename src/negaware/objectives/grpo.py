"""The clipped policy gradients that NFT is compared with: GRPO, Dr. GRPO and DAPO.

They differ in the advantage, the clip and the reduction.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Annotated

from torch import Tensor

from negaware.objectives.clipped import Clip, ClipHigh, clipped_gradient
from negaware.objectives.contract import Answers, Option, Terms, five_tensors, objective
from negaware.objectives.credit import centred, centred_advantage, standardised
from negaware.objectives.ops import answer_lengths

with suppress(ImportError):
    from jaxtyping import Bool, Float, Shaped


@objective(reduction="sequence_mean", paper="arXiv 2402.03300")
def grpo(answers: Answers, *, clip: Clip = 0.2, clip_high: ClipHigh = None) -> Terms:
    """Group Relative Policy Optimization.

    −min(R A, clip(R, 1 − c, 1 + c) A) with A = (r − mean)/std, for each token (eq. 3). Counted: tokens that the clip
    silences (their gradient is 0), and those that exceed the log-ratio cap.
    """
    return clipped_gradient(answers, standardised(answers), clip, clip_high)


@objective(reduction="constant", paper="arXiv 2503.20783")
def dr_grpo(answers: Answers, *, clip: Clip = 0.2, clip_high: ClipHigh = None) -> Terms:
    """GRPO without its two normalisations.

    A = r − mean: no division by the group's std nor by the answer's length.
    """
    return clipped_gradient(answers, centred(answers), clip, clip_high)


@objective(reduction="token_mean", paper="arXiv 2503.14476")
def dapo(
    answers: Answers,
    *,
    clip_low: Annotated[float, Option("The clip below 1.", above=0)] = 0.2,
    clip_high: Annotated[float, Option("The clip above 1.", above=0)] = 0.28,
) -> Terms:
    """GRPO with a higher upper clip and a token mean.

    Its over-long shaping is the rewards', not the loss's: `rollout.overlong_buffer`.
    """
    return clipped_gradient(answers, standardised(answers), clip_low, clip_high)


grpo_loss, dr_grpo_loss = five_tensors(grpo), five_tensors(dr_grpo)


def dapo_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    correct: Bool[Tensor, " B"],
    pass_rate: Float[Tensor, " B"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    overlong_from: int | None = None,
    overlong_to: int | None = None,
) -> Float[Tensor, "B T"]:
    """GRPO with a higher upper clip, and optionally a penalty on long answers.

    With both `overlong_*` (tokens) given, an answer loses up to a whole reward between the two lengths (eq. 13). Five
    tensors don't say who is in a group, so its mean and std stay those of the verdicts; in a run, rewards are shaped
    before they are centred. ValueError if only one is given or they are reversed.
    """
    answers = Answers(logprobs, old_logprobs, mask, correct, pass_rate)
    if overlong_from is not None or overlong_to is not None:
        penalty = _overlong_penalty(answer_lengths(mask), overlong_from, overlong_to)
        reward = centred_advantage(correct, pass_rate) + penalty.to(pass_rate.dtype)
        answers = replace(answers, centred_reward=reward, reward_std=(pass_rate * (1 - pass_rate)).sqrt())
    return dapo(answers, clip_low=clip_low, clip_high=clip_high).per_token


def _overlong_penalty(lengths: Tensor, overlong_from: int | None, overlong_to: int | None) -> Tensor:
    """0 up to `overlong_from` tokens, −1 from `overlong_to` on, linear between."""
    if overlong_from is None or overlong_to is None or not 0 <= overlong_from < overlong_to:
        raise ValueError(
            f"overlong_from is {overlong_from} and overlong_to is {overlong_to}; "
            "give both, the first below the second, or none."
        )
    return -((lengths - overlong_from) / (overlong_to - overlong_from)).clamp(0, 1)
