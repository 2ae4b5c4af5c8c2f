"""examples/ with the real model, at their first step: an own file, an own judge, both; an own loss; NFT in TRL."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from forked_command import negaware
from negaware.studies.matrix import jobs_of
from negaware.studies.options import read_study

ROOT = Path(__file__).parents[1]
REASONS = {"correct", "wrong", "no_answer"}
SHORTENED = {
    "--run.steps": 1,
    "--rollout.questions": 1,  # asked as the step of four is, until one teaches
    "--rollout.max_sampled_questions": 32,
    "--evaluation.task.num_problems": 2,
    "--evaluation.final.completions": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own_file", "own_function", "own_both", "own_loss"])
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    options = [part for option in SHORTENED.items() for part in option]
    ended = negaware("train", f"examples/{name}.yaml", "--run.folder", tmp_path / "run", *options, cwd=ROOT)
    assert ended.code == 0, ended.err
    records = [json.loads(line) for line in (tmp_path / "run/answers/000001.jsonl").read_text().splitlines()]
    assert {record["reason"] for record in records} <= REASONS
    assert len({record["correct"] for record in records}) == 2


@pytest.mark.slow
def test_the_example_in_trl_runs(tmp_path: Path) -> None:
    """One step of two groups, TRL's own options after it."""
    options = {
        **{"output_dir": tmp_path, "max_steps": 1, "logging_steps": 1, "save_strategy": "no", "report_to": "none"},
        **{"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 16, "max_refills": 1},
        **{"use_cpu": True, "bf16": False},
    }
    command = [sys.executable, "examples/trl_nft.py", *(f"--{name}={value}" for name, value in options.items())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'refill/questions_asked':" in done.stdout
    assert (tmp_path / "model.safetensors").exists()


def test_the_example_of_a_study_can_be_run() -> None:
    """Its runs' configs are whole; that a study runs is shown on smaller ones."""
    path = ROOT / "examples/study.yaml"
    study = read_study(path)
    assert study.folder is not None
    jobs = jobs_of(study, path.parent / study.base, path.parent / study.folder)
    assert [job.name for job in jobs] == [f"{name}-seed{seed}" for seed in range(3) for name in ("nft", "rft")]
    assert {(job.variant, job.config["objective"]["name"]) for job in jobs} == {("nft", "nft"), ("rft", "rft")}
    assert {job.steps for job in jobs} == {4}
