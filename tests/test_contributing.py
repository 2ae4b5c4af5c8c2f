"""CONTRIBUTING's worked examples, run as they stand there."""

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from negaware.objectives import dr_grpo_loss
from negaware.rollout.engine import SamplingParams

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


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=11, initializer_range=0.5, **sizes)).eval()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_engine(temperature, model):
    engine = example("Add an engine").GenerateEngine(model, version=3)
    params = SamplingParams(max_new_tokens=6, temperature=temperature, stop_token_ids=(4,))
    counted = []
    groups = engine.generate([[1, 2, 3], [5]], 4, params, seed=1, on_progress=counted.append)
    assert groups == engine.generate([[1, 2, 3], [5]], 4, params, seed=1)
    assert sum(counted) == sum(len(completion.token_ids) for group in groups for completion in group)
    for prompt, group in zip([[1, 2, 3], [5]], groups, strict=True):
        assert (len(set(group)) == 1) == (temperature == 0)
        for completion in group:
            assert completion.version == 3
            assert (completion.finish_reason == "stop") == (completion.token_ids[-1] == 4)
            assert 4 not in completion.token_ids[:-1]
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *completion.token_ids]])).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1).gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=1e-4)
    engine.load_weights([(name, weight + 0.5) for name, weight in model.named_parameters()], version=4)
    assert engine.generate([[5]], 1, params, seed=1)[0][0].version == 4
