"""CONTRIBUTING's worked examples, run as they stand there."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from negaware.objectives import OBJECTIVES, Answers, dr_grpo_loss
from negaware.objectives.user_loss import user_objective
from tiny_models import llama

sys.path.append(str(Path(__file__).parent / "rollout"))
pytest.register_assert_rewrite("conformance")
from conformance import EngineConformance  # noqa: E402

PAGE_FOLDER = Path(__file__).parents[1]
PAGE = (PAGE_FOLDER / "CONTRIBUTING.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    return PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def example(heading: str) -> ModuleType:
    """A module of the Python under the heading."""
    blocks = re.findall(r"```python\n(.*?)```", section(heading), re.DOTALL)
    assert blocks, heading
    module = ModuleType(heading.replace(" ", "_"))
    for block in blocks:
        exec(compile(block, f"CONTRIBUTING.md, {heading}", "exec", dont_inherit=True), module.__dict__)
    return module


def test_the_objective(monkeypatch):
    """The loss of one's own is the example's, and it and the one for `objectives/` say the same."""
    own, theirs, _ = re.findall(r"```python\n(.*?)```", section("Add an objective"), re.DOTALL)
    assert own == (PAGE_FOLDER / "examples" / "own_loss.py").read_text(encoding="utf-8")
    known = dict(OBJECTIVES)
    for code, name in ((own, "own_loss"), (theirs, "objectives.reinforce")):
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        try:
            exec(compile(code, name, "exec", dont_inherit=True), module.__dict__)
            entry = OBJECTIVES.get("reinforce") or user_objective("own_loss:reinforce", module.reinforce)
        finally:
            OBJECTIVES.clear()
            OBJECTIVES.update(known)
        assert entry.keywords["temperature"].default == 1.0
        assert entry.reduction == "token_mean"
        padding = 0.0 if entry.is_user_loss else float("nan")
        logprobs = torch.tensor([[-1.0, -2.0], [-0.5, padding]], requires_grad=True)
        mask = torch.tensor([[True, True], [True, False]])
        answers = Answers(logprobs, logprobs.detach(), mask, torch.tensor([True, False]), torch.tensor([0.25, 0.25]))
        loss = entry.terms(answers, temperature=0.5).per_token
        assert loss.tolist() == [[1.5, 3.0], [-0.25, 0.0]]
        (ours,) = torch.autograd.grad(loss.sum(), logprobs)
        five = (logprobs, logprobs.detach(), mask, answers.correct, answers.pass_rate)
        (dr_grpo,) = torch.autograd.grad(dr_grpo_loss(*five).sum(), logprobs)
        assert torch.equal(ours, 2 * dr_grpo)  # on-policy, Dr. GRPO is REINFORCE with the group's baseline


def test_the_loss_of_groups(monkeypatch):
    """Of a group of four with one right answer, and of two with one: −log 1/4 and −log 1/2 on-policy."""
    code = re.findall(r"```python\n(.*?)```", section("Add an objective"), re.DOTALL)[2]
    module = ModuleType("own_loss")
    monkeypatch.setitem(sys.modules, "own_loss", module)
    exec(compile(code, "own_loss", "exec", dont_inherit=True), module.__dict__)
    entry = user_objective("own_loss:right_share", module.right_share)
    assert (entry.reduction, entry.sees_groups, entry.keywords["beta"].default) == ("group_mean", True, 0.1)
    logprobs = -torch.ones(8, 2, dtype=torch.float64, requires_grad=True)
    correct = torch.tensor([True, False, False, False, False, True, False, False])
    group, rate = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2]), torch.full((8,), 0.5, dtype=torch.float64)
    answers = Answers(logprobs, logprobs.detach(), torch.ones(8, 2).bool(), correct, rate, group)
    loss = entry.terms(answers).per_token
    assert loss[:4].sum().item() == pytest.approx(math.log(4))
    assert loss[4:6].sum().item() == pytest.approx(math.log(2))
    assert loss[6:].eq(0).all()
    (found,) = torch.autograd.grad(loss.sum(), logprobs)
    quarter, half = 0.1 / 4, 0.1 / 2
    assert found[:, 0].tolist() == pytest.approx([quarter - 0.1, *[quarter] * 3, half, half - 0.1, 0, 0])


ONE_FILE = """
import json
from negaware.objective_options import OPTIONS
from negaware.objectives import OBJECTIVES
from negaware.validation import validated
chosen = validated(OPTIONS["reinforce"], {"temperature": 0.5})
print(json.dumps([list(OBJECTIVES), chosen.model_dump(), OPTIONS["reinforce"].model_fields["temperature"].description]))
try:
    validated(OPTIONS["reinforce"], {"temperature": 0})
except ValueError as error:
    print(json.dumps(str(error)))
"""


def test_an_objective_takes_one_file(tmp_path):
    """Put into `objectives/`, it is in the registry and in what a config may say, with its bound and its words."""
    package = shutil.copytree(PAGE_FOLDER / "src" / "negaware", tmp_path / "negaware")
    code = re.findall(r"```python\n(.*?)```", section("Add an objective"), re.DOTALL)[1]
    (package / "objectives" / "reinforce.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{ONE_FILE}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (names, chosen, words), refused = map(json.loads, done.stdout.splitlines())
    assert sorted(names) == sorted([*OBJECTIVES, "reinforce"])
    assert chosen == {"name": "reinforce", "reduction": "token_mean", "temperature": 0.5}
    assert words == "What log π_θ is divided by."
    assert refused == "temperature is 0; it should be greater than 0."


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
