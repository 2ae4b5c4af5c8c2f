"""The demo as its user runs it, shortened to a minute or two: the real model gets better on held-out problems."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHORTENED = {
    "--run.steps": "5",
    "--rollout.questions": "8",
    "--evaluation.during.num_problems": "12",
    "--evaluation.task.num_problems": "60",
    "--evaluation.final.completions": "2",
}


@pytest.mark.slow
def test_the_shortened_demo_improves_on_held_out_problems(tmp_path: Path) -> None:
    overrides = [part for option in SHORTENED.items() for part in option]
    command = [sys.executable, "-m", "negaware", "train", "configs/demo.yaml", "--run.folder", str(tmp_path / "run")]
    done = subprocess.run([*command, *overrides], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "step 5/5" in done.stdout
    assert "AutoModelForCausalLM.from_pretrained" in done.stdout

    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    before, after = summary["before"], summary["after"]
    # Five steps gain some forty points here; a sampler's noise gains a few at most.
    assert after["avg_at_2"]["value"] > before["avg_at_2"]["value"] + 0.15
    assert after["greedy_accuracy"]["value"] > before["greedy_accuracy"]["value"]
