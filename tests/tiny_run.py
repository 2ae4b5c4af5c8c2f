"""A model of a few thousand weights, a task that it gets right by chance now and then, and a config for both.

A run of it is real in every part and takes a second or two.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = ("<pad>", "<eos>", "<user>", "<answer>", "<unk>", "0", "1", "2", "+", " ")
CHAT_TEMPLATE = (
    "{% for message in messages %}<user>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)
TIMES = ("seconds", "time/", "tokens_per_second")
"""What of a metric's name tells that two equal runs may differ in it."""
NOISE = ("train/sampler_difference", "train/share_at_epsilon")
"""Metrics of what differs by rounding alone: whether a ratio of 1 is a hair above it or below."""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({text: index for index, text in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"<\w+>|."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
    )


def write_tiny_model(folder: Path, spread: float = 0.02) -> Path:
    """Random weights with this standard deviation: the wider, the surer the model is of its nonsense."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        initializer_range=spread,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_problems(path: Path, golds: str) -> Path:
    """One problem a character of `golds`, its gold answer."""
    rows = [{"question": f"{number % 3}+{number // 3 % 3}", "answer": gold} for number, gold in enumerate(golds)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tiny_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """Plain data for a config whose model and data are in `folder`, made if they aren't there yet.

    `changes` are by dotted names with underscores doubled: `run__steps=3`.
    """
    if not (folder / "model").exists():
        write_tiny_model(folder / "model")
        write_problems(folder / "train.jsonl", "012012012")
        write_problems(folder / "test.jsonl", "0120")
    style = {"prompt": "{question}", "extract": ["last_number"]}  # no text needs symbolic algebra in a worker
    config: dict[str, Any] = {
        "model": str(folder / "model"),
        "task": {"kind": "dataset", "path": str(folder / "train.jsonl"), **style},
        "rollout": {"questions": 4, "completions": 6, "max_new_tokens": 6, "max_sequences": 12},
        "training": {
            "optimizer_steps": 2,
            "learning_rate": 1e-2,
            "micro_batch_tokens": 128,
            "compute_dtype": "float32",
        },
        "evaluation": {
            "task": {"kind": "dataset", "path": str(folder / "test.jsonl"), **style},
            "during": {"every": 2, "num_problems": 3, "max_new_tokens": 6, "temperature": 0},
            "final": {"completions": 2, "max_new_tokens": 6},
        },
        "run": {"folder": str(folder / "run"), "steps": 5, "checkpoint_every": 2},
    }
    for name, value in changes.items():
        *parents, last = name.split("__")
        place = config
        for parent in parents:
            place = place[parent]
        place[last] = value
    return config


def write_tiny_config(folder: Path, **changes: Any) -> Path:
    """The same as a YAML file."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_config(folder, **changes)))
    return path


def timeless_metrics(run: Path) -> list[dict[str, Any]]:
    """A run's metrics without what the clock says."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not any(time in key for time in TIMES)} for line in lines]


GENTLE = {"training__max_grad_norm": 1e-9, "training__learning_rate": 1.0, "training__weight_decay": 0.0}
"""Steps that follow the gradient: clipped so far below AdamW's 1e-8 that it is what gradients are divided by.

Elsewhere AdamW makes of a gradient that is 0 but for rounding a step as long as any other.
"""
ROUNDED = 2e-4
"""What rounding may make of two gradients, relative to their norm: each may be off by 1e-4 (`defined`, tiny llama)."""


def assert_same_metrics(run: Path, expected: Path) -> None:
    """Two `GENTLE` runs are the same but for the order in which they were added up: all follows from gradients."""
    losses = [line["train/loss"] for line in timeless_metrics(expected) if "train/loss" in line]
    for found, wanted in zip(timeless_metrics(run), timeless_metrics(expected), strict=True):
        assert found.keys() == wanted.keys()
        for name in wanted.keys() - set(NOISE):
            size = max(map(abs, losses)) if name == "train/loss" else abs(wanted[name])  # a loss may cancel out
            assert found[name] == pytest.approx(wanted[name], rel=0, abs=ROUNDED * size), (wanted["step"], name)


def assert_same_weights(run: Path, expected: Path, name: str = "model/model.safetensors", times: float = 1) -> None:
    """The finished weights of two `GENTLE` runs: each step is a tenth of the learning rate long at most."""
    ours, theirs = load_file(run / name), load_file(expected / name)
    assert ours.keys() == theirs.keys()
    path = 0.1 * sum(
        line.get("train/learning_rate", 0) * line.get("train/num_optimizer_steps", 0)
        for line in timeless_metrics(expected)
    )
    for key, weight in theirs.items():
        assert ours[key].dtype == weight.dtype
    apart = sum(float((ours[key].double() - weight.double()).square().sum()) for key, weight in theirs.items()) ** 0.5
    assert apart <= times * ROUNDED * path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, by its relative path."""
    return {os.path.relpath(path, folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
