"""What training compiles on CUDA: attention of rows that share a question, and pure functions of a part of the logits.

On other devices the same functions run as they are, so that only `torch.compile` itself is left to a GPU's tests. It
knows tensors, neither models nor answers. R rows of T tokens, H heads of width D, Hkv of them with keys and values.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def compiled_on_cuda(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function of tensors, compiled at the first call whose first argument is on CUDA; as it is elsewhere.

    Sizes that turn out to vary (the last part's number of columns) become dynamic by themselves.
    """

    @wraps(function)
    def call(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        first = arguments[0]
        assert isinstance(first, Tensor)
        return (_compiled(function) if first.is_cuda else function)(*arguments, **options)

    return call


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


def block_mask(segments: Tensor) -> BlockMask:
    """Who sees whom in rows that share a question, for segments [R, T]: 0 the question, 1 … its answers, −1 padding.

    Each token sees the question and its own segment, back to front. Made once a micro-batch, for all layers.
    """

    def sees(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        key_segment = segments[row, key]
        return (query >= key) & ((key_segment == segments[row, query]) | (key_segment == 0))

    num_rows, width = segments.shape
    return create_block_mask(sees, num_rows, None, width, width, device=segments.device)


def flex_rows(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float) -> Tensor:
    """Attention [R, T, H, D] of query [R, H, T, D] to key and value [R, Hkv, T, D], under a mask of `block_mask`.

    Compiled, it skips the blocks of tokens that nobody sees and never holds the T² scores.
    """
    attend: Any = _compiled_flex_attention() if query.is_cuda else flex_attention
    attended: Tensor = attend(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)
    return attended.transpose(1, 2)


@cache
def _compiled_flex_attention() -> Callable[..., Any]:
    # Every micro-batch has its own R and T: compiled for each, the compiler's limit of eight would soon be reached.
    return torch.compile(flex_attention, dynamic=True)
