"""A finished run's model loads in other people's programs, with no code of ours, and answers the same greedy text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from negaware.cli import main
from tiny_run import write_problems, write_tiny_config, write_tiny_model

NEW_TOKENS = 6  # as in tiny_run's final evaluation
OFFLINE = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

GENERATE = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, questions = sys.argv[1], json.loads(sys.argv[2])
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
for question in questions:
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=int(sys.argv[3]))[0]
    print(json.dumps(tokenizer.decode(tokens[inputs["input_ids"].shape[1] :], skip_special_tokens=True)))
assert not any(name.startswith("negaware") for name in sys.modules)
"""

pytestmark = pytest.mark.slow  # each imports torch in a process of its own


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A finished run's model, and what our own engine greedily answered with it at the end: question → text."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_tiny_config(folder, training__learning_rate=1e-3)
    write_tiny_model(folder / "model", spread=0.3)  # far from a tie, so that no processor's rounding decides an answer
    write_problems(folder / "test.jsonl", "012012012")
    assert main(["train", str(config)]) == 0
    lines = (folder / "run" / "evaluations" / "after-greedy_accuracy.jsonl").read_text().splitlines()
    answers = {line["question"]: line["answers"][0]["text"] for line in map(json.loads, lines)}
    assert len(set(answers.values())) > 1  # or a constant would pass
    return folder / "run" / "model", answers


def run(command: list[str]) -> str:
    done = subprocess.run(command, env=OFFLINE, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_transformers_answers_the_same(finished: tuple[Path, dict[str, str]]) -> None:
    model, expected = finished
    said = run([sys.executable, "-c", GENERATE, str(model), json.dumps(list(expected)), str(NEW_TOKENS)])
    assert dict(zip(expected, map(json.loads, said.splitlines()), strict=True)) == expected


def test_lm_evaluation_harness_answers_the_same(finished: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="make test-slow installs lm-evaluation-harness (the extra `interop`)")
    model, expected = finished
    rows = [{"question": question, "answer": "0"} for question in expected]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": NEW_TOKENS},
        "metric_list": [{"metric": "exact_match"}],
    }
    (tmp_path / "sums.yaml").write_text(yaml.safe_dump(task))
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32"]
    command += ["--tasks", "sums", "--include_path", str(tmp_path), "--apply_chat_template", "--device", "cpu"]
    run([*command, "--log_samples", "--output_path", str(tmp_path / "out")])
    (samples,) = (tmp_path / "out").rglob("samples_sums_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert {line["doc"]["question"]: line["resps"][0][0] for line in lines} == expected
