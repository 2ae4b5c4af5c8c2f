"""Attention in rows that hold a question and its answers side by side, on the CPU.

A segment is a question or an answer. Queries are taken in blocks, at most BLOCK tokens of each segment, and all answers
of a row together: against their question in one product, against their own segment in one product each. So no pair of
tokens of different answers is ever multiplied, and no question's keys are copied to its answers.

R rows of T tokens, N = R·T; H heads of width W, Hkv of them with keys and values, G = H / Hkv queries to each. A block
has B rows with K segments, Q queries and S keys of each, after P tokens of the question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from negaware.models.cpu.products import bfloat16_products

BLOCK = 64  # queries of a segment taken at once: more would only pad the shorter ones and leave the cache


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries of some rows' segments, and what they see. Tokens are counted through all rows, [N].

    rows: [B], whose question comes before; None if the segments are the questions themselves. tokens: [B, K, S], the
    segments' tokens, any token where a segment is shorter or missing; the queries are the last Q of them.
    query_tokens, query_places: [n], the real ones' tokens, and their places in [B·K·Q]; keys likewise, in [B·K·S].
    is_query: [B, 1, K, 1, Q, 1], 1 for a real query. bias: [B or 1, 1, 1, 1, Q, P + S] float32, −∞ where a query
    doesn't see a key. is_first: whether the queries are their segments' first.
    """

    rows: Tensor | None
    tokens: Tensor
    num_queries: int
    query_tokens: Tensor
    query_places: Tensor
    key_tokens: Tensor
    key_places: Tensor
    is_query: Tensor
    bias: Tensor
    is_first: bool


class SharedRows:
    """How attention runs in a micro-batch's rows, from their width T and each row's lengths of question and answers."""

    def __init__(self, width: int, question_lengths: Sequence[int], answer_lengths: Sequence[Sequence[int]]) -> None:
        self.num_rows = len(question_lengths)
        self.longest_question = max(question_lengths)
        questions = [[(row * width, length)] for row, length in enumerate(question_lengths)]
        answers = []
        for row, lengths in enumerate(answer_lengths):
            start = row * width + question_lengths[row]
            answers.append([(start + sum(lengths[:index]), length) for index, length in enumerate(lengths)])
        seen = torch.arange(self.longest_question) < torch.tensor(question_lengths)[:, None]
        self.blocks = [*_blocks(questions, None), *_blocks(answers, seen)]


def _blocks(segments: Sequence[Sequence[tuple[int, int]]], question_seen: Tensor | None) -> Iterator[_Block]:
    """Blocks of all segments' first BLOCK tokens, of the longer ones' next, and so on; (start, length) by row."""
    longest = max((length for row in segments for _, length in row), default=0)
    for first in range(0, longest, BLOCK):
        longer = {row: [s for s in ones if s[1] > first] for row, ones in enumerate(segments)}
        longer = {row: ones for row, ones in longer.items() if ones}
        end = min(first + BLOCK, longest)
        grid = torch.zeros(len(longer), max(map(len, longer.values())), 2, dtype=torch.long)
        for place, ones in enumerate(longer.values()):
            grid[place, : len(ones)] = torch.tensor(ones)
        starts, lengths = grid[..., :1], grid[..., 1:]
        places = torch.arange(end)
        is_key = places < lengths
        seen = (places <= places[first:, None])[None, None, None, None]
        rows = None
        if question_seen is not None:
            rows = torch.tensor(list(longer))
            before = question_seen[rows]
            before = before[:1] if bool(before.all()) else before
            before = before[:, None, None, None, None].expand(-1, 1, 1, 1, end - first, -1)
            seen = torch.cat([before, seen.expand(len(before), 1, 1, 1, -1, -1)], dim=-1)
        tokens, is_query = torch.where(is_key, starts + places, 0), is_key[..., first:]
        yield _Block(
            rows=rows,
            tokens=tokens,
            num_queries=end - first,
            query_tokens=tokens[..., first:][is_query],
            query_places=is_query.flatten().nonzero().squeeze(1),
            key_tokens=tokens[is_key],
            key_places=is_key.flatten().nonzero().squeeze(1),
            is_query=is_query[:, None, :, None, :, None].float(),
            bias=torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf),
            is_first=first == 0,
        )


