"""Whole runs that sample with the real vLLM: a tiny one, killed and resumed, and SmolLM2 on the demo's task."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from forked_command import Fault, negaware
from negaware.models.load import load_codec
from negaware.rollout.engine import SamplingParams
from negaware.rollout.options import VLLMOptions
from negaware.rollout.vllm import VLLMEngine
from tiny_run import VOCABULARY, contents, timeless_metrics, write_tiny_config

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]
ROOT = Path(__file__).parents[2]
OPTIMIZER_STEP = "negaware.training.optimizer:MasterOptimizer.step"


def tiny_config_for_vllm(folder: Path, tied: bool = True, **changes) -> Path:
    """The tiny run with a model whose heads are as wide as vLLM's kernels want them."""
    config = write_tiny_config(folder, **changes)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": tied}
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(VOCABULARY), **sizes, **heads, **tokens))
    model.save_pretrained(folder / "model")
    return config


def test_a_killed_run_resumes_with_the_trainers_weights(tmp_path):
    """Bit for bit the run that wasn't killed, so the resumed engine had the checkpoint's weights, not the folder's."""
    config = tiny_config_for_vllm(tmp_path, rollout__engine={"name": "vllm", "cache_gib": 0.02})
    straight, killed = tmp_path / "run", tmp_path / "killed"
    ended = negaware("train", config)
    assert ended.code == 0, ended.err
    assert negaware("train", config, "--run.folder", killed, faults=[Fault("SIGKILL", OPTIMIZER_STEP, 6)]).code == -9
    ended = negaware("train", config, "--run.folder", killed, "--resume")
    assert ended.code == 0, ended.err
    assert timeless_metrics(killed) == timeless_metrics(straight)
    assert contents(killed / "answers") == contents(straight / "answers")
    metrics = timeless_metrics(straight)[1:]
    assert len(metrics) == 5
    assert all(0 < step["train/sampler_difference"] < 1e-5 for step in metrics)
    assert "old_logprobs: recomputed" in (straight / "config.yaml").read_text()


@pytest.fixture(scope="module")
def smollm2_run(tmp_path_factory) -> Path:
    """Three steps of the demo's first questions, sampled by vLLM."""
    folder = tmp_path_factory.mktemp("smollm2")
    config = folder / "demo.yaml"
    shutil.copy(ROOT / "configs" / "demo.yaml", config)
    short = ("--run.steps", 3, "--rollout.questions", 4, "--evaluation.during", "null")
    short += ("--evaluation.task.num_problems", 4, "--evaluation.final.completions", 1)
    ended = negaware("train", config, *short, "--run.folder", folder / "run", "--rollout.engine", "vllm")
    assert ended.code == 0, ended.err
    return folder / "run"


def test_sampler_and_trainer_differ_by_bfloat16_alone(smollm2_run):
    """The mean of |log π_trainer − log π_sampler| a token."""
    differences = [step["train/sampler_difference"] for step in timeless_metrics(smollm2_run)[1:]]
    assert len(differences) == 3
    assert max(differences) < 0.05  # 0.029 to 0.034 were measured


def test_a_finished_model_answers_alike_in_vllm_and_transformers(smollm2_run):
    """Greedy, float32, token for token, with no code of ours but the engine that asks."""
    folder = smollm2_run / "model"
    codec = load_codec(str(folder))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    questions = ("What is 3 + 4?", "What is 12 * 5?", "Name a river in France.", "What is 9 - 2?")
    prompts = [codec.encode([{"role": "user", "content": question}]) for question in questions]
    engine = VLLMEngine(str(folder), "float32", 8192, VLLMOptions(cache_gib=0.2), 4)
    params = SamplingParams(24, temperature=0.0, stop_token_ids=codec.stop_token_ids)
    for prompt, (completion,) in zip(prompts, engine.generate(prompts, 1, params, 0), strict=True):
        tokens = torch.tensor([prompt])
        expected = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=24, do_sample=False)[
            0, len(prompt) :
        ]
        assert codec.decode(completion.token_ids.tolist()) == codec.decode(expected.tolist()) != ""
