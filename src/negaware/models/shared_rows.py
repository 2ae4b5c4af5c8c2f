"""Attention in rows that hold a question and its answers side by side, on the CPU.

Short rows are one dense product each, masked. In longer ones queries are taken in blocks, so that a row of T tokens
does not cost T² pairs: of several segments at once (a segment is a question or an answer), at most BLOCK tokens of
each. Their keys are the question and their own segment up to the block's end.

R rows of T tokens; a block has B segments with Q queries and S own keys each, after P of the question; H heads of width
D, Hkv of them with keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from negaware.models.products import bfloat16_products

BLOCK = 256  # queries of a segment taken at once
DENSE_WIDTH = 256  # rows up to here are one product: gathering their segments would cost more than their pairs

_Segment = tuple[int, int, int]  # length, first token counted through all rows [R·T], row


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries of several segments and what they see. Tokens are counted through all rows, [R·T].

    rows: [B], whose question comes before; None if the segments are the questions themselves. own: [B, S], the
    segments' tokens, any token beyond a shorter one's end; the queries are the last Q of them. query_token,
    query_place: [n], a real query's token and its place in [B·Q]; key_token, key_place: the same of keys, in [B·S].
    bias: [B, 1, Q, P + S] float32, −∞ where a query doesn't see a key.
    """

    rows: Tensor | None
    own: Tensor
    num_queries: int
    query_token: Tensor
    query_place: Tensor
    key_token: Tensor
    key_place: Tensor
    bias: Tensor


class SharedRows:
    """How attention runs in a micro-batch's rows.

    From their width T, each row's lengths of question and answers, and who sees whom, [R, 1, T, T] bool.
    """

    def __init__(
        self, width: int, question_lengths: Sequence[int], answer_lengths: Sequence[Sequence[int]], mask: Tensor
    ) -> None:
        device = mask.device
        self.bias: Tensor | None = None
        if width <= DENSE_WIDTH:
            self.bias = torch.zeros(mask.shape, device=device).masked_fill_(~mask, -torch.inf)
            return
        self.longest_question = max(question_lengths)
        questions: list[_Segment] = []
        answers: list[_Segment] = []
        for row, (question, lengths) in enumerate(zip(question_lengths, answer_lengths, strict=True)):
            start = row * width
            questions.append((question, start, row))
            start += question
            for length in lengths:
                answers.append((length, start, row))
                start += length
        seen = torch.arange(self.longest_question) < torch.tensor(question_lengths)[:, None]
        self.blocks = [*_blocks(questions, None, device), *_blocks(answers, seen, device)]


def _blocks(segments: list[_Segment], question_seen: Tensor | None, device: torch.device | str) -> Iterator[_Block]:
    """Blocks of all segments' first BLOCK tokens, of the longer ones' next, and so on."""
    segments = sorted(segments, reverse=True)
    for first in range(0, segments[0][0], BLOCK):
        longer = [segment for segment in segments if segment[0] > first]
        end = min(first + BLOCK, longer[0][0])
        lengths = torch.tensor([length for length, _, _ in longer])[:, None]
        starts = torch.tensor([start for _, start, _ in longer])[:, None]
        rows = torch.tensor([row for _, _, row in longer])
        places = torch.arange(end)
        is_key = places < lengths
        own = torch.where(is_key, starts + places, 0)
        is_query = is_key[:, first:]
        seen = (places <= places[first:, None]).expand(len(longer), -1, -1)
        if question_seen is not None:
            prefix = question_seen[rows][:, None, :].expand(-1, end - first, -1)
            seen = torch.cat([prefix, seen], dim=-1)
        bias = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[:, None]
        yield _Block(
            None if question_seen is None else rows.to(device),
            own.to(device),
            end - first,
            own[:, first:][is_query].to(device),
            is_query.flatten().nonzero().squeeze(1).to(device),
            own[is_key].to(device),
            is_key.flatten().nonzero().squeeze(1).to(device),
            bias.to(device),
        )


def attend(query: Tensor, key: Tensor, value: Tensor, rows: SharedRows, scale: float) -> Tensor:
    """Attention [R, T, H, D] of query [R, H, T, D] to key and value [R, Hkv, T, D]; anything finite at padding.

    Scores are float32, whatever comes in; probabilities are computed again in the backward pass rather than kept.
    """
    how = _BlockAttention if rows.bias is None else _DenseAttention
    result: Tensor = how.apply(query, key, value, rows, scale)
    return result


def _score_dtype(states: Tensor) -> torch.dtype:
    return torch.promote_types(states.dtype, torch.float32)


def _probabilities(queries: Tensor, keys: Tensor, bias: Tensor, scale: float) -> Tensor:
    """[B, Hkv, G·Q, D] and [B, Hkv, S, D] → [B, Hkv, G·Q, S]; bias [B, 1, Q, S]; G = H/Hkv heads share keys."""
    scores = (queries @ keys.mT).mul_(scale).unflatten(2, (-1, bias.shape[2]))
    return scores.add_(bias[:, :, None]).flatten(2, 3).softmax(-1)


