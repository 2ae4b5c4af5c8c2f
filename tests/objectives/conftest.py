"""A ragged off-policy batch in float64, and the objectives in every form that has maths of its own."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from negaware.objectives import OBJECTIVES, Objective

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "nft": ("nft", {}),
    "nft_grpo_weight": ("nft", {"prompt_weight": "grpo", "epsilon": 0.3, "negative_weight": 0.5}),
    "nft_uniform": ("nft", {"prompt_weight": "uniform", "epsilon": 0.1}),
    "nft_sequence": ("nft", {"ratio": "sequence", "epsilon": 0.2}),
    "nft_maxrl_weight": ("nft", {"prompt_weight": "maxrl", "positive_weight": 0.5, "epsilon": 0.3}),
    "nft_wrong_alone": ("nft", {"positive_weight": 0.0, "epsilon": 0.2}),
    "rft": ("rft", {}),
    "rft_one_minus_rate": ("rft", {"prompt_weight": "one_minus_rate"}),
    "grpo": ("grpo", {}),
    "grpo_clip_higher": ("grpo", {"clip_high": 0.3}),
    "dr_grpo": ("dr_grpo", {}),
    "dapo": ("dapo", {}),
    "asymre": ("asymre", {}),
    "cispo": ("cispo", {}),
    "cispo_low_cap": ("cispo", {"cap": 1.2}),
    "dppo": ("dppo", {}),
    "dppo_low_cap": ("dppo", {"delta": 0.05, "cap": 1.2}),
    "gspo": ("gspo", {}),
    "gspo_wide": ("gspo", {"clip_low": 0.2, "clip_high": 0.3}),
    "infonca": ("infonca", {}),
    "infonca_sharp": ("infonca", {"beta": 0.8, "sft_weight": 0.0}),
    "maxrl": ("maxrl", {}),
    "real": ("real", {}),
    "real_smooth": ("real", {"temperature": 2.0}),
    "w_reinforce": ("psr_nsr", {}),
    "nsr": ("psr_nsr", {"positive_weight": 0.0}),
    "signed": ("signed", {}),
    "topr": ("topr", {}),
}

NUM_ANSWERS = 4
"""Of a group."""

Tensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def ragged_batch(lengths: tuple[int, ...] = (4, 1, 3, 2, 4, 2, 3, 1), num_answers: int = NUM_ANSWERS) -> Tensors:
    """Two groups of `num_answers` with pass rates 1/4 and 3/4; ratios spread over about [0.4, 2.5]."""
    generator = torch.Generator().manual_seed(7)
    size = (len(lengths), max(lengths))
    old = -3 * torch.rand(size, generator=generator, dtype=torch.float64) - 0.1
    logprobs = old + 0.9 * (2 * torch.rand(size, generator=generator, dtype=torch.float64) - 1)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    correct = torch.tensor([True, False, False, False, True, True, False, True])
    pass_rate = correct.view(-1, num_answers).double().mean(1).repeat_interleave(num_answers)
    return logprobs, old, mask, correct, pass_rate


def gradient(loss: Callable[..., Tensor], tensors: Tensors, **options: Any) -> Tensor:
    """∂ Σ loss / ∂ logprobs, [B, T]."""
    leaf = tensors[0].clone().requires_grad_()
    (result,) = torch.autograd.grad(loss(leaf, *tensors[1:], **options).sum(), leaf)
    return result


@pytest.fixture(name="gradient")
def _gradient() -> Callable[..., Tensor]:
    return gradient


@pytest.fixture
def batch() -> Tensors:
    return ragged_batch()


class InGroups:
    """An objective that sees groups; of its answers each four are one."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)

    def __call__(self, *tensors: Tensor, **options: Any) -> Tensor:
        return self.objective(*tensors, groups_of(len(tensors[0])), **options)

    def counts(self, *tensors: Tensor, **options: Any) -> Mapping[str, Tensor]:
        return self.objective.counts(*tensors, groups_of(len(tensors[0])), **options)


def groups_of(num_rows: int) -> Tensor:
    """The group of each of so many answers."""
    return torch.arange(num_rows // NUM_ANSWERS).repeat_interleave(NUM_ANSWERS)


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any]]:
    """(objective, options) for each form in turn."""
    name, options = FORMS[request.param]
    objective = OBJECTIVES[name]
    return InGroups(objective) if objective.sees_groups else objective, options
