"""The clipped policy gradients that NFT is compared with: GRPO, Dr. GRPO and DAPO.

They differ in the advantage, the clip and the reduction.
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from negaware.objectives.clipped import Clip, ClipHigh, clipped_gradient
from negaware.objectives.contract import Answers, Option, Terms, five_tensors, objective
from negaware.objectives.credit import centred_advantage, inverse_std, standardised_advantage
from negaware.objectives.ops import answer_lengths


@objective(reduction="sequence_mean", paper="arXiv 2402.03300")
def grpo(answers: Answers, *, clip: Clip = 0.2, clip_high: ClipHigh = None) -> Terms:
    """Group Relative Policy Optimization.

    −min(R A, clip(R, 1 − c, 1 + c) A) with A = (r − mean)/std, for each token (eq. 3). Counted: tokens that the clip
    silences (their gradient is 0), and those that exceed the log-ratio cap.
    """
    return clipped_gradient(answers, standardised_advantage(answers.correct, answers.pass_rate), clip, clip_high)


@objective(reduction="constant", paper="arXiv 2503.20783")
def dr_grpo(answers: Answers, *, clip: Clip = 0.2, clip_high: ClipHigh = None) -> Terms:
    """GRPO without its two normalisations.

    A = r − mean: no division by the group's std nor by the answer's length.
    """
    return clipped_gradient(answers, centred_advantage(answers.correct, answers.pass_rate), clip, clip_high)


@objective(reduction="token_mean", paper="arXiv 2503.14476")
def dapo(
    answers: Answers,
    *,
    clip_low: Annotated[float, Option("The clip below 1.", above=0)] = 0.2,
    clip_high: Annotated[float, Option("The clip above 1.", above=0)] = 0.28,
    overlong_from: Annotated[
        int | None,
        Option("Answers longer than this many tokens begin to lose reward; set both or none.", at_least=0),
    ] = None,
    overlong_to: Annotated[int | None, Option("Answers of this many tokens lose a whole reward.", at_least=1)] = None,
) -> Terms:
    """GRPO with a higher upper clip, a token mean, and optionally a penalty on long answers.

    With both `overlong_*` (tokens) given, an answer's reward falls linearly from 0 to −1 between the two lengths
    (eq. 13). The group's mean and std stay those of the verdicts. ValueError if only one is given or they are reversed.
    """
    advantage = standardised_advantage(answers.correct, answers.pass_rate)
    if overlong_from is not None or overlong_to is not None:
        penalty = _overlong_penalty(answer_lengths(answers.mask), overlong_from, overlong_to)
        advantage = advantage + penalty.to(advantage.dtype) * inverse_std(answers.pass_rate)
    return clipped_gradient(answers, advantage, clip_low, clip_high)


def _overlong_penalty(lengths: Tensor, overlong_from: int | None, overlong_to: int | None) -> Tensor:
    """0 up to `overlong_from` tokens, −1 from `overlong_to` on, linear between."""
    if overlong_from is None or overlong_to is None or not 0 <= overlong_from < overlong_to:
        raise ValueError(
            f"overlong_from is {overlong_from} and overlong_to is {overlong_to}; "
            "give both, the first below the second, or none."
        )
    return -((lengths - overlong_from) / (overlong_to - overlong_from)).clamp(0, 1)


grpo_loss, dr_grpo_loss, dapo_loss = five_tensors(grpo), five_tensors(dr_grpo), five_tensors(dapo)
