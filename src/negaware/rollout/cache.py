"""Decoding over rows that come and go, on the CPU: the completions of a question share its keys and values.

It knows token ids, keys and values; neither sampling nor sequences. L layers; n rows, each a completion of one of P
prompts, the longest of which has M tokens; H heads of width W, Hkv of them with keys and values, G = H / Hkv queries to
each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from negaware.models.decoder import FusedDecoder
from negaware.models.shared_rows import SharedRows

COLUMN_BLOCK = 64


@dataclass(slots=True)
class _Row:
    """A completion: its prompt's place, its prompt's length, and its own number of tokens."""

    prompt: int
    prompt_length: int
    length: int = 0


@dataclass(frozen=True, slots=True)
class _Step:
    """What is the same for all layers of a step in which every row has at most S tokens of its own.

    Each prompt has K places, for as many rows as any of them has. places: [n], the rows' among all P·K, or None if
    they fill them in order. longest_prompt: M, of those that still have rows. written: [n·Hkv], where keys and values
    go in [rows·Hkv·columns]. bias: [n, 1, 1, M + S], −∞ where a row doesn't see a key.
    """

    num_prompts: int
    num_places: int
    places: Tensor | None
    longest_prompt: int
    num_columns: int
    written: Tensor
    bias: Tensor

    def by_prompt(self, by_row: Tensor) -> Tensor:
        """[n, Hkv, G, …] → [P, Hkv, K·G, …]; zeros where no row is."""
        if self.places is not None:
            empty = by_row.new_zeros(self.num_places, *by_row.shape[1:])
            by_row = empty.index_copy_(0, self.places, by_row)
        return by_row.unflatten(0, (self.num_prompts, -1)).transpose(1, 2).flatten(2, 3)

    def by_row(self, by_prompt: Tensor, num_queries: int) -> Tensor:
        """[P, Hkv, K·G, …] → [n, Hkv, G, …]."""
        rows = by_prompt.unflatten(2, (-1, num_queries)).transpose(1, 2).flatten(0, 1)
        return rows if self.places is None else rows.index_select(0, self.places)


class RowDecoder:
    """Runs a fused decoder one token a row. Keys and values are float32, so that scores are not rounded."""

    def __init__(self, decoder: FusedDecoder) -> None:
        decoder.refresh()
        self.decoder = decoder

    def begin(self, max_rows: int, longest_prompt: int, max_new_tokens: int) -> None:
        """Makes room for `max_rows`; columns are added as answers grow."""
        self.rows: list[_Row] = []
        self.num_prompts = 0
        self.max_rows, self.longest_prompt = max_rows, longest_prompt
        self.max_columns = max_new_tokens - 1  # an answer's last token is never read
        self.prompt_states = self._buffers(0, longest_prompt)
        self.own_states = self._buffers(max_rows, min(self.max_columns, COLUMN_BLOCK))

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
            of_layer = states[:, -2 * num_key_heads :].unflatten(0, (-1, width)).transpose(1, 2)
            keys[layer], values[layer] = of_layer.chunk(2, dim=1)
            return within(layer, states)

        hidden = self.decoder(tokens.flatten(), positions.flatten(), attend).unflatten(0, (-1, width))
        self.num_prompts += len(prompts)
        self.rows += [_Row(first + index, n) for index, n in enumerate(lengths) for _ in range(num_completions)]
        return hidden[torch.arange(len(prompts)), torch.tensor(lengths) - 1]

    def decode(self, tokens: Tensor) -> Tensor:
        """Appends a token [n] to every row; the last hidden states [n, D]."""
        if max(row.length for row in self.rows) == self.own_states[0].shape[-2]:
            self._add_columns()
        step = self._step()
        positions = torch.tensor([row.prompt_length + row.length for row in self.rows])
        hidden = self.decoder(tokens, positions, lambda layer, states: self._attend(layer, states, step))
        for row in self.rows:
            row.length += 1
        return hidden

    def remove_row(self, index: int) -> None:
        """Frees a row, whose place the last one takes."""
        removed, last = self.rows[index], self.rows.pop()
        if last is not removed:
            self.rows[index] = last
            for states in self.own_states:
                states[:, index, :, : last.length] = states[:, len(self.rows), :, : last.length]
        if not any(row.prompt == removed.prompt for row in self.rows):
            self._remove_prompt(removed.prompt)

    def _remove_prompt(self, index: int) -> None:
        self.num_prompts -= 1
        for states in self.prompt_states:
            states[:, index] = states[:, self.num_prompts]
        for row in self.rows:
            if row.prompt == self.num_prompts:
                row.prompt = index

    def _step(self) -> _Step:
        counts: Counter[int] = Counter()
        order = []
        for row in self.rows:
            order.append(counts[row.prompt])
            counts[row.prompt] += 1
        per_prompt = max(counts.values())
        places = [row.prompt * per_prompt + place for row, place in zip(self.rows, order, strict=True)]
        in_order = places == list(range(self.num_prompts * per_prompt))
        lengths = torch.tensor([row.length for row in self.rows])
        prompt_lengths = torch.tensor([row.prompt_length for row in self.rows])
        num_columns, all_columns = int(lengths.max()) + 1, self.own_states[0].shape[-2]
        longest_prompt = int(prompt_lengths.max())
        before = torch.arange(longest_prompt) >= prompt_lengths[:, None]
        own = torch.arange(num_columns) > lengths[:, None]
        unseen = torch.cat([before, own], dim=1)[:, None, None]
        head = torch.arange(len(self.rows) * self.decoder.num_key_heads)
        return _Step(
            num_prompts=self.num_prompts,
            num_places=self.num_prompts * per_prompt,
            places=None if in_order else torch.tensor(places),
            longest_prompt=longest_prompt,
            num_columns=num_columns,
            written=head * all_columns + lengths.repeat_interleave(self.decoder.num_key_heads),
            bias=torch.zeros(unseen.shape).masked_fill_(unseen, -torch.inf),
        )

    def _attend(self, layer: int, states: Tensor, step: _Step) -> Tensor:
        """A layer's attention [n, H, W]; its new keys and values are kept."""
        num_rows, num_key_heads, longest_prompt = len(states), self.decoder.num_key_heads, step.longest_prompt
        wide = states.float()
        queries = (wide[:, : -2 * num_key_heads] * self.decoder.scale).unflatten(1, (num_key_heads, -1))
        own = []
        for part, added in zip(self.own_states, wide[:, -2 * num_key_heads :].chunk(2, dim=1), strict=True):
            part[layer].flatten(0, 2).index_copy_(0, step.written, added.flatten(0, 1))
            own.append(part[layer, :num_rows, :, : step.num_columns])
        keys, values = (part[layer, : self.num_prompts, :, :longest_prompt] for part in self.prompt_states)
        before = step.by_row(step.by_prompt(queries) @ keys.mT, queries.shape[2])
        scores = torch.cat([before, (own[0] @ queries.mT).mT], dim=-1)  # twice as fast as queries @ keys.mT
        probabilities = scores.add_(step.bias).softmax(-1)
        attended = probabilities[..., longest_prompt:] @ own[1]
        of_prompt = step.by_prompt(probabilities[..., :longest_prompt]) @ values
        attended += step.by_row(of_prompt, queries.shape[2])
        return attended.flatten(1, 2)

    def _make_room_for_prompts(self, number: int) -> None:
        if number > self.prompt_states[0].shape[1]:
            room = min(max(number, 2 * self.num_prompts), self.max_rows)
            self.prompt_states = self._moved(self.prompt_states, self._buffers(room, self.longest_prompt))

    def _add_columns(self) -> None:
        columns = self.own_states[0].shape[-2]
        larger = self._buffers(self.max_rows, min(columns + max(COLUMN_BLOCK, columns // 2), self.max_columns))
        self.own_states = self._moved(self.own_states, larger)

    def _buffers(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Keys and values [L, rows, Hkv, columns, W]; zeros, not garbage: a masked NaN times a weight of 0 is NaN."""
        decoder = self.decoder
        shape = (len(decoder.layers), rows, decoder.num_key_heads, columns, decoder.head_width)
        return torch.zeros(shape), torch.zeros(shape)

    @staticmethod
    def _moved(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        for source, target in zip(old, new, strict=True):
            target[:, : source.shape[1], :, : source.shape[3]] = source
        return new