def _gradients(
    upstream: Tensor, expected: Tensor, states: Sequence[Tensor], bias: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of the states: queries, keys, values. `expected` is Σ p·∂p over a query's keys: gradient times output."""
    queries, keys, values = states
    probabilities = _probabilities(queries, keys, bias, scale)
    of_scores = (upstream @ values.mT).sub_(expected).mul_(probabilities).mul_(scale)
    return of_scores @ keys, of_scores.mT @ queries, probabilities.mT @ upstream


class _DenseAttention(torch.autograd.Function):
    """Every query of a row against every key of it."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, rows: SharedRows, scale: float) -> Tensor:
        assert rows.bias is not None
        queries, keys, values = (_by_key_head(states, key.shape[1]) for states in (query, key, value))
        with bfloat16_products(query.dtype == torch.bfloat16):
            attended = _probabilities(queries, keys, rows.bias, scale) @ values
        result = attended.to(query.dtype).view(query.shape)
        ctx.save_for_backward(query, key, value, result)
        ctx.rows, ctx.scale = rows, scale
        return result.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, result = ctx.saved_tensors
        upstream = gradients[0].transpose(1, 2)
        expected = (upstream.to(_score_dtype(query)) * result).sum(-1, keepdim=True)
        upstream, expected = (_by_key_head(part, key.shape[1]) for part in (upstream, expected))
        states = [_by_key_head(part, key.shape[1]) for part in (query, key, value)]
        with bfloat16_products(query.dtype == torch.bfloat16):
            found = _gradients(upstream, expected, states, ctx.rows.bias, ctx.scale)
        of_states = (part.to(query.dtype).view(s.shape) for part, s in zip(found, (query, key, value), strict=True))
        return *of_states, None, None


def _by_key_head(states: Tensor, num_key_heads: int) -> Tensor:
    """[R, H, T, D] as [R, Hkv, G·T, D], in the dtype of scores."""
    return states.to(_score_dtype(states)).reshape(len(states), num_key_heads, -1, states.shape[-1])


class _BlockAttention(torch.autograd.Function):
    """Block after block, each gathered from the rows' tokens."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, rows: SharedRows, scale: float) -> Tensor:
        queries, keys, values = (_tokens(states) for states in (query, key, value))
        result = torch.zeros_like(queries)
        with bfloat16_products(query.dtype == torch.bfloat16):
            for block in rows.blocks:
                visible = [_visible(states, block, rows, len(query)) for states in (keys, values)]
                probabilities = _probabilities(_folded(queries, block, key.shape[1]), visible[0], block.bias, scale)
                attended = _unfolded(probabilities @ visible[1], block.num_queries)
                result[block.query_token] = attended[block.query_place]
        result = result.to(query.dtype)
        ctx.save_for_backward(query, key, value, result)
        ctx.rows, ctx.scale = rows, scale
        return result.view(query.transpose(1, 2).shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, result = ctx.saved_tensors
        rows, scale, num_rows, num_key_heads = ctx.rows, ctx.scale, len(query), key.shape[1]
        queries, keys, values = (_tokens(states) for states in (query, key, value))
        gradient = gradients[0].flatten(0, 1).to(queries.dtype)
        expected = (gradient * result).sum(-1, keepdim=True)
        of_queries, of_keys, of_values = (torch.zeros_like(states) for states in (queries, keys, values))
        with bfloat16_products(query.dtype == torch.bfloat16):
            for block in rows.blocks:
                upstream, offset = (_folded(part, block, num_key_heads, real=True) for part in (gradient, expected))
                states = [_folded(queries, block, num_key_heads)]
                states += (_visible(part, block, rows, num_rows) for part in (keys, values))
                found = _gradients(upstream, offset, states, block.bias, scale)
                of_queries[block.query_token] = _unfolded(found[0], block.num_queries)[block.query_place]
                _add_visible(of_keys, found[1], block, rows, num_rows)
                _add_visible(of_values, found[2], block, rows, num_rows)
        shape = (num_rows, query.shape[2])
        of_states = (s.to(query.dtype).unflatten(0, shape).transpose(1, 2) for s in (of_queries, of_keys, of_values))
        return *of_states, None, None


def _tokens(states: Tensor) -> Tensor:
    """[R, H, T, D] as [R·T, H, D], in the dtype of scores."""
    return states.transpose(1, 2).flatten(0, 1).to(_score_dtype(states))


def _folded(tokens: Tensor, block: _Block, num_key_heads: int, real: bool = False) -> Tensor:
    """A block's queries of [R·T, H, D], the heads of a key beside each other: [B, Hkv, H/Hkv·Q, D].

    `real`: zeros where there is no query; otherwise any.
    """
    if real:
        places = tokens.new_zeros(block.own.shape[0] * block.num_queries, *tokens.shape[1:])
        places[block.query_place] = tokens[block.query_token]
        queries = places.unflatten(0, (-1, block.num_queries))
    else:
        queries = tokens[block.own[:, -block.num_queries :]]
    return queries.unflatten(2, (num_key_heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def _unfolded(folded: Tensor, num_queries: int) -> Tensor:
    """[B, Hkv, H/Hkv·Q, D] as [B·Q, H, D]."""
    return folded.unflatten(2, (-1, num_queries)).permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1)


def _visible(tokens: Tensor, block: _Block, rows: SharedRows, num_rows: int) -> Tensor:
    """A block's keys or values, of the question and their own, [B, Hkv, P + S, D]."""
    own = tokens[block.own]
    if block.rows is not None:
        questions = tokens.unflatten(0, (num_rows, -1))[:, : rows.longest_question]
        own = torch.cat([questions[block.rows], own], dim=1)
    return own.transpose(1, 2)


def _add_visible(tokens: Tensor, of_visible: Tensor, block: _Block, rows: SharedRows, num_rows: int) -> None:
    """Adds the gradient of `_visible` to that of its tokens."""
    of_visible = of_visible.transpose(1, 2)
    if block.rows is not None:
        questions = tokens.unflatten(0, (num_rows, -1))[:, : rows.longest_question]
        questions.index_add_(0, block.rows, of_visible[:, : rows.longest_question])
        of_visible = of_visible[:, rows.longest_question :]
    tokens[block.key_token] += of_visible.flatten(0, 1)[block.key_place]