def attend(states: Tensor, rows: SharedRows, num_key_heads: int, scale: float) -> Tensor:
    """Attention [N, H, W] of queries, keys and values side by side, [N, H + 2·Hkv, W]; anything finite at padding.

    Scores are float32, whatever comes in; probabilities are computed again in the backward pass rather than kept.
    """
    result: Tensor = _Attention.apply(states, rows, num_key_heads, scale)
    return result


class _Attention(torch.autograd.Function):
    """Block after block, each gathered from the rows' tokens."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, rows: SharedRows, num_key_heads: int, scale: float) -> Tensor:
        result = states.new_zeros(len(states), states.shape[1] - 2 * num_key_heads, states.shape[2])
        questions = _questions(states, rows, num_key_heads)
        with bfloat16_products(states.dtype == torch.bfloat16):
            for block in rows.blocks:
                queries, keys, values = _operands(states, questions, block, num_key_heads, scale)
                attended = values.weighted(_probabilities(queries, keys, block))
                _put(result, attended, block)
        ctx.save_for_backward(states, result)
        ctx.rows, ctx.num_key_heads, ctx.scale = rows, num_key_heads, scale
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        states, result = ctx.saved_tensors
        rows, num_key_heads, scale = ctx.rows, ctx.num_key_heads, ctx.scale
        num_heads, upstream = result.shape[1], gradients[0]
        questions = _questions(states, rows, num_key_heads)
        grad_states = torch.zeros_like(states)
        grad_pairs = torch.zeros(len(states), 2 * num_key_heads, states.shape[2], dtype=_score_dtype(states))
        grad_questions = [torch.zeros_like(part) for part in questions]
        # Σ p·∂p over a query's keys is its gradient times its output
        expected = (upstream.to(grad_pairs.dtype) * result).sum(-1, keepdim=True)
        with bfloat16_products(states.dtype == torch.bfloat16):
            for block in rows.blocks:
                queries, keys, values = _operands(states, questions, block, num_key_heads, scale)
                grad_attended, offset = (
                    _queries(part, block, num_key_heads).mul_(block.is_query) for part in (upstream, expected)
                )
                probabilities = _probabilities(queries, keys, block)
                grad_values = _pair_gradient(probabilities, grad_attended, values)
                grad_scores = values.against(grad_attended).sub_(offset).mul_(probabilities)
                grad_keys = _pair_gradient(grad_scores, queries, keys)
                _put(grad_states[:, :num_heads], keys.weighted(grad_scores).mul_(scale), block)
                pairs = torch.cat([grad_keys.segment, grad_values.segment], dim=1).permute(0, 2, 3, 1, 4).flatten(0, 2)
                pairs = _rows_at(pairs, block.key_places)
                if not block.is_first:
                    pairs += _rows_at(grad_pairs, block.key_tokens)
                grad_pairs.index_copy_(0, block.key_tokens, pairs)
                for total, part in zip(grad_questions, (grad_keys.question, grad_values.question), strict=True):
                    if part is not None:
                        total.index_add_(0, block.rows, part)
        by_row = grad_pairs.unflatten(0, (rows.num_rows, -1))[:, : rows.longest_question]
        by_row += torch.cat(grad_questions, dim=1).transpose(1, 2)
        grad_states[:, num_heads:] = grad_pairs
        return grad_states, None, None, None


@dataclass(frozen=True, slots=True)
class _Pair:
    """Keys or values of a block, float32: the questions' [B, Hkv, P, W], if any come before, and the segments'
    [B, Hkv, K, S, W]."""

    question: Tensor | None
    segment: Tensor

    def against(self, queries: Tensor) -> Tensor:
        """Each query's products with what it may see: [B, Hkv, K, G, Q, W] → [B, Hkv, K, G, Q, P + S]."""
        shape = queries.shape[2:5]
        products = (queries.flatten(3, 4) @ self.segment.mT).unflatten(3, shape[1:])
        if self.question is None:
            return products
        before = (queries.flatten(2, 4) @ self.question.mT).unflatten(2, shape)
        return torch.cat([before, products], dim=-1)

    def weighted(self, weights: Tensor) -> Tensor:
        """Their sum, weighted for each query: [B, Hkv, K, G, Q, P + S] → [B, Hkv, K, G, Q, W]."""
        shape, num_keys = weights.shape[2:5], self.segment.shape[-2]
        total = weights[..., -num_keys:].flatten(3, 4) @ self.segment
        if self.question is not None:
            total += (weights[..., :-num_keys].flatten(2, 4) @ self.question).view(total.shape)
        return total.unflatten(3, shape[1:])


