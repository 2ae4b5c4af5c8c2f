"""Credit: how much each answer of a group counts, from the group's pass rate. No log-probabilities here."""

from __future__ import annotations

from contextlib import suppress
from typing import Literal

import torch
from torch import Tensor

from negaware.objectives.contract import Answers

with suppress(ImportError):
    from jaxtyping import Bool, Float

PASS_RATE_RANGE = (0.02, 0.98)
"""r̂ is clamped to this range inside NFT's loss (the reference code's values)."""

PromptWeight = Literal["uniform", "one_minus_rate", "grpo", "maxrl"]


def clamp_pass_rate(pass_rate: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """r̂ within `PASS_RATE_RANGE`."""
    return pass_rate.clamp(*PASS_RATE_RANGE)


def prompt_weight(pass_rate: Float[Tensor, " B"], name: PromptWeight) -> Float[Tensor, " B"]:
    """ω(q): `uniform` 1, `one_minus_rate` 1 − r̂, `grpo` sqrt((1 − r̂)/r̂), `maxrl` (1 − r̂)/r̂.

    ValueError for another name.
    """
    if name not in PROMPT_WEIGHTS:
        raise ValueError(f"prompt_weight is {name!r}; it must be one of {', '.join(PROMPT_WEIGHTS)}.")
    return PROMPT_WEIGHTS[name](pass_rate)


PROMPT_WEIGHTS = {
    "uniform": torch.ones_like,
    "one_minus_rate": lambda rate: 1 - rate,
    "grpo": lambda rate: ((1 - rate) / rate).sqrt(),
    "maxrl": lambda rate: (1 - rate) / rate,
}


def is_informative(pass_rate: Float[Tensor, " B"]) -> Bool[Tensor, " B"]:
    """Whether the group has right and wrong answers."""
    return (pass_rate > 0) & (pass_rate < 1)


def refuse_side_weights(positive_weight: float, negative_weight: float) -> None:
    """ValueError for weights of right and wrong answers that are negative, or both 0."""
    for name, weight in (("positive_weight", positive_weight), ("negative_weight", negative_weight)):
        if weight < 0:
            raise ValueError(f"{name} is {weight}; it may not be below 0.")
    if positive_weight == negative_weight == 0:
        raise ValueError("positive_weight and negative_weight are both 0: nothing would be learnt; set one above 0.")


def centred_advantage(correct: Bool[Tensor, " B"], pass_rate: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """A = r − mean over the group (Dr. GRPO, arXiv 2503.20783)."""
    return correct.to(pass_rate.dtype) - pass_rate


def inverse_std(pass_rate: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """1 / sqrt(r̂(1 − r̂)), the population std of the group's verdicts; 0 for a group with nothing to compare."""
    variance = pass_rate * (1 - pass_rate)
    return torch.where(variance > 0, variance.rsqrt(), torch.zeros_like(variance))


def centred(answers: Answers) -> Float[Tensor, " B"]:
    """A = reward − mean over the group; the reward is the verdict unless the answers have another."""
    if answers.centred_reward is None:
        return centred_advantage(answers.correct, answers.pass_rate)
    return answers.centred_reward


def standardised(answers: Answers) -> Float[Tensor, " B"]:
    """A = (reward − mean)/std over the group (GRPO, arXiv 2402.03300), 0 if all its rewards are equal; as `centred`."""
    if answers.centred_reward is None or answers.reward_std is None:
        return centred_advantage(answers.correct, answers.pass_rate) * inverse_std(answers.pass_rate)
    varied = answers.reward_std > 0
    return torch.where(varied, answers.centred_reward / torch.where(varied, answers.reward_std, 1), 0)


def divided_by_mean_advantage(correct: Bool[Tensor, " B"], pass_rate: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """A = (r − mean)/mean over the group, 0 for a group without a right answer (MaxRL, arXiv 2602.02710)."""
    some = pass_rate > 0
    return torch.where(some, centred_advantage(correct, pass_rate) / torch.where(some, pass_rate, 1), 0)
