"""A loss of your own: REINFORCE with the group's mean as its baseline, and a temperature."""

import torch


def reinforce(answers, *, temperature: float = 1.0):
    """The loss of each token [B, T]: −A log π_θ / temperature with A = r − r̂, 0 where the mask is 0.

    `answers` has logprobs, old_logprobs, mask [B, T]; correct, pass_rate and group [B].
    """
    advantage = answers.correct.float() - answers.pass_rate
    loss = -advantage[:, None] * answers.logprobs / temperature
    return torch.where(answers.mask, loss, 0.0)
