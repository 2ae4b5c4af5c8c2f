"""Attention as sampling and training need it, behind transformers' attention interface.

One query a row while decoding on the CPU, and rows in which answers share their question; whatever else a model asks
for goes to transformers' own SDPA attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from negaware.models.cuda import flex_rows
from negaware.models.shared_rows import SharedRows, attend

NAME = "negaware"


def use_own_attention(model: PreTrainedModel) -> bool:
    """Switches a model from transformers' SDPA attention to this one; False for a model that uses another kind."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
    return model.config.get_text_config(decoder=True)._attn_implementation == NAME


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
    plain = not any(options.get(name) is not None for name in ("softcap", "position_bias", "s_aux"))
    if shared_rows is not None and plain:
        return attend(query, key, value, shared_rows, scale), None
    if query.shape[2] == 1 and key.dtype == torch.float32 and key.device.type == "cpu" and plain:
        return _single_query(query, key, value, attention_mask, scale), None
    return sdpa_attention_forward(
        module, query, key.to(query.dtype), value.to(query.dtype), attention_mask, scaling=scaling, **options
    )


def _single_query(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """One query a row, in float32: three products' worth of work that flash attention's blocks only slow down."""
    rows, num_heads, _, width = query.shape
    queries = (query.float() * scale).view(rows, key.shape[1], -1, width)
    scores = queries @ key.mT
    if mask is not None:
        scores.masked_fill_(~mask, -torch.inf)
    return (scores.softmax(-1) @ value).to(query.dtype).view(rows, 1, num_heads, width)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