def _pair_gradient(weights: Tensor, upstream: Tensor, pair: _Pair) -> _Pair:
    """The gradient of values with these weights and sums of gradient `upstream`; of keys: scores' gradient, queries."""
    num_keys = pair.segment.shape[-2]
    segment = weights[..., -num_keys:].flatten(3, 4).mT @ upstream.flatten(3, 4)
    if pair.question is None:
        return _Pair(None, segment)
    return _Pair(weights[..., :-num_keys].flatten(2, 4).contiguous().mT @ upstream.flatten(2, 4), segment)


def _probabilities(queries: Tensor, keys: _Pair, block: _Block) -> Tensor:
    return keys.against(queries).add_(block.bias).softmax(-1)


def _operands(
    states: Tensor, questions: Sequence[Tensor], block: _Block, num_key_heads: int, scale: float
) -> tuple[Tensor, _Pair, _Pair]:
    """A block's queries [B, Hkv, K, G, Q, W], scaled, its keys and its values."""
    num_heads = states.shape[1] - 2 * num_key_heads
    gathered = _rows_at(states, block.tokens).permute(0, 3, 1, 2, 4).to(_score_dtype(states))  # [B, heads, K, S, W]
    queries = gathered[:, :num_heads, :, -block.num_queries :].unflatten(1, (num_key_heads, -1)).transpose(2, 3)
    before = [None, None] if block.rows is None else [part[block.rows] for part in questions]
    pairs = zip(before, gathered[:, num_heads:].chunk(2, dim=1), strict=True)
    keys, values = (_Pair(question, part.contiguous()) for question, part in pairs)
    return queries.contiguous().mul_(scale), keys, values


def _questions(states: Tensor, rows: SharedRows, num_key_heads: int) -> list[Tensor]:
    """The questions' keys and values, [R, Hkv, P, W] each."""
    by_row = states.unflatten(0, (rows.num_rows, -1))[:, : rows.longest_question, -2 * num_key_heads :]
    return [part.transpose(1, 2).to(_score_dtype(states)).contiguous() for part in by_row.chunk(2, dim=2)]


def _queries(tokens: Tensor, block: _Block, num_key_heads: int) -> Tensor:
    """A block's queries of [N, H, …] as [B, Hkv, K, G, Q, …], in the dtype of scores."""
    queries = _rows_at(tokens, block.tokens[..., -block.num_queries :]).unflatten(3, (num_key_heads, -1))
    return queries.permute(0, 3, 1, 4, 2, 5).to(_score_dtype(tokens)).contiguous()


def _put(tokens: Tensor, values: Tensor, block: _Block) -> None:
    """Writes a block's [B, Hkv, K, G, Q, W] where its queries are in [N, H, W]."""
    by_place = values.to(tokens.dtype).permute(0, 2, 4, 1, 3, 5).flatten(3, 4).flatten(0, 2)
    tokens.index_copy_(0, block.query_tokens, _rows_at(by_place, block.query_places))


def _rows_at(tokens: Tensor, index: Tensor) -> Tensor:
    """tokens[index], [N, …] → [*index, …]: copies of whole rows, which advanced indexing doesn't know them to be."""
    return tokens.index_select(0, index.flatten()).unflatten(0, index.shape)


def _score_dtype(states: Tensor) -> torch.dtype:
    return torch.promote_types(states.dtype, torch.float32)
