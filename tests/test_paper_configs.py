"""The paper's runs in configs/paper/: its numbers by a table, and that nothing else differs from NFT's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from negaware.cli import main
from negaware.config import ConfigError, load_config

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "configs/paper"
GRPO = {"clip": 0.2, "clip_high": 0.28, "reduction": "token_mean"}
NFT = {
    **{"epsilon": 1.0, "negative_weight": 1.0, "positive_weight": 1.0, "prompt_weight": "one_minus_rate"},
    **{"ratio": "token", "reduction": "token_mean"},
}
OBJECTIVES: dict[str, tuple[dict[str, Any], str, bool, int]] = {
    # the objective's options; rollout.filter; whether long answers cost; rollouts
    "nft": (NFT, "informative", False, 320),
    "rft": ({"prompt_weight": "uniform", "reduction": "token_mean"}, "informative", False, 320),
    "dapo": ({"clip_low": 0.2, "clip_high": 0.28, "reduction": "token_mean"}, "informative", True, 320),
    "grpo": (GRPO, "none", True, 580),
    "dr_grpo": (GRPO, "none", True, 580),
    "infonca": ({"beta": 0.1, "sft_weight": 1.0, "reduction": "group_mean"}, "informative", False, 320),
}
SIZES = {"7b": ("Qwen/Qwen2.5-Math-7B", 512, 3584, 1024), "32b": ("Qwen/Qwen2.5-32B", 2048, 14336, 4096)}
RUNS = [(name, size) for name in OBJECTIVES for size in SIZES]


def test_each_baseline_has_a_run_of_each_size() -> None:
    assert {path.stem for path in PAPER.iterdir()} == {f"{name}_{size}" for name, size in RUNS}


@pytest.mark.parametrize(("name", "size"), RUNS)
def test_the_papers_numbers(name: str, size: str) -> None:
    config = load_config(PAPER / f"{name}_{size}.yaml")
    options, kept, shaped, rollouts = OBJECTIVES[name]
    model, prompt_tokens, answer_tokens, buffer = SIZES[size]
    rollout, training = config.rollout, config.training
    assert config.objective.model_dump() == {"name": name, **options}
    assert config.model.name == model
    assert (rollout.filter, rollout.overlong_buffer) == (kept, buffer if shaped else None)
    assert (rollout.questions, rollout.completions, rollout.temperature, rollout.top_p) == (512, 16, 1.0, 1.0)
    assert (rollout.max_prompt_tokens, rollout.max_new_tokens) == (prompt_tokens, answer_tokens)
    assert (training.optimizer_steps, training.learning_rate, training.warmup_rollouts) == (16, 1e-6, 10)
    assert (training.weight_decay, training.max_grad_norm, training.betas) == (0.1, 1.0, (0.9, 0.999))
    assert config.run.steps == rollouts
    assert config.run.folder == Path(f"runs/{name}_{size}")


@pytest.mark.parametrize(("name", "size"), RUNS)
def test_nothing_else_is_otherwise_than_in_nfts(name: str, size: str) -> None:
    """So that what is measured is the baseline."""
    found, nft = (load_config(PAPER / f"{each}_{size}.yaml").resolved() for each in (name, "nft"))
    for config in (found, nft):
        del config["objective"], config["run"]["steps"], config["run"]["folder"]
        del config["rollout"]["filter"], config["rollout"]["overlong_buffer"]
    assert found == nft


def test_a_dry_run_says_that_all_are_trained_on(capsys: pytest.CaptureFixture) -> None:
    model = str(ROOT / "configs/models/Qwen2.5-Math-7B")
    assert main(["train", str(PAPER / "grpo_7b.yaml"), "--dry-run", "--model", model]) == 0
    said = capsys.readouterr().out
    assert "512 questions asked, all of them trained on" in said
    assert "580 steps: 9,280 optimizer steps" in said


# --- base, by which they are written ---


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


WHOLE = """model: m
task: {kind: arithmetic, high: 5}
objective: {name: nft, epsilon: 0.5}
rollout: {questions: 4, completions: 2, engine: {name: vllm, tensor_parallel: 2}}
training: {optimizer_steps: 1, learning_rate: 1.0e-5}
evaluation: {task: "arithmetic:test", final: {completions: 3, max_new_tokens: 9}}
run: {steps: 2}
"""


def test_a_config_is_written_upon_another(tmp_path: Path) -> None:
    write(tmp_path / "whole.yaml", WHOLE)
    write(tmp_path / "middle.yaml", "base: whole.yaml\nrollout: {completions: 8}\nrun: {seed: 7}\n")
    path = write(
        tmp_path / "inner/last.yaml",
        "base: ../middle.yaml\nobjective: {prompt_weight: grpo}\ntask: {kind: arithmetic, low: 3}\n"
        "rollout: {engine: local}\nevaluation: {final: {completions: 5}}\n",
    )
    config = load_config(path, ["--run.steps", "9"])
    assert (config.rollout.questions, config.rollout.completions, config.rollout.engine.name) == (4, 8, "local")
    assert (config.run.steps, config.run.seed, config.run.folder) == (9, 7, Path("runs/last"))
    assert (config.evaluation.final.completions, config.evaluation.final.max_new_tokens) == (5, 9)
    assert config.objective.options["epsilon"] == 1.0  # an objective is taken whole, and so is a task
    assert config.task.model_dump(exclude_defaults=True) == {"low": 3}


def test_a_model_in_its_short_form_is_its_name(tmp_path: Path) -> None:
    write(tmp_path / "lora.yaml", WHOLE.replace("model: m", "model: {name: m, lora: {rank: 4}}"))
    write(tmp_path / "plain.yaml", WHOLE)
    for base, model in (("lora", "other"), ("plain", "{lora: {rank: 4}}")):
        config = load_config(write(tmp_path / "last.yaml", f"base: {base}.yaml\nmodel: {model}\n"))
        assert config.model.lora is not None
        assert (config.model.name, config.model.lora.rank) == ("other" if base == "lora" else "m", 4)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("base: no.yaml", "The config {0}/no.yaml, the base of {0}/a.yaml, can't be read: No such file or directory."),
        ("base: 3", "base is 3 in {0}/a.yaml; write another config's path from there, such as nft.yaml."),
        ("base: a.yaml", "base is a.yaml in {0}/a.yaml, which leads back to itself; name a config that stands alone."),
        ("base: b.yaml", "base is a.yaml in {0}/b.yaml, which leads back to itself; name a config that stands alone."),
    ],
)  # fmt: skip
def test_a_base_that_is_none_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    write(tmp_path / "b.yaml", "base: a.yaml\n")
    with pytest.raises(ConfigError) as refusal:
        load_config(write(tmp_path / "a.yaml", text))
    assert str(refusal.value) == sentence.format(tmp_path)
