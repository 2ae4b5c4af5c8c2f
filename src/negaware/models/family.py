"""Which models the fused decoder can stand in for: found in their parts, and checked once against their own forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from negaware.models.attention import NAME as OWN_ATTENTION
from negaware.models.cpu.decoder import FusedDecoder
from negaware.models.cpu.shared_rows import SharedRows
from negaware.models.description import describe
from negaware.models.lora import plain

DTYPES = (torch.float32, torch.bfloat16)
ATTENTION_KINDS = ("sdpa", OWN_ATTENTION)
"""A model that was given another kind of attention keeps it."""
LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
HEAD_NORMS = {"q_norm", "k_norm"}
MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}


def fused_decoder_of(model: PreTrainedModel) -> FusedDecoder | None:
    """A fused decoder of the model; None if it can't stand in for the model's own."""
    kind = model.config.get_text_config(decoder=True)._attn_implementation
    fits = model.device.type == "cpu" and model.dtype in DTYPES and kind in ATTENTION_KINDS
    return _check(model) if fits and is_llama_like(model) else None


def is_llama_like(model: PreTrainedModel) -> bool:
    """Whether its parts are those that the fused decoder knows; what they compute is checked where it is used."""
    decoder: Any = model.get_decoder()
    if not describe(model).sees_all or not all(
        hasattr(decoder, name) for name in ("embed_tokens", "rotary_emb", "norm", "layers")
    ):
        return False
    if len({parameter.dtype for parameter in decoder.parameters()}) > 1:
        return False
    if "llama_4_scaling_beta" in (model.config.get_text_config(decoder=True).rope_parameters or {}):
        return False  # scales queries beyond the positions that a check could reach
    return _is_rms_norm(decoder.norm) and all(_is_llama_layer(layer) for layer in decoder.layers)


def _is_llama_layer(layer: Any) -> bool:
    if {name for name, _ in layer.named_children()} != LAYER_PARTS:
        return False
    attention, mlp = (dict(part.named_children()) for part in (layer.self_attn, layer.mlp))
    if attention.keys() not in (ATTENTION_PARTS, ATTENTION_PARTS | HEAD_NORMS) or mlp.keys() != MLP_PARTS:
        return False
    inputs = [plain(attention[name]) for name in ("q_proj", "k_proj", "v_proj")]
    others = [plain(attention["o_proj"]), *(plain(mlp[name]) for name in ("gate_proj", "up_proj", "down_proj"))]
    return (
        all(type(linear) is nn.Linear for linear in inputs + others)
        and all(linear.bias is None for linear in others)
        and len({linear.bias is None for linear in inputs}) == 1
        and type(mlp["act_fn"]).__name__ in ("SiLU", "SiLUActivation")
        and all(_is_rms_norm(norm) for norm in (layer.input_layernorm, layer.post_attention_layernorm))
        and hasattr(layer.self_attn, "head_dim")
        and hasattr(layer.self_attn, "scaling")
    )


def _is_rms_norm(norm: nn.Module) -> bool:
    return hasattr(norm, "weight") and hasattr(norm, "variance_epsilon")


def _check(model: PreTrainedModel) -> FusedDecoder | None:
    """The fused decoder, if it computes what the model computes; bfloat16 may blur single tokens."""
    fused = FusedDecoder(model)
    vocabulary = describe(model).vocabulary_size
    positions = torch.arange(8)
    tokens = (positions + vocabulary // 2) % vocabulary  # ordinary ones, not the first, which are special
    with torch.no_grad():
        expected = model.get_decoder()(tokens[None], use_cache=False).last_hidden_state[0].float()
        try:
            found = fused(tokens, positions, fused.attention_within(SharedRows(8, [8], [()]))).float()
        except RuntimeError:  # shapes that don't fit: rotary positions of a part of each head, a norm of all heads
            return None
    fused.refresh()  # the weights that it looked at may get another dtype next
    error = (found - expected).norm(dim=1) / expected.norm(dim=1)
    fits = bool(error.median() < 0.1) if model.dtype == torch.bfloat16 else bool(error.max() < 1e-3)
    return fused if fits else None
