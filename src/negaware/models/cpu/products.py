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
