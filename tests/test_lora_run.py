"""Runs that train adapters: resumed they equal straight ones, both model folders are judged alike, they learn."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from torch.distributed.checkpoint import FileSystemReader

from forked_command import Fault, negaware
from tiny_run import contents, timeless_metrics, write_tiny_config

ROOT = Path(__file__).parents[1]
LORA = {"rank": 4, "alpha": 8}
SHORTENED = {  # the demo, to a minute or two
    "--run.steps": 5,
    "--rollout.questions": 8,
    "--rollout.completions": 4,
    "--evaluation.during": "null",
    "--evaluation.task.num_problems": 60,
    "--evaluation.final.completions": 2,
}


def write_config(folder: Path, compute_dtype: str, **lora: str) -> Path:
    """The tiny run with adapters."""
    path = write_tiny_config(folder, training__learning_rate=2e-2, training__compute_dtype=compute_dtype)
    data = yaml.safe_load(path.read_text())
    data["model"] = {"name": data["model"], "lora": LORA | lora}
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture(
    scope="module",
    params=[pytest.param(("merged", "bfloat16"), marks=pytest.mark.slow), ("adapter", "float32")],
    ids=["merged", "adapter"],
)
def straight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a config whose run was never disturbed."""
    save, compute_dtype = request.param
    folder = tmp_path_factory.mktemp(save)
    ended = negaware("train", write_config(folder, compute_dtype, save=save))
    assert (ended.code, ended.err) == (0, "")
    return folder


def test_a_killed_run_resumed_equals_the_straight_one(straight: Path) -> None:
    config, again = straight / "tiny.yaml", straight / "again"
    options = ("--run.folder", again)
    fault = Fault("SIGKILL", "negaware.training.optimizer:MasterOptimizer.step", 6)
    assert negaware("train", config, *options, faults=[fault]).code == -9
    assert negaware("train", config, *options, "--resume").code == 0
    assert timeless_metrics(again) == timeless_metrics(straight / "run")
    for part in ("model", "answers", "evaluations"):
        assert contents(again / part) == contents(straight / "run" / part)


def test_a_checkpoint_holds_adapters_alone(straight: Path) -> None:
    tensors = FileSystemReader(straight / "run/checkpoints/step-000005/tensors").read_metadata().state_dict_metadata
    assert len(tensors) == 4 * 2 * 2 * 7  # master, step, two moments; A and B of 7 layers in 2 blocks
    assert all(".lora_A." in name or ".lora_B." in name for name in tensors)


def test_the_model_folder_is_judged_as_the_run_judged_it(straight: Path) -> None:
    """By a run that begins where this one ended."""
    options = ("--run.folder", straight / "next", "--run.steps", 1, "--model.lora", "null")
    ended = negaware("train", straight / "tiny.yaml", *options, "--model", straight / "run/model")
    assert (ended.code, ended.err) == (0, "")
    files = (straight / "run/evaluations/after-avg_at_2.jsonl", straight / "next/evaluations/before-avg_at_2.jsonl")
    assert files[0].read_text() == files[1].read_text()


def test_a_run_whose_config_named_the_model_alone_goes_on(tmp_path: Path) -> None:
    """As runs did before a model had options."""
    config = write_tiny_config(tmp_path)
    fault = Fault("SIGKILL", "negaware.training.optimizer:MasterOptimizer.step", 6)
    assert negaware("train", config, faults=[fault]).code == -9
    (before,) = (tmp_path / "run").glob("config.y*ml")
    data = yaml.safe_load(before.read_text())
    assert data["model"] == {"name": str(tmp_path / "model"), "lora": None}
    before.write_text(yaml.safe_dump(data | {"model": data["model"]["name"]}))
    refused = negaware("train", config, "--resume", "--model.lora", "{}")
    assert refused.code == 2
    assert "model.lora.rank was None there and is 16 now" in refused.err
    assert negaware("train", config, "--resume").code == 0


@pytest.mark.slow
def test_adapters_learn_the_demos_problems(tmp_path: Path) -> None:
    options = [part for option in SHORTENED.items() for part in option]
    ended = negaware("train", ROOT / "configs/demo_lora.yaml", "--run.folder", tmp_path / "run", *options)
    assert ended.code == 0, ended.err
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    before, after = summary["before"], summary["after"]
    assert after["avg_at_2"]["value"] > before["avg_at_2"]["value"] + 0.15
    assert after["greedy_accuracy"]["value"] > before["greedy_accuracy"]["value"]


PEAK = """
import re, sys, torch
from pathlib import Path
from negaware.config import load_config
from negaware.models.load import load_policy
from negaware.objectives import OBJECTIVES
from negaware.rollout.engine import SamplingParams
from negaware.rollout.local import LocalEngine
from negaware.training.step import LossSettings, Trainer
from training.made_groups import make_group
config = load_config(Path(sys.argv[1]), ["--training.compute_dtype", "bfloat16"])
lora = config.model.lora
policy = load_policy(config.model.name, torch.bfloat16, lora=lora, trained=True)
engine = LocalEngine(policy.network)
trainer = Trainer(policy.network, LossSettings(OBJECTIVES["nft"], {}, 1.0, 8), config.training, 2)
# Two groups make two optimizer steps: the second has the moments and the gradients side by side.
(answers,) = engine.generate([list(range(100, 110))], 2, SamplingParams(8), 0)
trainer.step([make_group(range(100, 110), answers, [True, False])] * 2, 0)
# Not getrusage's peak, which begins with that of the process that started this one.
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
print(int(peak) * 1024, sum(p.numel() for p in policy.model.parameters()))
"""


@pytest.mark.slow
def test_the_peak_of_a_process_drops_by_what_is_not_trained() -> None:
    """By 16 bytes a weight on paper, less what merged weights take; at least 12 are asked for."""
    peaks, weights = [], 0
    for name in ("demo", "demo_lora"):
        command = [sys.executable, "-c", PEAK, f"configs/{name}.yaml"]
        environment = {
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}",
            "PATH": "/usr/bin:/bin",
            "HOME": str(Path.home()),
        }
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
        peak, count = map(int, done.stdout.split())
        peaks.append(peak)
        weights = weights or count
    assert peaks[0] - peaks[1] > 12 * weights, peaks
