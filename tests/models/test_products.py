"""What a machine multiplies fast decides what `auto` computes in, and whether products are rounded."""

import importlib

import pytest
import torch

from negaware.models import load
from negaware.models.cpu import products


@pytest.mark.parametrize(
    ("library", "avx512_bf16", "amx", "is_fast"),
    [(True, False, False, False), (True, True, False, True), (True, False, True, True), (False, True, True, False)],
    ids=["AVX-512 without bfloat16", "avx512_bf16", "AMX", "held to an older processor's instructions"],
)
def test_auto_is_bfloat16_where_the_device_multiplies_it_faster(library, avx512_bf16, amx, is_fast, monkeypatch):
    try:
        with monkeypatch.context() as patch:
            patch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: library)
            patch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
            patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
            importlib.reload(products)
        assert products.HAS_BFLOAT16_PRODUCTS is is_fast
        monkeypatch.setattr(load, "HAS_BFLOAT16_PRODUCTS", is_fast)
        assert load.compute_dtype("auto") == (torch.bfloat16 if is_fast else torch.float32)
        assert load.compute_dtype("auto", "cuda") == torch.bfloat16
        assert load.compute_dtype("bfloat16") == torch.bfloat16
        assert load.compute_dtype("float32", "cuda") == torch.float32
    finally:
        importlib.reload(products)


@pytest.mark.parametrize("is_fast", [True, False])
def test_factors_are_rounded_only_where_that_is_faster(is_fast, monkeypatch):
    monkeypatch.setattr(products, "HAS_BFLOAT16_PRODUCTS", is_fast)
    before = torch.backends.mkldnn.matmul.fp32_precision
    for wanted in (True, False):
        with products.bfloat16_products(wanted):
            assert torch.backends.mkldnn.matmul.fp32_precision == ("bf16" if wanted and is_fast else before)
        assert torch.backends.mkldnn.matmul.fp32_precision == before
