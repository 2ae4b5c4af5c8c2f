"""The least time that a step's matrix products take here: operations counted from its lengths, at rates measured now.

Counted: every linear layer of the model for every token it has to see (a question once, an answer's tokens once, the
head only where a token is predicted), forward when sampling, forward and both backward products when training.
Not counted: attention's own products (1-2 % here), norms, softmax, the optimizer, anything done twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from negaware.types import Group

Values = dict[int, Tensor]
Way = Callable[[Tensor, Values], Tensor]

DECODE_ROWS = (1, 8, 16, 32, 64, 96, 128)
"""Batch sizes that are measured for decoding; between them time is interpolated."""
TRAIN_ROWS = (1024, 2048)
"""Rows at which training's products are measured; the fastest rate counts."""
HEAD_ROWS = (256, 512, 1024)
TRAIN_SHARE = 5
"""Training's products are measured on every such part of the layers: they wait for arithmetic, not for memory."""
PASSES = 2


class ProductTimes:
    """Seconds of the model's products, over its own weights in their order, so that they come from memory as they do
    in the model. The fastest of torch's ways to write a product counts, and of several passes the fastest."""

    def __init__(self, model: nn.Module) -> None:
        head = model.get_output_embeddings()
        self.head = head.weight.detach().to(torch.bfloat16)
        self.layers = [
            module.weight.detach().to(torch.bfloat16)
            for module in model.modules()
            if isinstance(module, nn.Linear) and module is not head
        ]
        self.layer_operations = _operations(self.layers)
        self.head_operations = _operations([self.head])
        self.forward_seconds: dict[int, float] = {}
        self.head_seconds: dict[int, float] = {}
        self.train_rate = self.head_train_rate = 0.0
        self.best_way: dict[tuple[str, int, int], int] = {}

    @torch.inference_mode()
    def measure(self) -> None:
        """Measures all of them now."""
        for rows in DECODE_ROWS:
            self.forward_seconds[rows] = self._forward(self.layers, rows)
            self.head_seconds[rows] = self._forward([self.head], rows)
        part = self.layers[: max(1, len(self.layers) // TRAIN_SHARE)]
        self.train_rate = max(self._training_rate(part, rows) for rows in TRAIN_ROWS)
        self.head_train_rate = max(self._training_rate([self.head], rows) for rows in HEAD_ROWS)

    def _forward(self, weights: Sequence[Tensor], rows: int) -> float:
        return self._fastest("forward", weights, rows, (_linear, _transposed))

    def _training_rate(self, weights: Sequence[Tensor], rows: int) -> float:
        """Operations a second of forward and both backward products."""
        seconds = self._forward(weights, rows)
        seconds += self._fastest("input gradient", weights, rows, (_of_input,))
        seconds += self._fastest("weight gradient", weights, rows, (_of_weight, _of_weight_transposed))
        return 3 * _operations(weights) * rows / seconds

    def _fastest(self, product: str, weights: Sequence[Tensor], rows: int, ways: Sequence[Way]) -> float:
        """Seconds of the fastest way; which one that is, is found out once."""
        values = {width: torch.randn(rows, width, dtype=weights[0].dtype) for width in _widths(weights)}
        key = product, len(weights), rows
        if key not in self.best_way:
            seconds = [_passes(way, weights, values) for way in ways]
            self.best_way[key] = seconds.index(min(seconds))
        return _passes(ways[self.best_way[key]], weights, values)

    def decode(self, rows: int) -> float:
        """Seconds of one decode step's products for so many rows."""
        return _interpolate(self.forward_seconds, rows) + _interpolate(self.head_seconds, rows)

    def prefill(self, tokens: int, questions: int) -> float:
        """Seconds of the prompts' products: the layers for every token, the head for the last of each question."""
        rate = self.layer_operations * DECODE_ROWS[-1] / self.forward_seconds[DECODE_ROWS[-1]]
        return tokens * self.layer_operations / max(rate, self.train_rate) + _interpolate(self.head_seconds, questions)

    def train(self, tokens: int, predicted: int) -> float:
        """Seconds of training's products: the layers for every token, the head for every predicted one."""
        layers = 3 * self.layer_operations * tokens / self.train_rate
        return layers + 3 * self.head_operations * predicted / self.head_train_rate


def limit_seconds(products: ProductTimes, groups: Sequence[Group]) -> dict[str, Any]:
    """The limits of sampling, training and both for these groups, with the operations counted and the rates found."""
    lengths = [completion.num_tokens for group in groups for completion in group.completions]
    prompts = [len(group.prompt_ids) for group in groups]
    alive = decode_rows(lengths)
    sampling = products.prefill(sum(prompts), len(prompts)) + sum(products.decode(rows) for rows in alive)
    tokens = sum(prompts) + sum(length - 1 for length in lengths)
    training = products.train(tokens, sum(lengths))
    sampling_operations = products.layer_operations * (sum(prompts) + sum(alive)) + products.head_operations * (
        len(prompts) + sum(alive)
    )
    training_operations = 3 * (products.layer_operations * tokens + products.head_operations * sum(lengths))
    return {
        "seconds": sampling + training,
        "sampling_seconds": sampling,
        "training_seconds": training,
        "sampling_gflop": sampling_operations / 1e9,
        "training_gflop": training_operations / 1e9,
        "decode_gflops_at_128": _rate(products, 128),
        "decode_gflops_at_32": _rate(products, 32),
        "training_gflops": products.train_rate / 1e9,
        "head_training_gflops": products.head_train_rate / 1e9,
    }


def decode_rows(lengths: Sequence[int]) -> list[int]:
    """Rows of each decode step: an answer of n tokens takes n − 1 (the prompt's pass gives its first)."""
    return [sum(length > step for length in lengths) for step in range(1, max(lengths, default=0))]


def _rate(products: ProductTimes, rows: int) -> float:
    return rows * (products.layer_operations + products.head_operations) / products.decode(rows) / 1e9


def _interpolate(seconds: dict[int, float], rows: int) -> float:
    """Linear between the measured numbers of rows; beyond the largest, at its rate."""
    known = sorted(seconds)
    if rows >= known[-1]:
        return seconds[known[-1]] * rows / known[-1]
    upper = next(index for index, value in enumerate(known) if value >= rows)
    if known[upper] == rows or upper == 0:
        return seconds[known[upper]]
    low, high = known[upper - 1], known[upper]
    return seconds[low] + (seconds[high] - seconds[low]) * (rows - low) / (high - low)


def _operations(weights: Sequence[Tensor]) -> float:
    """Operations of the weights' products for one row."""
    return 2.0 * sum(weight.numel() for weight in weights)


def _widths(weights: Sequence[Tensor]) -> set[int]:
    return {width for weight in weights for width in weight.shape}


def _linear(weight: Tensor, values: Values) -> Tensor:
    return nn.functional.linear(values[weight.shape[1]], weight)


def _transposed(weight: Tensor, values: Values) -> Tensor:
    return torch.mm(weight, values[weight.shape[1]].T)


def _of_input(weight: Tensor, values: Values) -> Tensor:
    return torch.mm(values[weight.shape[0]], weight)


def _of_weight(weight: Tensor, values: Values) -> Tensor:
    return torch.mm(values[weight.shape[0]].T, values[weight.shape[1]])


def _of_weight_transposed(weight: Tensor, values: Values) -> Tensor:
    return torch.mm(values[weight.shape[1]].T, values[weight.shape[0]])


def _passes(way: Way, weights: Sequence[Tensor], values: Values) -> float:
    """The fastest of several passes over all weights."""
    seconds = []
    for _ in range(PASSES):
        start = time.perf_counter()
        for weight in weights:
            way(weight, values)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
