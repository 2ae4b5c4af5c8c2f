"""What of a model decides memory and work, from its config alone: no weights are loaded.

(The embedded model is made at its first use, so also here on a fresh machine.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from negaware.config import Config
from negaware.models.description import describe
from negaware.models.family import is_llama_like
from negaware.models.files import files_of_users, require_possible_sizes, why_not_loaded
from negaware.models.load import locate
from negaware.models.lora import add_adapters, base_of_adapters, require_peft


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a decoder whose layers are attention and a gated MLP; others are counted as if theirs were."""

    num_parameters: int
    """Without adapters."""
    num_trained: int
    """Parameters with gradients and moments: all of them, or those of adapters, which come on top."""
    layer_parameters: int
    """Of the largest layer."""
    num_layers: int
    width: int
    num_heads: int
    num_key_heads: int
    head_width: int
    mlp_width: int
    vocabulary: int
    is_llama_like: bool
    """Whether the fused decoder computes it on the CPU."""

    @property
    def is_frozen(self) -> bool:
        """Whether adapters alone are trained."""
        return self.num_trained < self.num_parameters

    @property
    def root_parameters(self) -> int:
        """Those outside all layers: embeddings, head, last norm."""
        return self.num_parameters - self.num_layers * self.layer_parameters

    @property
    def head_parameters(self) -> int:
        """Of the language-model head, which are the embedding's too where they are tied."""
        return self.vocabulary * self.width

    @property
    def states_width(self) -> int:
        """A token's queries, keys and values of one layer."""
        return (self.num_heads + 2 * self.num_key_heads) * self.head_width

    @property
    def attended_width(self) -> int:
        """What attention gives for one token in one layer."""
        return self.num_heads * self.head_width

    def cache_bytes(self, itemsize: int) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.num_layers * self.num_key_heads * self.head_width * itemsize


def model_shape(config: Config) -> ModelShape:
    """The sizes of the config's model, on torch's meta device. ValueError if the model's config can't be had."""
    name, lora = config.model.name, config.model.lora
    source = str(locate(name))
    try:
        with files_of_users():
            source = base_of_adapters(source) or source
            require_possible_sizes(name, source)
            found: PretrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=False)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(found)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"The config of model {name!r} can't be had, so its memory can't be told: {why_not_loaded(error)}"
        ) from error
    text, known = found.get_text_config(decoder=True), describe(model)
    layers = max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=_num_parameters)
    total, largest_layer = _num_parameters(model), max(_num_parameters(layer) for layer in layers)
    if lora is not None:
        require_peft()
        with torch.device("meta"):
            add_adapters(model, lora, name)
    return ModelShape(
        num_parameters=total,
        num_trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        layer_parameters=largest_layer,
        num_layers=text.num_hidden_layers,
        width=text.hidden_size,
        num_heads=known.num_heads,
        num_key_heads=known.num_key_heads,
        head_width=getattr(text, "head_dim", None) or text.hidden_size // known.num_heads,
        mlp_width=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        vocabulary=text.vocab_size,
        is_llama_like=is_llama_like(model),
    )


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
