"""The local engine's key-value cache: rows that come and go, all ending at the same column.

A row's tokens are the contiguous columns up to the shared end, so a new token of every row is one column, a finished
row is overwritten by the last one, and a waiting prompt is written right-aligned into free rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

COLUMN_BLOCK = 64  # columns added when a cache is full, at the least
NO_BUFFER = torch.empty(0)  # stands until the first prompts show the heads, width and dtype


class RowLayer(DynamicLayer):
    """One attention layer's keys and values [rows, H, columns, D], written in place and handed out as views."""

    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window
        self.key_buffer: Tensor = NO_BUFFER
        self.value_buffer: Tensor = NO_BUFFER

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Writes the newest column of every row and returns all columns in use."""
        window = self.window
        rows, columns = slice(window.num_rows), slice(window.end - key_states.shape[-2], window.end)
        self.key_buffer[rows, :, columns] = key_states
        self.value_buffer[rows, :, columns] = value_states
        in_use = slice(window.start, window.end)
        return self.key_buffer[rows, :, in_use], self.value_buffer[rows, :, in_use]

    def get_seq_length(self) -> int:
        """Columns before the one being written: transformers asks while the new column is already counted."""
        return self.window.end - self.window.start - 1


class Window:
    """Which rows and columns of a `RowCache` are in use: rows [0, num_rows), columns [start, end)."""

    def __init__(self, end: int) -> None:
        self.num_rows = 0
        self.start = end
        self.end = end


class RowDecoder:
    """Runs a model's decoder one token a row, over rows of a cache that grows and shrinks with them."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype | None) -> None:
        self.decoder, self.device, self.dtype = model.get_decoder(), model.device, dtype
        self.num_layers = model.config.get_text_config(decoder=True).num_hidden_layers
        self.lengths: list[int] = []  # tokens in each row

    def begin(self, max_rows: int, longest_prompt: int, max_new_tokens: int) -> None:
        """Empties all rows; there is room for `max_rows`, and columns are added as answers grow."""
        self.lengths = []
        columns = longest_prompt + min(max_new_tokens, COLUMN_BLOCK)
        self.cache = RowCache(self.num_layers, max_rows, longest_prompt, columns, self.dtype)

    def add_rows(self, prefilled: list[tuple[Tensor, Tensor]], source_rows: Tensor, lengths: Sequence[int]) -> None:
        """Appends rows: see `RowCache.add_rows`; `lengths` are the prompts' numbers of tokens."""
        self.cache.add_rows(prefilled, source_rows)
        self.lengths += [lengths[source] for source in source_rows.tolist()]

    def decode(self, tokens: Tensor) -> Tensor:
        """Appends a token [rows] to every row; the last hidden states [rows, width]."""
        window = self.cache.window
        window.start = max(window.start, window.end - max(self.lengths))  # columns that no row uses any more
        self.cache.open_column()
        positions = torch.tensor(self.lengths, device=self.device)[:, None]
        columns = torch.arange(window.end - window.start - 1, -1, -1, device=self.device)
        hidden: Tensor = self.decoder(
            input_ids=tokens[:, None],
            attention_mask=(columns <= positions).long(),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        self.lengths = [length + 1 for length in self.lengths]
        return hidden

    def move_row(self, source: int, target: int) -> None:
        """Overwrites one row by another."""
        self.cache.move_row(source, target)
        self.lengths[target] = self.lengths[source]

    def drop_last_row(self) -> None:
        """Frees the last row."""
        self.cache.drop_last_row()
        self.lengths.pop()


class RowCache(Cache):
    """A transformers cache whose rows are added from prefilled prompts and removed one by one.

    There are `columns` of them at first. `dtype` is what keys and values are kept in, by default as they come.
    """

    def __init__(
        self, num_layers: int, max_rows: int, longest_prompt: int, columns: int, dtype: torch.dtype | None = None
    ) -> None:
        self.columns, self.dtype = columns, dtype
        self.window = Window(longest_prompt)
        self.longest_prompt = longest_prompt
        self.max_rows = max_rows
        self.row_layers = [RowLayer(self.window) for _ in range(num_layers)]
        super().__init__(layers=list(self.row_layers))

    def add_rows(self, prefilled: list[tuple[Tensor, Tensor]], source_rows: Tensor) -> None:
        """Appends rows copied from each layer's prefilled keys and values [prompts, H, width, D], left-padded.

        They end where all rows end.
        """
        window = self.window
        width = prefilled[0][0].shape[-2]
        first, last = window.num_rows, window.num_rows + len(source_rows)
        columns = slice(window.end - width, window.end)
        for layer, (keys, values) in zip(self.row_layers, prefilled, strict=True):
            if layer.key_buffer is NO_BUFFER:
                layer.key_buffer, layer.value_buffer = self._buffers(keys, self.columns)
            layer.key_buffer[first:last, :, columns] = keys[source_rows]
            layer.value_buffer[first:last, :, columns] = values[source_rows]
        window.num_rows = last
        window.start = min(window.start, columns.start)

    def open_column(self) -> None:
        """Makes room for one more token of every row."""
        window = self.window
        if window.end == self.row_layers[0].key_buffer.shape[-2]:
            width = window.end - window.start
            end = max(width, self.longest_prompt)  # any prompt still waiting must fit to the left of it
            capacity = end + max(COLUMN_BLOCK, end // 2)
            for layer in self.row_layers:
                keys, values = self._buffers(layer.value_buffer, capacity)
                layer.key_buffer = _moved(layer.key_buffer, keys, window, end)
                layer.value_buffer = _moved(layer.value_buffer, values, window, end)
            window.start, window.end = end - width, end
        window.end += 1

    def _buffers(self, states: Tensor, columns: int) -> tuple[Tensor, Tensor]:
        """Keys and values of all rows; zeros, not garbage: a masked NaN times a weight of 0 is still NaN."""
        shape = (self.max_rows, states.shape[1], columns, states.shape[-1])
        dtype = self.dtype or states.dtype
        return states.new_zeros(shape, dtype=dtype), states.new_zeros(shape, dtype=dtype)

    def move_row(self, source: int, target: int) -> None:
        """Overwrites one row by another."""
        in_use = slice(self.window.start, self.window.end)
        for layer in self.row_layers:
            layer.key_buffer[target, :, in_use] = layer.key_buffer[source, :, in_use]
            layer.value_buffer[target, :, in_use] = layer.value_buffer[source, :, in_use]

    def drop_last_row(self) -> None:
        """Frees the last row."""
        self.window.num_rows -= 1


def _moved(buffer: Tensor, larger: Tensor, window: Window, end: int) -> Tensor:
    """`larger` with the columns in use of `buffer` ending at `end`."""
    rows, width = window.num_rows, window.end - window.start
    larger[:rows, :, end - width : end] = buffer[:rows, :, window.start : window.end]
    return larger
