"""CONTRIBUTING's worked examples, run as they stand there."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from negaware.objectives import dr_grpo_loss
from tiny_models import llama

sys.path.append(str(Path(__file__).parent / "rollout"))
pytest.register_assert_rewrite("conformance")
from conformance import EngineConformance  # noqa: E402

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def example(heading: str) -> ModuleType:
    """A module of the Python under the heading."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert blocks, heading
    module = ModuleType(heading.replace(" ", "_"))
    for block in blocks:
        exec(compile(block, f"CONTRIBUTING.md, {heading}", "exec", dont_inherit=True), module.__dict__)
    return module


def test_the_objective():
    objective = example("Add an objective").entry
    logprobs = torch.tensor([[-1.0, -2.0], [-0.5, float("nan")]], requires_grad=True)
    mask = torch.tensor([[1, 1], [1, 0]])
    others = (mask, torch.tensor([True, False]), torch.tensor([0.25, 0.25]))
    loss = objective(logprobs, logprobs.detach(), *others)
    assert loss.tolist() == [[0.75, 1.5], [-0.125, 0.0]]
    (ours,) = torch.autograd.grad(loss.sum(), logprobs)
    (theirs,) = torch.autograd.grad(dr_grpo_loss(logprobs, logprobs.detach(), *others).sum(), logprobs)
    assert torch.equal(ours, theirs)  # on-policy, Dr. GRPO is REINFORCE with the group's baseline


def test_the_task():
    letters = example("Add a task")
    splits = [letters.load_letters(letters.LetterOptions(split=split)) for split in ("train", "test")]
    assert not {p.question for p in splits[0].problems} & {p.question for p in splits[1].problems}
    for task in splits:
        golds = [task.as_answer(problem.answer) for problem in task.problems]
        verdicts = task.verifier.grade(golds, task.problems)
        wrong = task.verifier.grade([task.as_answer("17")] * len(golds), task.problems)
        task.verifier.close()
        assert verdicts
        assert all(verdict.correct for verdict in verdicts)
        assert not any(verdict.correct for verdict in wrong)


@pytest.mark.slow
class TestTheEngine(EngineConformance):
    @pytest.fixture
    def model(self):
        return llama(0)

    def make_engine(self, model, max_sequences=1):
        return example("Add an engine").GenerateEngine(model)
