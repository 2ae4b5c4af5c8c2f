"""Our attention against torch's with a dense mask: rows that share a question, and single queries."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from negaware.models import shared_rows
from negaware.models.attention import NAME, attention, use_own_attention
from negaware.models.shared_rows import SharedRows, attend
from tiny_models import MODELS

QUESTIONS, ANSWERS = [5, 7, 6], [[3, 0, 9], [4], [1, 1, 12]]
WIDTH = 22


def dense_mask() -> tuple[torch.Tensor, torch.Tensor]:
    """Who sees whom [R, 1, T, T], and which tokens are real [R, T]."""
    segments = torch.full((3, WIDTH), -1)
    for row, (question, lengths) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        segments[row, :question] = 0
        start = question
        for number, length in enumerate(lengths, start=1):
            segments[row, start : start + length] = number
            start += length
    keys, queries = segments[:, None, :], segments[:, :, None]
    causal = torch.ones(WIDTH, WIDTH, dtype=torch.bool).tril()
    return (causal & ((keys == queries) | (keys == 0)))[:, None], segments >= 0


def states(dtype: torch.dtype, num_heads: int) -> torch.Tensor:
    return torch.randn(3, WIDTH, num_heads, 16).to(dtype).transpose(1, 2).requires_grad_()


@pytest.mark.parametrize("block", [1, 4, 256], ids=["one query a block", "4 queries a block", "whole rows"])
def test_rows_that_share_a_question(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients, with padding, an answer without inputs, and three heads to a key."""
    monkeypatch.setattr(shared_rows, "BLOCK", block)
    monkeypatch.setattr(shared_rows, "DENSE_WIDTH", 256 if block == 256 else 0)
    mask, real = dense_mask()
    query, key, value = states(torch.float64, 6), states(torch.float64, 2), states(torch.float64, 2)
    found = attend(query, key, value, SharedRows(WIDTH, QUESTIONS, ANSWERS, mask), 0.3)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True)
    found, expected = found[real], expected.transpose(1, 2)[real]
    assert torch.allclose(found, expected, atol=1e-12)
    upstream = torch.randn_like(found)
    gradients = torch.autograd.grad((found * upstream).sum(), (query, key, value))
    wanted = torch.autograd.grad((expected * upstream).sum(), (query, key, value))
    for gradient, other in zip(gradients, wanted, strict=True):
        assert torch.allclose(gradient, other, atol=1e-12)


@pytest.mark.parametrize("block", [4, 256])
def test_in_bfloat16_scores_stay_float32(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_rows, "BLOCK", block)
    monkeypatch.setattr(shared_rows, "DENSE_WIDTH", 256 if block == 256 else 0)
    mask, real = dense_mask()
    inputs = [states(torch.bfloat16, heads) for heads in (6, 2, 2)]
    found = attend(
        *inputs, SharedRows(WIDTH, QUESTIONS, ANSWERS, mask), 4.0
    )  # scores up to 100: off by 0.5 in bfloat16
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = scaled_dot_product_attention(*exact, attn_mask=mask, scale=4.0, enable_gqa=True).transpose(1, 2)
    assert torch.allclose(found[real].double(), expected[real], atol=0.02)
    gradients = torch.autograd.grad(found[real].float().sum(), inputs)
    wanted = torch.autograd.grad(expected[real].sum(), exact)
    for gradient, other in zip(gradients, wanted, strict=True):
        assert gradient.dtype == torch.bfloat16
        assert (gradient - other).norm() < 0.02 * other.norm()


def test_a_single_query_a_row() -> None:
    query, key, value = torch.randn(4, 6, 1, 16), torch.randn(4, 2, 9, 16), torch.randn(4, 2, 9, 16)
    mask = torch.arange(9) >= torch.tensor([0, 3, 8, 5])[:, None, None, None]
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True).transpose(1, 2)
    module = torch.nn.Module()
    module.num_key_value_groups = 3
    assert torch.allclose(attention(module, query, key, value, mask)[0], expected, atol=1e-6)
    # keys and values in float32 beside a bfloat16 query, as the local engine keeps them
    rounded = attention(module, query.bfloat16(), key, value, mask)[0]
    assert rounded.dtype == torch.bfloat16
    assert torch.allclose(rounded.float(), expected, atol=0.02)


def test_models_with_another_kind_of_attention_keep_it() -> None:
    model = MODELS["gemma2"](0)
    before = model.config._attn_implementation
    assert not use_own_attention(model)
    assert model.config._attn_implementation == before
    llama = MODELS["llama"](0)
    assert use_own_attention(llama)
    assert use_own_attention(llama)
    assert llama.config._attn_implementation == NAME
