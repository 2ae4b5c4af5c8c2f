"""Whole runs as the paper's baselines are: all that is asked trained on, long answers costing, killed and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from negaware.config import parse_config
from negaware.loop.train import train
from negaware.ranks import ALONE
from negaware.rollout.collect import NothingToLearnError
from negaware.rollout.records import groups_from_json
from tiny_run import contents, timeless_metrics, tiny_config

BASELINE: dict[str, Any] = {
    "evaluation__during": None,
    "rollout__overlong_buffer": 4,
    "run__checkpoint_every": 1,
}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_on_all_that_is_asked_has_the_rewards_of_its_lengths(tmp_path: Path) -> None:
    objective = {"name": "grpo", "clip_high": 0.28, "reduction": "token_mean"}
    changes = BASELINE | {"objective": objective, "rollout__filter": "none", "run__steps": 2}
    run = train(parse_config(tiny_config(tmp_path, **changes)))
    for line in read_lines(run / "metrics.jsonl")[1:]:
        counted = [line[f"rollout/num_{name}"] for name in ("groups", "groups_sampled", "surplus_groups")]
        assert counted == [4, 4, 0]
        answers = read_lines(run / f"answers/{line['step']:06d}.jsonl")
        assert len(answers) == 4 * 6 == sum(answer["trained"] for answer in answers)
        for answer in answers:
            over = min(max((answer["num_tokens"] - 2) / 4, 0), 1)
            assert answer["reward"] == pytest.approx(answer["correct"] - over / 2)
        costs = [answer["reward"] < answer["correct"] for answer in answers]
        assert line["rollout/overlong_share"] == pytest.approx(sum(costs) / 24)
        uninformative = {answer["problem_id"] for answer in answers if answer["pass_rate"] in (0, 1)}
        assert line["rollout/num_uninformative_groups"] == len(uninformative)


@pytest.mark.slow
def test_a_resumed_run_trains_on_the_rewards_of_the_groups_that_waited(tmp_path: Path) -> None:
    changes = BASELINE | {"objective": "dapo", "run__steps": 5, "run__keep_checkpoints": 9}
    straight = train(parse_config(tiny_config(tmp_path, **changes)))
    metrics = timeless_metrics(straight)
    stops = [line["step"] for line in metrics if line.get("rollout/num_surplus_groups") and line["step"] < 5]
    assert stops, "this run should carry groups over the interruption"
    again = Path(shutil.copytree(straight, tmp_path / "again"))
    for path in (again / "checkpoints").iterdir():  # as a kill in the step after would have left the folder
        if int(path.name.removeprefix("step-")) > stops[-1]:
            shutil.rmtree(path)
    for part in (again / "summary.json", again / "model"):
        shutil.rmtree(part) if part.is_dir() else part.unlink()
    state = json.loads((again / f"checkpoints/step-{stops[-1]:06d}/state.json").read_text())
    assert all(group.rewards is not None for group in groups_from_json(state["surplus"], ALONE))
    train(parse_config(tiny_config(tmp_path, **changes | {"run__folder": str(again)})), resume=True)
    assert timeless_metrics(again) == metrics
    assert contents(again / "model") == contents(straight / "model")


def test_a_resumed_run_remembers_how_many_questions_have_taught_nothing(tmp_path: Path) -> None:
    (tmp_path / "never_right.py").write_text("def judge(text, problem):\n    return False\n")
    changes = {
        "evaluation__during": None,
        "rollout__filter": "none",
        "rollout__max_sampled_questions": 8,
        "run__checkpoint_every": 1,
        "task__verifier": "never_right:judge",
    }
    config = parse_config(tiny_config(tmp_path, **changes))
    for resume in (False, True):
        with pytest.raises(NothingToLearnError, match="4 questions of this step nor of the 4 asked before them"):
            train(config, resume=resume, judges=tmp_path)
        assert config.run.folder is not None
        assert [line["step"] for line in read_lines(config.run.folder / "metrics.jsonl")] == [0, 1]
