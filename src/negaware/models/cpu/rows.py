"""Decoding over rows that come and go, on the CPU: the completions of a question share its keys and values.

It knows token ids, keys and values; neither sampling nor sequences. L layers; heads of width W,
Hkv of them with keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from negaware.models.cpu.decode_attention import SampledRow, decode_attention, dtype_of_states
from negaware.models.cpu.kernels import Buffers
from negaware.models.cpu.shared_rows import SharedRows

if TYPE_CHECKING:
    from negaware.models.cpu.decoder import FusedDecoder

COLUMN_BLOCK = 64


class RowDecoder:
    """Runs a fused decoder one token a row."""

    def __init__(self, decoder: FusedDecoder) -> None:
        decoder.refresh()
        self.decoder = decoder

    def begin(self, max_rows: int, longest_prompt: int, max_new_tokens: int, max_tokens: int | None = None) -> None:
        """Makes room for `max_rows`; blocks of columns are added as answers grow, whatever `max_tokens`."""
        self.rows: list[SampledRow] = []
        self.num_prompts = 0
        self.max_rows, self.longest_prompt = max_rows, longest_prompt
        # An answer's last token is never read.
        self.width = max(1, min(max_new_tokens - 1, COLUMN_BLOCK))
        self.prompt_states = self._buffers(0, longest_prompt)
        self.answer_states: list[Buffers] = []

    def make_room(self, max_rows: int, longest_prompt: int) -> None:
        """Makes room for more rows, or longer prompts, beside what is there."""
        self.max_rows, self.longest_prompt = max_rows, longest_prompt
        self.prompt_states = self._moved(
            self.prompt_states, self._buffers(self.prompt_states[0].shape[1], longest_prompt)
        )
        self.answer_states = [self._moved(block, self._buffers(max_rows, self.width)) for block in self.answer_states]

    def add_prompts(self, prompts: Sequence[Sequence[int]], num_completions: int) -> Tensor:
        """Prefills prompts, once each, and appends their completions' rows; each prompt's last hidden state [p, D]."""
        lengths = [len(prompt) for prompt in prompts]
        width, first = max(lengths), self.num_prompts
        tokens = torch.tensor([list(p) + [0] * (width - len(p)) for p in prompts])
        positions = torch.arange(width).expand(len(prompts), -1)
        self._make_room_for_prompts(first + len(prompts))
        keys, values = (part[:, first : first + len(prompts), :, :width] for part in self.prompt_states)
        within = self.decoder.attention_within(SharedRows(width, lengths, [()] * len(prompts)))
        num_key_heads = self.decoder.num_key_heads

        def attend(layer: int, states: Tensor) -> Tensor:
            layer_states = states[:, -2 * num_key_heads :].unflatten(0, (-1, width)).transpose(1, 2)
            keys[layer], values[layer] = layer_states.chunk(2, dim=1)
            return within(layer, states)

        hidden = self.decoder(tokens.flatten(), positions.flatten(), attend).unflatten(0, (-1, width))
        self.num_prompts += len(prompts)
        self.rows += [SampledRow(first + index, n) for index, n in enumerate(lengths) for _ in range(num_completions)]
        return hidden[torch.arange(len(prompts)), torch.tensor(lengths) - 1]

    def add_begun(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> None:
        """Appends a row for each answer that has begun, with the keys and values of its prompt and its tokens."""
        lengths, start, place = [len(answer) for answer in answers], len(prompt), len(self.rows)
        tokens = torch.tensor([*prompt, *chain.from_iterable(answers)])
        positions = torch.cat([torch.arange(start), *(torch.arange(start, start + length) for length in lengths)])
        self._make_room_for_prompts(self.num_prompts + 1)
        self._make_room_for_tokens(max(lengths))
        within = self.decoder.attention_within(SharedRows(len(tokens), [start], [lengths]))

        def attend(layer: int, states: Tensor) -> Tensor:
            keys_and_values = states[:, -2 * self.decoder.num_key_heads :].transpose(0, 1).chunk(2)
            for part, layer_states in enumerate(keys_and_values):
                prompt_part, *answer_parts = layer_states.split([start, *lengths], dim=1)
                self.prompt_states[part][layer, self.num_prompts, :, :start] = prompt_part
                for row, answer_part in enumerate(answer_parts, place):
                    for block, columns in zip(self.answer_states, answer_part.split(self.width, dim=1), strict=False):
                        block[part][layer, row, :, : columns.shape[1]] = columns
            return within(layer, states)

        self.decoder(tokens, positions, attend)
        self.rows += [SampledRow(self.num_prompts, start, length) for length in lengths]
        self.num_prompts += 1

    def decode(self, tokens: Tensor) -> Tensor:
        """Appends a token [n] to every row; the last hidden states [n, D]."""
        self._make_room_for_tokens(max(row.length for row in self.rows) + 1)
        attend = decode_attention(self.decoder, self.rows, self.prompt_states, self.answer_states)
        positions = torch.tensor([row.prompt_length + row.length for row in self.rows])
        hidden = self.decoder(tokens, positions, attend)
        for row in self.rows:
            row.length += 1
        return hidden

    def remove_row(self, index: int) -> None:
        """Frees a row, whose place the last one takes."""
        removed, last = self.rows[index], self.rows.pop()
        if last is not removed:
            self.rows[index] = last
            for block in self.answer_states[: -(-last.length // self.width)]:
                for states in block:
                    states[:, index] = states[:, len(self.rows)]
        if not any(row.prompt == removed.prompt for row in self.rows):
            self._remove_prompt(removed.prompt)

    def _remove_prompt(self, index: int) -> None:
        self.num_prompts -= 1
        for states in self.prompt_states:
            states[:, index] = states[:, self.num_prompts]
        for row in self.rows:
            if row.prompt == self.num_prompts:
                row.prompt = index

    def _make_room_for_tokens(self, number: int) -> None:
        while number > self.width * len(self.answer_states):
            self.answer_states.append(self._buffers(self.max_rows, self.width))

    def _make_room_for_prompts(self, number: int) -> None:
        if number > self.prompt_states[0].shape[1]:
            room = min(max(number, 2 * self.num_prompts), self.max_rows)
            self.prompt_states = self._moved(self.prompt_states, self._buffers(room, self.longest_prompt))

    def _buffers(self, rows: int, columns: int) -> Buffers:
        """Keys and values [L, rows, Hkv, columns, W]; zeros: torch multiplies what is masked, a NaN too, by 0."""
        decoder = self.decoder
        shape = (len(decoder.layers), rows, decoder.num_key_heads, columns, decoder.head_width)
        dtype = dtype_of_states(decoder)
        return torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)

    @staticmethod
    def _moved(old: Buffers, new: Buffers) -> Buffers:
        for source, target in zip(old, new, strict=True):
            target[:, : source.shape[1], :, : source.shape[3]] = source
        return new
