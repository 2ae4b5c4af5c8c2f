"""Every objective's loss and gradient on one batch, as written in tests/golden/objectives.json.

A change that should not change results leaves them alone. One that should: `python tests/objectives/test_golden.py`
from the repository's root rewrites the file, and its difference belongs in the review.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from negaware.objectives import OBJECTIVES, Answers

GOLDEN = Path(__file__).parents[1] / "golden" / "objectives.json"
NAMES = ("logprobs", "old_logprobs", "mask", "correct", "pass_rate")


def tensors_of(batch: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    dtypes = {"mask": torch.bool, "correct": torch.bool}
    return tuple(torch.tensor(batch[name], dtype=dtypes.get(name, torch.float64)) for name in NAMES)


def loss_and_gradient(case: dict[str, Any], batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    leaf, *others = tensors_of(batch)
    leaf.requires_grad_()
    objective = OBJECTIVES[case["objective"]]
    group = [torch.zeros(len(leaf), dtype=torch.long)] if objective.sees_groups else []
    answers = Answers(leaf, *others, *group)
    if "rewards" in case:
        rewards = torch.tensor(case["rewards"], dtype=torch.float64)
        std = rewards.std(correction=0).expand_as(rewards)
        answers = replace(answers, centred_reward=rewards - rewards.mean(), reward_std=std)
    loss = objective.terms(answers, **case["options"]).per_token
    loss.sum().backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text())["cases"], ids=lambda case: case["name"])
def test_golden(case):
    loss, gradient = loss_and_gradient(case, json.loads(GOLDEN.read_text())["batch"])
    torch.testing.assert_close(loss, torch.tensor(case["loss"], dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(gradient, torch.tensor(case["gradient"], dtype=torch.float64), rtol=0, atol=1e-9)


def test_every_objective_has_a_golden_case():
    assert {case["objective"] for case in json.loads(GOLDEN.read_text())["cases"]} == set(OBJECTIVES)


def rewrite() -> None:
    golden = json.loads(GOLDEN.read_text())
    lines = []
    for case in golden["cases"]:
        loss, gradient = loss_and_gradient(case, golden["batch"])
        case |= {"loss": rounded(loss), "gradient": rounded(gradient)}
        lines.append("    " + json.dumps(case))
    batch = ",\n".join(f'    "{name}": {json.dumps(golden["batch"][name])}' for name in NAMES)
    cases = ",\n".join(lines)
    GOLDEN.write_text(f'{{\n  "batch": {{\n{batch}\n  }},\n  "cases": [\n{cases}\n  ]\n}}\n')


def rounded(tensor: torch.Tensor) -> list[list[float]]:
    return [[round(value, 12) + 0.0 for value in row] for row in tensor.tolist()]


if __name__ == "__main__":
    rewrite()
