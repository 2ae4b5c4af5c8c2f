"""Attention as training needs it where transformers' own decoder runs, behind its attention interface.

Rows in which answers share their question; whatever else a model asks for goes to transformers' own SDPA attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from negaware.models.cpu.shared_rows import SharedRows, attend
from negaware.models.cuda.compiled import flex_rows

NAME = "negaware"


def use_own_attention(model: PreTrainedModel) -> bool:
    """Switches a model from transformers' SDPA attention to this one; False for a model that uses another kind."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
    return model.config.get_text_config(decoder=True)._attn_implementation == NAME


def plain_rows(device: torch.device) -> dict[str, Any]:
    """What a model with this attention is given for rows of one answer each, padding last: causal attention does.

    A mask that stands for none: without one transformers looks whether positions start anew in a row, and waits for the
    GPU to know it.
    """
    return {"attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)}


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    scaling: float | None = None,
    shared_rows: SharedRows | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention [B, T, H, D] of query [B, H, T, D] to key and value [B, Hkv, S, D], as transformers calls it."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(attention_mask, BlockMask):
        return flex_rows(query, key, value, attention_mask, scale), None
    if attention_mask is not None and attention_mask.shape[-1] != key.shape[-2]:  # `plain_rows`
        attention_mask = None
    plain = not any(options.get(name) is not None for name in ("softcap", "position_bias", "s_aux"))
    if shared_rows is not None and plain and value.shape[-1] == query.shape[-1]:
        states = torch.cat([query, key, value], dim=1).transpose(1, 2)  # [B, T, H + 2·Hkv, D]
        attended = attend(states.flatten(0, 1), shared_rows, key.shape[1], scale)
        return attended.unflatten(0, states.shape[:2]), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
