"""How a model is run where it is trained: one protocol, and the one place where it is decided which kind a model gets.

Whoever has a decoder doesn't know which it has. Plain transformers stands here, what is made fast in `cpu` and `cuda`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from negaware.models.attention import has_full_attention, plain_rows, use_own_attention
from negaware.models.cpu.shared_rows import SharedRows
from negaware.models.cuda.compiled import block_mask
from negaware.models.family import fused_decoder_of
from negaware.models.logprobs import hidden_states
from negaware.models.parallel import recompute_activations
from negaware.models.residual import keep_residual_float32


class Rows(Protocol):
    """R rows of T tokens: a question and its answers side by side, each without its last token.

    tokens, positions, segments [R, T]: a segment is 0 for the question, 1 … for its answers, −1 for padding; the
    lengths of each row's question and of its answers, in tokens.
    """

    @property
    def tokens(self) -> Tensor:
        """[R, T]."""
        ...

    @property
    def positions(self) -> Tensor:
        """[R, T]."""
        ...

    @property
    def segments(self) -> Tensor:
        """[R, T]."""
        ...

    @property
    def question_lengths(self) -> Sequence[int]:
        """[R]."""
        ...

    @property
    def answer_lengths(self) -> Sequence[Sequence[int]]:
        """[R], each as many as the row has answers."""
        ...


class Decoder(Protocol):
    """A model without its head."""

    @property
    def kind(self) -> str:
        """What computes, for environment.json: figures are rounded otherwise by another."""
        ...

    @property
    def shares_questions(self) -> bool:
        """Whether a row may have several answers; each sees its question and itself alone."""
        ...

    def hidden_states(self, rows: Rows) -> Tensor:
        """The last hidden states [R·T, D] of all tokens, with gradients where they are enabled."""
        ...

    def refresh(self) -> None:
        """To be called whenever parameters have changed: what was made from them is forgotten."""
        ...

    def recompute_activations(self) -> None:
        """From now on a backward pass computes each layer again from its input, the only thing kept of it."""
        ...


class TransformersDecoder:
    """transformers' own code. With `shares_questions` its attention is `models/attention.py`'s."""

    kind = "transformers"

    def __init__(self, model: PreTrainedModel, shares_questions: bool) -> None:
        self.model, self.shares_questions = model, shares_questions

    def hidden_states(self, rows: Rows) -> Tensor:
        """See `Decoder`."""
        inputs = self.attention_inputs(rows)
        return hidden_states(self.model, rows.tokens, position_ids=rows.positions, **inputs).flatten(0, 1)

    def attention_inputs(self, rows: Rows) -> dict[str, Any]:
        """What keeps the answers of a row apart; where there is one, causal attention does (padding comes last)."""
        if all(len(lengths) == 1 for lengths in rows.answer_lengths):
            return plain_rows(rows.tokens.device) if self.shares_questions else {}
        return self.shared_inputs(rows)

    def shared_inputs(self, rows: Rows) -> dict[str, Any]:
        """The same for rows of several answers."""
        places = SharedRows(rows.tokens.shape[1], rows.question_lengths, rows.answer_lengths)
        return {"attention_mask": attention_mask(rows.segments), "shared_rows": places}

    def refresh(self) -> None:
        """See `Decoder`. It makes nothing from the parameters."""

    def recompute_activations(self) -> None:
        """See `Decoder`."""
        recompute_activations(self.model)


class CudaDecoder(TransformersDecoder):
    """The same with FlexAttention for rows of several answers, compiled on CUDA."""

    def shared_inputs(self, rows: Rows) -> dict[str, Any]:
        """See `TransformersDecoder`."""
        return {"attention_mask": block_mask(rows.segments)}


def decoder_of(model: PreTrainedModel, device: torch.device, in_shards: bool = False) -> Decoder:
    """What runs a model on a device, of weights in shards too: the fused decoder if it can stand in, else transformers.

    transformers is then given a float32 residual stream and the attention of shared rows, where the model allows it.
    """
    fused = None if in_shards else fused_decoder_of(model)
    if fused is not None:
        return fused
    with torch.no_grad():
        keep_residual_float32(model)
    shares_questions = has_full_attention(model) and use_own_attention(model)
    return (CudaDecoder if device.type == "cuda" else TransformersDecoder)(model, shares_questions)


def computation(decoder: Decoder, dtype: torch.dtype) -> dict[str, Any]:
    """What decides how figures are rounded on this machine's processor: for environment.json.

    `dtype` is what both sampler and trainer compute in.
    """
    return {
        "kernels": decoder.kind,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "processor": torch.backends.cpu.get_cpu_capability(),
    }


def attention_mask(segments: Tensor) -> Tensor:
    """Who sees whom in rows of segments [R, T]: [R, 1, T, T]."""
    keys, queries = segments[:, None, :], segments[:, :, None]
    causal = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=keys.device).tril()
    return (causal & ((keys == queries) | (keys == 0)))[:, None]
