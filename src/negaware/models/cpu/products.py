"""Matrix products of bfloat16 factors whose sums stay float32, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

HAS_BFLOAT16_PRODUCTS = bool(
    torch.ops.mkldnn._is_mkldnn_bf16_supported()  # true with AVX-512 alone, where such products take four times as long
    and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
)
"""Whether this machine's processor multiplies bfloat16 faster than float32."""


def compute_dtype(name: str, device: str | torch.device = "cpu") -> torch.dtype:
    """The dtype of a config's name; `auto` is bfloat16 where the device multiplies it faster than float32."""
    if name == "auto":
        is_fast = HAS_BFLOAT16_PRODUCTS if torch.device(device).type == "cpu" else True
        name = "bfloat16" if is_fast else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


@contextmanager
def bfloat16_products(wanted: bool = True) -> Iterator[None]:
    """A block in which float32 matrix products on the CPU round their factors, not their sums, to bfloat16.

    Where that would be slower, nothing is rounded.
    """
    settings: Any = torch.backends.mkldnn  # its stubs know no .matmul
    settings = settings.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16" if wanted and HAS_BFLOAT16_PRODUCTS else before
    try:
        yield
    finally:
        settings.fp32_precision = before
