"""examples/ as a user runs them, with the real model: an own file, an own judge, both."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REASONS = {"correct", "wrong", "no_answer"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own_file", "own_function", "own_both"])
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "negaware",
        "train",
        f"examples/{name}.yaml",
        "--run.folder",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "run/answers/000001.jsonl").read_text().splitlines()]
    assert {record["reason"] for record in records} <= REASONS
    assert len({record["correct"] for record in records}) == 2
