"""The sizes of a model that decide memory and work, from its config alone: no weights are loaded."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from negaware.config import Config
from negaware.models.description import describe
from negaware.models.family import is_llama_like
from negaware.models.files import files_of_users, require_possible_sizes, why_not_loaded
from negaware.models.load import locate
from negaware.models.lora import add_adapters, base_of_adapters, require_peft


class ModelShape:
    """Sizes of a decoder whose layers are attention and a gated MLP. Other layers are counted as if they were."""

    def __init__(self, config: Config) -> None:
        """The sizes of the config's model. ValueError if the model's config can't be read."""
        found, model = _on_meta(config.model.name)
        text, known = found.get_text_config(decoder=True), describe(model)
        self.num_heads, self.num_key_heads = known.num_heads, known.num_key_heads
        layers = max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=_num_parameters)
        self.num_layers, self.width, self.vocabulary = text.num_hidden_layers, text.hidden_size, text.vocab_size
        self.head_width: int = getattr(text, "head_dim", None) or text.hidden_size // self.num_heads
        self.mlp_width: int = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
        self.is_llama_like = is_llama_like(model)
        """Whether the fused decoder computes the model on the CPU."""
        self.num_parameters = _num_parameters(model)
        """Parameters without adapters."""
        self.layer_parameters = max(_num_parameters(layer) for layer in layers)
        """Parameters of the largest layer."""
        self.root_parameters = self.num_parameters - self.num_layers * self.layer_parameters
        """Parameters outside all layers: embeddings, head, last norm."""
        self.head_parameters = self.vocabulary * self.width
        """Parameters of the language-model head; the embedding has the same ones if they are tied."""
        self.computing_parameters = self.num_layers * self.layer_parameters + self.head_parameters
        """Parameters that a token is multiplied with: those of layers and head."""
        self.attended_width = self.num_heads * self.head_width
        """Numbers in attention's output for one token in one layer."""
        self.states_width = self.attended_width + 2 * self.num_key_heads * self.head_width
        """Numbers in a token's queries, keys and values of one layer."""
        if config.model.lora is not None:
            require_peft()
            with torch.device("meta"):
                add_adapters(model, config.model.lora, config.model.name)
        self.num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        """Parameters with gradients and moments: all, or those of adapters, which aren't in num_parameters."""
        self.is_frozen = self.num_trained < self.num_parameters
        """Whether only adapters are trained."""

    def cache_bytes(self, itemsize: int) -> int:
        """Bytes of one token's keys and values in all layers."""
        return 2 * self.num_layers * self.num_key_heads * self.head_width * itemsize


def _on_meta(name: str) -> tuple[PretrainedConfig, PreTrainedModel]:
    """A model's config, and the model without weights. ValueError if the config can't be read."""
    source = str(locate(name))
    try:
        with files_of_users():
            source = base_of_adapters(source) or source
            require_possible_sizes(name, source)
            found: PretrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=False)
            with torch.device("meta"):
                return found, AutoModelForCausalLM.from_config(found)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"The config of model {name!r} can't be read, so its memory isn't known: {why_not_loaded(error)}"
        ) from error


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
