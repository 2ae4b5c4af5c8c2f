"""What a model is, read from its configuration in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel

ATTENTION = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, slots=True)
class Description:
    """A causal language model's attention, vocabulary and head."""

    num_heads: int
    num_key_heads: int
    """Heads with keys and values of their own."""
    windows: Mapping[str, int | None]
    """The kinds of attention layer, each with the number of tokens that it sees; None: all before it."""
    sees_all: bool
    """Whether every layer sees all tokens before, at rotary positions: then several answers may follow one question."""
    other_states: tuple[str, ...]
    """Kinds of layer whose state isn't keys and values of their own, so that it can't be split into rows."""
    vocabulary_size: int
    ties_head: bool
    """Whether head and embeddings have one weight."""
    logit_scale: float
    logit_softcap: float | None
    max_tokens: int
    """The longest sequence that it can take."""


def describe(model: PreTrainedModel) -> Description:
    """The model's description."""
    config = model.config.get_text_config(decoder=True)
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    has_window = window is not None and getattr(config, "use_sliding_window", True)
    other_states = set(kinds or ()) - ATTENTION
    if model._is_stateful and not other_states:
        other_states = {"recurrent"}
    if getattr(config, "num_kv_shared_layers", 0):
        other_states.add("shared")
    num_heads = getattr(config, "num_attention_heads", 0)
    divisor = getattr(config, "logits_scaling", None) or 1.0
    return Description(
        num_heads=num_heads,
        num_key_heads=getattr(config, "num_key_value_heads", None) or num_heads,
        windows={
            kind: window if kind == "sliding_attention" else None
            for kind in kinds or ["full_attention" if window is None else "sliding_attention"]
        },
        sees_all=getattr(config, "rope_parameters", None) is not None
        and not has_window
        and set(kinds or ["full_attention"]) == {"full_attention"},
        other_states=tuple(sorted(other_states)),
        vocabulary_size=int(config.vocab_size),
        ties_head=bool(getattr(config, "tie_word_embeddings", False)),
        logit_scale=float(getattr(config, "logit_scale", None) or 1.0 / divisor),
        logit_softcap=getattr(config, "final_logit_softcapping", None),
        max_tokens=int(getattr(config, "max_position_embeddings", 2**31)),
    )
