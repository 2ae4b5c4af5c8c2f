"""Two processes of the real TRL (gloo): they refill together, and their gradient is that of one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_trl import GROUPS, K, Step, defined, torchrun

from tiny_run import write_tiny_model

pytestmark = pytest.mark.slow  # three imports of TRL


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder, and what each process saw."""
    folder = tmp_path_factory.mktemp("processes")
    write_tiny_model(folder / "model")
    torchrun(2, "two_processes_trl.py", str(folder))
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_they_ask_equally_often_and_fill_their_batches(processes: tuple[Path, list[dict[str, Any]]]) -> None:
    _, (first, second) = processes
    assert first["calls"] == second["calls"]
    assert len(first["calls"]) > 1
    for seen in (first, second):
        (batch,) = seen["batches"]
        rights = batch["correct"].view(GROUPS, K).sum(1)
        assert ((rights > 0) & (rights < K)).all()
        assert torch.equal(batch["pass_rate"].view(GROUPS, K)[:, 0], rights / K)
    asked = first["logs"][0]["refill/questions_asked"]
    assert asked == sum(first["calls"] + second["calls"]) / K
    assert 0 < first["logs"][0]["refill/informative_share"] < 1


def test_they_ask_different_questions(processes: tuple[Path, list[dict[str, Any]]]) -> None:
    _, seen = processes
    prompts = [{tuple(row.tolist()) for row in each["batches"][0]["prompt_ids"]} for each in seen]
    assert not prompts[0] & prompts[1]


def test_their_gradient_is_that_of_one_process(processes: tuple[Path, list[dict[str, Any]]]) -> None:
    """At the second step on the batch, over one count of all tokens."""
    folder, seen = processes
    for ours, theirs in zip(seen[0]["steps"], seen[1]["steps"], strict=True):
        for name, gradient in ours[1].items():
            assert torch.equal(gradient, theirs[1][name]), name
            assert torch.equal(ours[0][name], theirs[0][name]), name
    weights, gradients = seen[0]["steps"][1]
    batches = [each["batches"][0] for each in seen]
    for batch in batches:
        assert batch["num_items_in_batch"] == sum(each["completion_mask"].sum() for each in batches)
    exact, _ = defined(folder, weights, batches)
    exact.assert_near(Step(weights, gradients).flat())
