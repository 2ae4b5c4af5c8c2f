"""The check for a GPU, at toy size on the CPU: every part passes; what fails or is cut short leaves the rest theirs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ["graphs", "flex", "nft_step", "decode", "training_1k", "training_4k", "conformance"]


def checked(folder: Path, *options: str, **environment: str) -> tuple[int, dict]:
    output = folder / "gpu-check.json"
    command = [sys.executable, "benchmarks/gpu_check.py", "--toy", "--output", str(output), *options]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    return done.returncode, json.loads(output.read_text())


@pytest.mark.slow
def test_every_part_passes_at_toy_size(tmp_path: Path) -> None:
    parts = [name for name in PARTS if name != "training_4k"]  # at toy size it is training_1k
    chosen = [argument for name in parts for argument in ("--part", name)]
    code, report = checked(tmp_path, "--seconds", "900", *chosen)
    assert [(name, part["state"]) for name, part in report["parts"].items()] == [(name, "passed") for name in parts]
    assert code == 0
    figures = {name: part["figures"] for name, part in report["parts"].items()}
    assert figures["graphs"]["completions"] == 36
    assert figures["graphs"]["shapes"] >= 2
    assert abs(figures["nft_step"]["loss"]) > 1e-3  # off-policy: on-policy it would be 0 whatever the weights are
    assert figures["nft_step"]["sampler_difference"] == pytest.approx(0.25, abs=0.05)
    assert all(figures[name]["tokens_per_second"] > 0 for name in ("decode", "training_1k"))
    assert figures["conformance"]["tests"] > 10
    assert report["device"] == "cpu"
    assert report["versions"]["torch"] != "none"


def test_a_part_that_fails_or_runs_out_of_time_is_recorded_and_the_others_run(tmp_path: Path) -> None:
    """The first part's process can't import torch; the second would have time, were there any left."""
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    code, report = checked(tmp_path, "--part", "graphs", "--part", "flex", PYTHONPATH=str(tmp_path))
    assert code == 1
    assert [part["state"] for part in report["parts"].values()] == ["failed", "failed"]
    assert "left no result" in report["parts"]["graphs"]["error"]
    code, report = checked(tmp_path, "--part", "graphs", "--part", "flex", "--seconds", "0.2")
    assert code == 1
    assert report["parts"]["graphs"]["error"] == "not done after 0 s"
    assert report["parts"]["flex"] == {"state": "not run"}
