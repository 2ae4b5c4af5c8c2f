"""How a model is run, to train and to sample: one protocol, and transformers' own code behind it.

Whoever has a decoder doesn't know which it has. What is made fast lives in `cpu` and `cuda`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from negaware.models.attention import plain_rows, use_own_attention
from negaware.models.cpu.shared_rows import SharedRows
from negaware.models.cuda.compiled import block_mask
from negaware.models.cuda.graphs import GraphDecoder
from negaware.models.description import describe
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


class SamplingRows(Protocol):
    """Rows of a batch that is sampled, which come and go; n of them, one token a step."""

    def begin(self, max_rows: int, longest_prompt: int, max_new_tokens: int, max_tokens: int | None = None) -> None:
        """Empties all rows and makes room for `max_rows` of prompts and answers up to these lengths, and together at
        most `max_tokens` long."""
        ...

    def make_room(self, max_rows: int, longest_prompt: int) -> None:
        """Makes room for more rows, or longer prompts, beside what is there."""
        ...

    def add_prompts(self, prompts: Sequence[Sequence[int]], num_completions: int) -> Tensor:
        """Prefills prompts, once each, and appends their completions' rows; each prompt's last hidden state [p, D]."""
        ...

    def add_begun(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> None:
        """Appends a row for each answer that has begun, with the keys and values of its prompt and its tokens."""
        ...

    def decode(self, tokens: Tensor) -> Tensor:
        """Appends a token [n] to every row; the last hidden states [n, D], valid until the next call."""
        ...

    def remove_row(self, index: int) -> None:
        """Frees a row, whose place the last one takes."""
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

    def make_rows(self) -> SamplingRows:
        """What decodes a batch that is sampled."""
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

    def make_rows(self) -> SamplingRows:
        """See `Decoder`."""
        return GraphDecoder(self.model)

    def refresh(self) -> None:
        """See `Decoder`. It makes nothing from the parameters."""

    def recompute_activations(self) -> None:
        """See `Decoder`."""
        recompute_activations(self.model)


class CudaDecoder(TransformersDecoder):
    """The same on CUDA: FlexAttention for rows of several answers, and one batch at a time that is sampled."""

    def __init__(self, model: PreTrainedModel, shares_questions: bool) -> None:
        super().__init__(model, shares_questions)
        self.rows = GraphDecoder(model)
        """Its graphs are kept from batch to batch."""

    def make_rows(self) -> SamplingRows:
        """See `Decoder`."""
        return self.rows

    def shared_inputs(self, rows: Rows) -> dict[str, Any]:
        """See `TransformersDecoder`."""
        return {"attention_mask": block_mask(rows.segments)}


def transformers_decoder_of(model: PreTrainedModel, device: torch.device) -> TransformersDecoder:
    """transformers' own decoder for rows on a device; the model gets a float32 residual stream, and the attention of
    shared rows, if it can have them."""
    keep_residual_float32(model)
    shares_questions = describe(model).sees_all and use_own_attention(model)
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
