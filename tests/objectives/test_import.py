"""The shape checks do check, and the objectives need torch alone."""

import subprocess
import sys

import pytest
import torch

from negaware.objectives import OBJECTIVES
from negaware.objectives.ops import reduce_loss


@pytest.mark.parametrize(
    ("position", "broken"),
    [
        (1, torch.zeros(8, 3, dtype=torch.float64)),
        (2, torch.ones(7, 4, dtype=torch.bool)),
        (3, torch.ones(8, dtype=torch.int64)),
        (3, torch.ones(8, 1, dtype=torch.bool)),
        (4, torch.full((1,), 0.5, dtype=torch.float64)),
    ],
)
def test_a_wrong_shape_or_dtype_raises(position, broken, form, batch):
    """Each of these would broadcast or index into a wrong number if nothing looked."""
    objective, options = form
    tensors = list(batch)
    tensors[position] = broken
    with pytest.raises(Exception, match="Type-check error"):
        objective(*tensors, **options)
    with pytest.raises(Exception, match="Type-check error"):
        objective.counts(*tensors, **options)


def test_the_reduction_is_checked_too():
    with pytest.raises(Exception, match="Type-check error"):
        reduce_loss(torch.zeros(2, 3), torch.ones(3, 2), "token_mean", 6)


TORCH_ALONE = """
import sys
import torch

known = {name.partition(".")[0] for name in sys.modules} | set(sys.stdlib_module_names) | {"negaware"}


class TorchAlone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in known:
            raise ImportError(f"{name} is neither torch's nor the standard library's")


sys.meta_path.insert(0, TorchAlone())
from negaware.objectives import OBJECTIVES, dapo_loss, dr_grpo_loss, grpo_loss, nft_loss, rft_loss

assert "jaxtyping" not in sys.modules
tensors = torch.tensor([[-1.0], [-2.0]]), torch.tensor([[-1.0], [-2.0]]), torch.ones(2, 1), torch.tensor([True, False])
for objective in OBJECTIVES.values():
    logprobs, group = tensors[0].clone().requires_grad_(), [torch.zeros(2).long()] * objective.sees_groups
    objective(logprobs, *tensors[1:], torch.full((2,), 0.5), *group).sum().backward()
    assert logprobs.grad[0] < 0, objective.name
for options in ({"prompt_weight": "grop"}, {"ratio": "tokens"}):
    try:
        nft_loss(*tensors, torch.full((2,), 0.5), **options)
    except ValueError as error:
        print(error)
"""


def test_the_objectives_need_torch_alone_and_say_which_names_they_know():
    result = subprocess.run([sys.executable, "-c", TORCH_ALONE], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "prompt_weight is 'grop'; it must be one of uniform, one_minus_rate, grpo, maxrl.",
        "ratio is 'tokens'; it must be 'token' or 'sequence'.",
    ]


def test_every_objective_is_listed_under_its_own_name_the_papers_first():
    assert list(OBJECTIVES) == [objective.name for objective in OBJECTIVES.values()]
    assert list(OBJECTIVES)[:5] == ["nft", "rft", "grpo", "dr_grpo", "dapo"]
    assert [name for name, objective in OBJECTIVES.items() if not objective.needs_group] == ["rft"]
