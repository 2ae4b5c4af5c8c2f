"""Random models of every architecture that differs in what matters here, small enough for milliseconds a pass.

Initial weights are large, so that what a token sees changes what comes next. They lie on `NEGAWARE_TEST_DEVICE`, by
default the CPU: `make gpu-check` runs the engines' suite on CUDA.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from negaware.models.lora import add_adapters
from negaware.models.network import Network, make_ready
from negaware.models.options import LoraOptions

VOCABULARY = 61
WINDOW = 6
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def _finished(model: PreTrainedModel) -> PreTrainedModel:
    model.generation_config.pad_token_id = 0
    return model.eval().to(os.environ.get("NEGAWARE_TEST_DEVICE", "cpu"))


def network(model: PreTrainedModel, dtype: torch.dtype | None = None) -> Network:
    """The model made ready to be trained and sampled, in its own dtype unless told otherwise."""
    return make_ready(model, dtype or model.dtype)


def llama(seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Grouped-query attention, untied head."""
    torch.manual_seed(seed)
    return _finished(LlamaForCausalLM(LlamaConfig(**SHAPE | {"tie_word_embeddings": False} | changes)))


def gpt2(seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Learned positions, tied head."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256} | changes
    tokens = {"bos_token_id": None, "eos_token_id": None}
    return _finished(GPT2LMHeadModel(GPT2Config(**sizes, **tokens, initializer_range=0.25)))


def qwen3(seed: int = 0) -> PreTrainedModel:
    """Normalised queries and keys, tied head."""
    torch.manual_seed(seed)
    return _finished(Qwen3ForCausalLM(Qwen3Config(**SHAPE | {"tie_word_embeddings": True})))


def mistral(seed: int = 0) -> PreTrainedModel:
    """A sliding window in every layer."""
    torch.manual_seed(seed)
    return _finished(MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=WINDOW)))


def gemma2(seed: int = 0) -> PreTrainedModel:
    """Capped logits, and eager attention."""
    torch.manual_seed(seed)
    config = Gemma2Config(**SHAPE, sliding_window=WINDOW, final_logit_softcapping=3.0, query_pre_attn_scalar=8)
    config._attn_implementation = "eager"
    return _finished(Gemma2ForCausalLM(config))


def gemma3(seed: int = 0) -> PreTrainedModel:
    """Sliding and full layers side by side."""
    torch.manual_seed(seed)
    layers = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(**SHAPE, sliding_window=WINDOW, layer_types=layers, query_pre_attn_scalar=8)
    return _finished(Gemma3ForCausalLM(config))


def gemma4(seed: int = 0) -> PreTrainedModel:
    """A constant in each layer, no parameter and yet in the model's files."""
    torch.manual_seed(seed)
    sizes = {"global_head_dim": 8, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": VOCABULARY}
    model = Gemma4ForCausalLM(Gemma4TextConfig(**SHAPE, **sizes, num_kv_shared_layers=0))
    for layer in model.model.layers:
        layer.layer_scalar.fill_(0.5)
    return _finished(model)


RANK, ALPHA = 4, 12
LORA = LoraOptions(rank=RANK, alpha=ALPHA)


def adapted(model: PreTrainedModel, options: LoraOptions = LORA, trained: bool = True) -> PreTrainedModel:
    """With adapters that, if `trained`, say something."""
    add_adapters(model, options, "the/base")
    if trained:
        torch.manual_seed(1)
        for name, parameter in adapters(model).items():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def adapters(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}


MODELS: dict[str, Callable[[int], PreTrainedModel]] = {
    "llama": llama,
    "gpt2": gpt2,
    "qwen3": qwen3,
    "mistral": mistral,
    "gemma2": gemma2,
    "gemma3": gemma3,
}
COMMON = ("llama", "gemma3")
"""Those that the default suite runs wherever all together would take minutes: the plainest and the oddest."""


def each_model() -> list[Any]:
    """Every architecture's name for `parametrize`, all but `COMMON` marked slow."""
    return [name if name in COMMON else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
