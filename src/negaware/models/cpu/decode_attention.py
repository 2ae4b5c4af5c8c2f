"""Attention of a decode step: every completion's newest token to the keys and values of its prompt and its answer.

L layers; n rows, each a completion of one of P prompts, the longest of which has M tokens; H heads of width W, Hkv of
them with keys and values, G = H / Hkv queries to each; S = H + 2·Hkv. Keys and values: the prompts'
[L, at least P, Hkv, at least M, W], the answers' in blocks [L, at least n, Hkv, columns, W], of which the first
holds the first tokens of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from negaware.models.cpu.kernels import Buffers, CompiledKernels

if TYPE_CHECKING:
    from negaware.models.cpu.decoder import Attend, FusedDecoder


@dataclass(slots=True)
class SampledRow:
    """A completion: its prompt's place, its prompt's length, and the answer's number of tokens."""

    prompt: int
    prompt_length: int
    length: int = 0


def dtype_of_states(decoder: FusedDecoder) -> torch.dtype:
    """The dtype of keys and values. torch's products would round scores to the dtype of their factors."""
    return decoder.dtype if isinstance(decoder.kernels, CompiledKernels) else torch.float32


def decode_attention(
    decoder: FusedDecoder, rows: Sequence[SampledRow], prompt_states: Buffers, answer_states: Sequence[Buffers]
) -> Attend:
    """The attention of one step. It adds the newest tokens' keys and values to `answer_states`."""
    kernels = decoder.kernels
    if not isinstance(kernels, CompiledKernels):
        return _Products(decoder, rows, prompt_states, answer_states).attend
    layout = [[row.prompt for row in rows], [row.prompt_length for row in rows], [row.length for row in rows]]
    row_table = torch.tensor(layout, dtype=torch.int32)
    return lambda layer, states: kernels.attend(states, decoder.scale, row_table, prompt_states, answer_states, layer)


class _Products:
    """As a few batched matrix products, which read each prompt's keys and values once for all its rows.

    Each prompt has K places, for as many rows as any of them has. places: [n], the rows' among all P·K, or None if
    they fill them in order. written: for each block, which rows write to it, and where. bias: [n, 1, 1, M + S],
    −∞ where a row doesn't see a key.
    """

    def __init__(
        self,
        decoder: FusedDecoder,
        rows: Sequence[SampledRow],
        prompt_states: Buffers,
        answer_states: Sequence[Buffers],
    ) -> None:
        self.decoder, self.prompt_states, self.answer_states = decoder, prompt_states, answer_states
        counts: Counter[int] = Counter()
        order = []
        for row in rows:
            order.append(counts[row.prompt])
            counts[row.prompt] += 1
        per_prompt = max(counts.values())
        self.num_prompts, self.num_places = len(counts), len(counts) * per_prompt
        places = [row.prompt * per_prompt + place for row, place in zip(rows, order, strict=True)]
        self.places = None if places == list(range(self.num_places)) else torch.tensor(places)
        lengths = torch.tensor([row.length for row in rows])
        prompt_lengths = torch.tensor([row.prompt_length for row in rows])
        num_columns, self.longest_prompt = int(lengths.max()) + 1, int(prompt_lengths.max())
        width = answer_states[0][0].shape[3]
        self.widths = [min(width, num_columns - first) for first in range(0, num_columns, width)]
        writers = [(lengths // width == block).nonzero()[:, 0] for block in range(len(self.widths))]
        self.written = [(block_rows, lengths[block_rows] % width) for block_rows in writers]
        unseen_before = torch.arange(self.longest_prompt) >= prompt_lengths[:, None]
        unseen_in_answer = torch.arange(num_columns) > lengths[:, None]
        unseen = torch.cat([unseen_before, unseen_in_answer], dim=1)[:, None, None]
        self.bias = torch.zeros(unseen.shape).masked_fill_(unseen, -torch.inf)

    def attend(self, layer: int, states: Tensor) -> Tensor:
        """A layer's attention [n, H, W]."""
        num_rows, num_key_heads, longest_prompt = len(states), self.decoder.num_key_heads, self.longest_prompt
        wide = states.float()
        queries = (wide[:, : -2 * num_key_heads] * self.decoder.scale).unflatten(1, (num_key_heads, -1))
        added = wide[:, -2 * num_key_heads :].chunk(2, dim=1)
        filled = []
        for block, width, (writers, columns) in zip(self.answer_states, self.widths, self.written, strict=False):
            for part, part_states in zip(block, added, strict=True):
                part[layer][writers, :, columns] = part_states[writers]
            filled.append([part[layer, :num_rows, :, :width] for part in block])
        keys, values = (part[layer, : self.num_prompts, :, :longest_prompt] for part in self.prompt_states)
        before = self._by_row(self._by_prompt(queries) @ keys.mT, queries.shape[2])
        by_block = [
            (answer_keys @ queries.mT).mT for answer_keys, _ in filled
        ]  # twice as fast as queries @ answer_keys.mT
        scores = torch.cat([before, *by_block], dim=-1).add_(self.bias)
        prompt_probabilities, *answer_probabilities = scores.softmax(-1).split([longest_prompt, *self.widths], dim=-1)
        attended = self._by_row(self._by_prompt(prompt_probabilities) @ values, queries.shape[2])
        for probabilities, (_, answer_values) in zip(answer_probabilities, filled, strict=True):
            attended = attended + probabilities @ answer_values
        return attended.flatten(1, 2).to(states.dtype)

    def _by_prompt(self, by_row: Tensor) -> Tensor:
        """[n, Hkv, G, …] → [P, Hkv, K·G, …]; zeros where no row is."""
        if self.places is not None:
            empty = by_row.new_zeros(self.num_places, *by_row.shape[1:])
            by_row = empty.index_copy_(0, self.places, by_row)
        return by_row.unflatten(0, (self.num_prompts, -1)).transpose(1, 2).flatten(2, 3)

    def _by_row(self, by_prompt: Tensor, num_queries: int) -> Tensor:
        """[P, Hkv, K·G, …] → [n, Hkv, G, …]."""
        rows = by_prompt.unflatten(2, (-1, num_queries)).transpose(1, 2).flatten(0, 1)
        return rows if self.places is None else rows.index_select(0, self.places)
