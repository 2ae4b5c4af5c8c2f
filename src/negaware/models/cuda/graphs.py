"""A decode step of fixed shapes over rows that come and go: on CUDA captured once a shape and replayed.

Elsewhere the very same step runs as it is, so all but `CudaRecorder` is tested on the CPU. It knows token ids, keys and
values; neither sampling nor sequences. H heads with keys and values, D their width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from negaware.models.description import describe

ROW_BLOCK = 8  # a matrix product of fewer rows costs as much
COLUMN_BLOCK = 64
NUM_WARM_UPS = 2  # kernels are loaded, plans and workspaces made before a capture, which allows none of that

Step = Callable[[], Tensor]


def bucket(number: int, block: int) -> int:
    """The number rounded up to whole blocks, or to an eighth of its octave's end: less than a quarter more."""
    quantum = max(block, 1 << max((number - 1).bit_length() - 3, 0))
    return -(-number // quantum) * quantum


class CudaRecorder:
    """Turns steps into CUDA graphs. They share their memory: a result lasts until another one is replayed.

    Everything here needs a GPU, and nothing else of sampling does.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        """The step, captured: it must read and write tensors that stay where they are, and never ask for a value."""
        outside = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(outside)
        with torch.cuda.stream(self.stream):
            for _ in range(NUM_WARM_UPS):
                step()
        outside.wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            result = step()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


def recorder_on(device: torch.device) -> Callable[[Step], Step]:
    """What makes a step repeatable: a CUDA graph, or on other devices the step itself."""
    return CudaRecorder(device) if device.type == "cuda" else lambda step: step


class StepLayer(DynamicLayer):
    """One attention layer's keys and values [rows, H, columns, D]: views of the decoder's buffers, written in place."""

    def __init__(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        super().__init__()
        self.key_buffer, self.value_buffer, self.positions = keys, values, positions
        self.rows = torch.arange(len(keys), device=keys.device)

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Writes each row's new token at that row's own position and returns all columns."""
        self.key_buffer[self.rows, :, self.positions] = key_states[:, :, 0]
        self.value_buffer[self.rows, :, self.positions] = value_states[:, :, 0]
        return self.key_buffer, self.value_buffer


class GraphDecoder:
    """Runs a model's decoder one token a row, over buffers whose addresses stay; the token at position p is column p.

    It lives as long as its engine: graphs are kept from one `begin` to the next. They read the model's own weights, so
    weights are updated in place (`copy_`); `begin` notices those that have moved and forgets its graphs.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.decoder = model.get_decoder()
        # transformers renames it, one family after another, and will drop the old name.
        named = inspect.signature(self.decoder.forward).parameters
        self.cache_name = "cache" if "cache" in named else "past_key_values"
        self.config, self.windows = model.config.get_text_config(decoder=True), describe(model).windows
        self.lengths: list[int] = []  # tokens in each row
        self.num_rows = self.num_columns = 0  # of the buffers
        self.weights: list[int] = []
        self.grows = model.device.type != "cuda"

    @torch.inference_mode()
    def begin(self, max_rows: int, longest_prompt: int, max_new_tokens: int, max_tokens: int | None = None) -> None:
        """Empties all rows and makes room for `max_rows` of prompts and answers up to these lengths, and together at
        most `max_tokens` long.

        On CUDA columns are not added as answers grow: graphs would lose their buffers, and a lack of memory shows at
        once. Elsewhere they are.
        """
        weights = [tensor.data_ptr() for tensor in chain(self.decoder.parameters(), self.decoder.buffers())]
        self.lengths = []
        self.max_new_tokens, self.max_tokens = max_new_tokens, max_tokens
        max_columns = self._columns_for(longest_prompt)
        if weights != self.weights or max_rows > self.num_rows or max_columns > self.num_columns:
            self.weights = weights
            self.num_rows = bucket(max(max_rows, self.num_rows), ROW_BLOCK)
            self.num_columns = bucket(max(max_columns, self.num_columns), COLUMN_BLOCK)
            device = next(self.decoder.parameters()).device
            self.tokens = torch.zeros(self.num_rows, dtype=torch.long, device=device)
            self.positions = torch.zeros_like(self.tokens)
            self.steps: dict[tuple[int, int], Step] = {}
            self.record = recorder_on(device)
            self.shapes: list[tuple[int, int]] = []
            self.stacks: dict[tuple[int, int], Tensor] = {}
        for stack in self.stacks.values():
            stack.zero_()  # a masked NaN of an earlier call times a weight of 0 would still be NaN

    @torch.inference_mode()
    def make_room(self, max_rows: int, longest_prompt: int) -> None:
        """Makes room for more rows, or longer prompts, beside what is there. Graphs are captured anew."""
        num_columns = max(self.num_columns, bucket(self._columns_for(longest_prompt), COLUMN_BLOCK))
        self._resize(max(self.num_rows, bucket(max_rows, ROW_BLOCK)), num_columns)

    def _columns_for(self, longest_prompt: int) -> int:
        """Columns to begin with; an answer's last token is never read."""
        block = COLUMN_BLOCK if self.grows else self.max_new_tokens
        columns = longest_prompt + min(self.max_new_tokens - 1, block)
        return columns if self.max_tokens is None else min(columns, self.max_tokens)

    @torch.inference_mode()
    def add_begun(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> None:
        """Appends a row for each answer that has begun, with the keys and values of its prompt and its tokens."""
        self.add_prompts([[*prompt, *answer] for answer in answers], 1)

    @torch.inference_mode()
    def add_prompts(self, prompts: Sequence[Sequence[int]], num_completions: int) -> Tensor:
        """Prefills prompts, once each, and appends their completions' rows; each prompt's last hidden state [p, D]."""
        width, device = max(len(prompt) for prompt in prompts), self.tokens.device
        tokens = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        prefilled = DynamicCache()
        hidden: Tensor = self.decoder(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=True,
            **{self.cache_name: prefilled},
        ).last_hidden_state[:, -1]
        source_rows = torch.arange(len(prompts), device=device).repeat_interleave(num_completions)
        layers: list[Any] = (
            prefilled.layers
        )  # transformers' union of layer kinds; the engine refused those without keys
        states = [(layer.keys, layer.values) for layer in layers]
        self._add_rows(states, source_rows, [len(prompt) for prompt in prompts])
        return hidden

    def _add_rows(self, prefilled: list[tuple[Tensor, Tensor]], source_rows: Tensor, lengths: Sequence[int]) -> None:
        """Appends rows copied from each layer's prefilled keys and values [prompts, H, width, D], left-padded.

        `source_rows`: the prompt of each new row; `lengths`: the tokens of each prompt.
        """
        states = list(chain.from_iterable(prefilled))
        sources = source_rows.tolist()
        first, last, width = len(self.lengths), len(self.lengths) + len(sources), states[0].shape[-2]
        assert last <= self.num_rows
        if width > self.num_columns:  # answers that have begun
            self._resize(self.num_rows, bucket(width, COLUMN_BLOCK))
        if not self.stacks:
            self._allocate(states)
        padding = torch.tensor([width - lengths[source] for source in sources], device=source_rows.device)
        # What is read beyond a row's tokens is any of its columns: hidden until a token is written there.
        columns = (torch.arange(width, device=source_rows.device) + padding[:, None]).clamp(max=width - 1)
        for buffer, own in zip(self._buffers(), states, strict=True):
            buffer[first:last, :, :width] = own[source_rows[:, None], :, columns].transpose(1, 2)
        self.lengths += [lengths[source] for source in sources]

    @torch.inference_mode()
    def decode(self, tokens: Tensor) -> Tensor:
        """Appends a token [rows] to every row; the last hidden states [rows, width], valid until the next call."""
        num_rows = len(self.lengths)
        shape = bucket(num_rows, ROW_BLOCK), bucket(max(self.lengths) + 1, COLUMN_BLOCK)
        if shape[1] > self.num_columns:
            self._resize(self.num_rows, shape[1])
        # Rows not in use write to their column 0, whatever is there.
        self.positions[: shape[0]] = torch.tensor(self.lengths + [0] * (shape[0] - num_rows))
        self.tokens[:num_rows] = tokens
        if shape not in self.steps:
            self.steps[shape] = self.record(self._step(*shape))
        hidden = self.steps[shape]()
        self.lengths = [length + 1 for length in self.lengths]
        return hidden[:num_rows]

    @torch.inference_mode()
    def remove_row(self, index: int) -> None:
        """Frees a row, whose place the last one takes."""
        length = self.lengths.pop()
        if index < len(self.lengths):
            for stack in self.stacks.values():
                stack[:, index, :, :length] = stack[:, len(self.lengths), :, :length]
            self.lengths[index] = length

    def _resize(self, num_rows: int, num_columns: int) -> None:
        """Longer buffers, with what they hold; the steps read the old ones and are forgotten."""
        rows, columns = num_rows - self.num_rows, num_columns - self.num_columns
        if not rows and not columns:
            return
        padding = (0, 0, 0, columns, 0, 0, 0, rows)
        self.stacks = {kind: functional.pad(stack, padding) for kind, stack in self.stacks.items()}
        self.tokens, self.positions = (functional.pad(each, (0, rows)) for each in (self.tokens, self.positions))
        self.num_rows, self.num_columns, self.steps = num_rows, num_columns, {}

    def _allocate(self, states: list[Tensor]) -> None:
        """One stack of buffers for all layers of the same H and D, so that a row moves in one copy."""
        self.shapes = [(own.shape[1], own.shape[3]) for own in states]
        for heads, width in set(self.shapes):
            count = self.shapes.count((heads, width))
            size = (count, self.num_rows, heads, self.num_columns, width)
            self.stacks[heads, width] = states[0].new_zeros(size)

    def _buffers(self) -> list[Tensor]:
        """Every layer's keys, then its values, [rows, H, columns, D]."""
        parts = {shape: iter(stack) for shape, stack in self.stacks.items()}
        return [next(parts[shape]) for shape in self.shapes]

    def _step(self, num_rows: int, num_columns: int) -> Step:
        """A step that depends on nothing but the contents of the buffers, cut to the first rows and columns."""
        tokens, positions = self.tokens[:num_rows, None], self.positions[:num_rows]
        cut = [buffer[:num_rows, :, :num_columns] for buffer in self._buffers()]
        layers = [StepLayer(keys, values, positions) for keys, values in zip(cut[::2], cut[1::2], strict=True)]
        cache = Cache(layers=list(layers))
        columns = torch.arange(num_columns, device=tokens.device)
        windows = self.windows
        additive = cut[0].dtype if self.config._attn_implementation == "eager" else None

        def step() -> Tensor:
            hidden: Tensor = self.decoder(
                input_ids=tokens,
                attention_mask=attention_masks(windows, columns, positions, additive),
                position_ids=positions[:, None],
                use_cache=True,
                **{self.cache_name: cache},
            ).last_hidden_state[:, -1]
            return hidden

        return step


def attention_masks(
    windows: Mapping[str, int | None], columns: Tensor, positions: Tensor, additive: torch.dtype | None
) -> Tensor | dict[str, Tensor]:
    """Masks [rows, 1, 1, columns] of queries at positions [rows]: one, or one by kind of layer, as the model takes it.

    True where a query sees; for eager attention, which adds its mask, 0 there and the least of a dtype elsewhere.
    """
    masks = {}
    for kind, window in windows.items():
        seen = columns <= positions[:, None]
        if window is not None:
            seen &= columns > positions[:, None] - window
        if additive is not None:
            seen = torch.zeros_like(seen, dtype=additive).masked_fill_(~seen, torch.finfo(additive).min)
        masks[kind] = seen[:, None, None, :]
    return masks if len(masks) > 1 else masks[kind]
