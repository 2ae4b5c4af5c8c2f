"""`negaware train CONFIG --dry-run`: the resolved config and the arithmetic of one step, before anything is loaded.

It loads no weights: the model's size comes from its config file. (The embedded model is made at its first use, so also
here on a fresh machine.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from negaware.config import Config
from negaware.models.embedded import EMBEDDED_MODEL, embedded_model_folder
from negaware.models.load import COMPUTE_DTYPES, pick_device
from negaware.models.logprobs import LOGITS_AT_ONCE

GIB = 2**30


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What of a model decides memory and work."""

    num_parameters: int
    num_layers: int
    width: int
    vocabulary: int
    cache_bytes_per_token: int


def print_plan(config: Config) -> None:
    """Prints the resolved config as YAML, then a step's arithmetic. ValueError if the model's config can't be had."""
    print(yaml.safe_dump(config.resolved(), sort_keys=False), end="")
    print("\n# One step")
    for line in step_arithmetic(config):
        print(f"#   {line}")
    print("\n# Memory, at the least (GiB)")
    for name, size in memory(config, model_size(config)).items():
        print(f"#   {size / GIB:8.2f}  {name}")


def step_arithmetic(config: Config) -> list[str]:
    """questions × answers → sequences → optimizer steps → micro-batches, with all answers as long as they may be."""
    rollout, training = config.rollout, config.training
    sequences = rollout.questions * rollout.completions
    tokens = sequences * rollout.max_new_tokens
    per_step = tokens // training.optimizer_steps
    batches = max(1, -(-per_step // training.micro_batch_tokens))
    return [
        f"{rollout.questions} questions × {rollout.completions} answers = {sequences:,} sequences, "
        f"at most {rollout.max_new_tokens:,} tokens each: {tokens:,} answer tokens",
        f"at most {rollout.question_budget:,} questions asked to find {rollout.questions} informative ones",
        f"{training.optimizer_steps} optimizer steps of {rollout.questions / training.optimizer_steps:g} questions "
        f"and at most {per_step:,} answer tokens",
        f"about {batches:,} micro-batches of at most {training.micro_batch_tokens:,} tokens an optimizer step, "
        "questions not counted",
        f"{config.run.steps:,} steps: {config.run.steps * training.optimizer_steps:,} optimizer steps, "
        f"{config.run.steps * sequences:,} answers trained on",
    ]


def model_size(config: Config) -> ModelSize:
    """The model's size from its config alone, on torch's meta device."""
    source = embedded_model_folder() if config.model.name == EMBEDDED_MODEL else config.model.name
    try:
        found: PretrainedConfig = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "unknown")
        raise ValueError(
            f"The config of model {config.model.name!r} can't be had, so its memory can't be told: {reason}"
        ) from error
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(found)
    text = found.get_text_config(decoder=True)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    itemsize = COMPUTE_DTYPES[config.training.compute_dtype].itemsize
    cache = 2 * text.num_hidden_layers * heads * head_width * itemsize
    return ModelSize(
        sum(parameter.numel() for parameter in model.parameters()),
        text.num_hidden_layers,
        text.hidden_size,
        text.vocab_size,
        cache,
    )


def memory(config: Config, size: ModelSize) -> dict[str, int]:
    """Bytes by purpose. Activations are left to measurement: they depend on the kernels."""
    training, rollout = config.training, config.rollout
    width = COMPUTE_DTYPES[training.compute_dtype].itemsize
    device = pick_device(config.device)
    logits = LOGITS_AT_ONCE.get(device, LOGITS_AT_ONCE["cuda"])
    copies = width * size.num_parameters + 4 * size.vocabulary * size.width if device == "cpu" else 0
    parts = {
        f"master weights ({size.num_parameters / 1e6:,.0f}M, float32)": 4 * size.num_parameters,
        "gradients (float32)": 4 * size.num_parameters,
        "AdamW's two moments (float32)": 8 * size.num_parameters,
        f"weights that compute ({training.compute_dtype})": width * size.num_parameters if width < 4 else 0,
        "copies of weights as the CPU's products read them": copies,
        f"logits and their gradient, {logits / 2**20:.0f}M at a time (float32)": 2 * 4 * logits,
        f"keys and values of {rollout.max_sequences} answers of {rollout.max_new_tokens:,} tokens, questions not "
        "counted (twice that on a CPU without a C compiler)": rollout.max_sequences
        * rollout.max_new_tokens
        * size.cache_bytes_per_token,
    }
    # Sampling and training take turns, but torch keeps what it once had: the sum is what to have.
    return parts | {"together": sum(parts.values())}
