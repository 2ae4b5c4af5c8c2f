"""What a mini-batch's gradient and loss are by definition, and how far rounding may carry them from it."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from negaware.objectives import OBJECTIVES
from negaware.objectives.contract import Answers
from negaware.types import Group
from rounding import UNIT, Exact, exactly


def of_whole_group(objective: str, options: dict, sums: torch.Tensor, lengths: torch.Tensor, right: torch.Tensor):
    """A group's loss from its answers' log-ratios, their lengths and verdicts, by the papers' formulas."""
    means = sums / lengths
    if objective == "real":
        return (1 + (-means[right] / 0.5).exp().sum()).log() + (1 + (means[~right] / 0.5).exp().sum()).log()
    likelihood = (options["beta"] * sums).softmax(0).log() + means
    return -likelihood[right].mean()


def by_definition(
    model: PreTrainedModel, groups: Sequence[Group], objective: str, options: dict, reduction: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient and loss of the whole mini-batch at once: each answer in a row alone, autograd through all logits."""
    reduction = reduction or OBJECTIVES[objective].reduction_under(options)
    answers = [(group, *each) for group in groups for each in zip(group.completions, group.verdicts, strict=True)]
    sequences = [torch.tensor([*group.prompt_ids, *done.token_ids]) for group, done, _ in answers]
    tokens = pad_sequence(sequences, batch_first=True)
    logprobs = model(tokens, use_cache=False).logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    rows = zip(logprobs, sequences, answers, strict=True)
    of_answers = [row[len(group.prompt_ids) - 1 : len(sequence) - 1] for row, sequence, (group, *_) in rows]
    logprobs = pad_sequence(of_answers, batch_first=True)
    old = pad_sequence([torch.tensor(done.logprobs) for _, done, _ in answers], batch_first=True)
    lengths = torch.tensor([done.num_tokens for _, done, _ in answers])
    mask = torch.arange(old.shape[1]) < lengths[:, None]
    correct = torch.tensor([verdict.correct for *_, verdict in answers])
    if reduction == "group_mean":
        sums = ((logprobs - old) * mask).sum(1)
        sizes = [len(group.completions) for group in groups]
        of_groups = zip(sums.split(sizes), lengths.split(sizes), correct.split(sizes), strict=True)
        loss = sum(of_whole_group(objective, options, *each) for each in of_groups) / len(groups)
    else:
        rates = torch.tensor([group.pass_rate for group, *_ in answers])
        given = Answers(logprobs, old, mask, correct, rates)
        if groups[0].rewards is not None:
            rewards = [torch.tensor(group.rewards) for group in groups]
            centred = torch.cat([of_group - of_group.mean() for of_group in rewards])
            spread = torch.cat([of_group.std(correction=0).expand(len(of_group)) for of_group in rewards])
            given = replace(given, centred_reward=centred, reward_std=spread)
        values = OBJECTIVES[objective].terms(given, **options).per_token.sum(1)
        loss = {
            "token_mean": values / lengths.sum(),
            "sequence_mean": values / lengths / len(lengths),
            "sequence_sum": values / len(lengths),
            "constant": values / (14 * len(lengths)),
        }[reduction].sum()
    gradients = torch.autograd.grad(loss, [weight for weight in model.parameters() if weight.requires_grad])
    return torch.cat([gradient.flatten() for gradient in gradients]), loss


def defined(
    model: PreTrainedModel,
    groups: Sequence[Group],
    objective: str,
    options: dict[str, Any],
    reduction: str | None = None,
    unit: float = UNIT,
) -> tuple[Exact, Exact, Exact]:
    """The same in float64, with what rounding to `unit` allows: the gradient, the loss and the gradient's norm."""
    model = copy.deepcopy(model).double()

    def compute() -> list[torch.Tensor]:
        gradient, loss = by_definition(model, groups, objective, options, reduction)
        return [gradient, loss, gradient.norm()]

    gradient, loss, norm = exactly(compute, unit)
    return gradient, loss, norm
