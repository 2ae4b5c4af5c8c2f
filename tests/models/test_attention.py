"""Our attention against torch's with a dense mask: rows that share a question."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from negaware.models.attention import NAME, use_own_attention
from negaware.models.cpu import shared_rows
from negaware.models.cpu.shared_rows import SharedRows, attend
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


def states(dtype: torch.dtype, num_heads: int = 10) -> torch.Tensor:
    """Six heads' queries beside two heads' keys and values."""
    return torch.randn(3 * WIDTH, num_heads, 16).to(dtype).requires_grad_()


def densely(states: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    by_row = states.unflatten(0, (3, WIDTH)).transpose(1, 2)
    attended = scaled_dot_product_attention(*by_row.split([6, 2, 2], 1), attn_mask=mask, scale=scale, enable_gqa=True)
    return attended.transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("block", [1, 4, 256], ids=["one query a block", "4 queries a block", "whole rows"])
def test_rows_that_share_a_question(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients, with padding, an answer without inputs, and three heads to a key."""
    monkeypatch.setattr(shared_rows, "BLOCK", block)
    mask, real = dense_mask()
    real, inputs = real.flatten(), states(torch.float64)
    found = attend(inputs, SharedRows(WIDTH, QUESTIONS, ANSWERS), 2, 0.3)[real]
    expected = densely(inputs, mask, 0.3)[real]
    assert torch.allclose(found, expected, atol=1e-12)
    upstream = torch.randn_like(found)
    (gradient,) = torch.autograd.grad((found * upstream).sum(), inputs)
    (wanted,) = torch.autograd.grad((expected * upstream).sum(), inputs)
    assert torch.allclose(gradient, wanted, atol=1e-12)


@pytest.mark.parametrize("block", [4, 256])
def test_in_bfloat16_scores_stay_float32(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_rows, "BLOCK", block)
    mask, real = dense_mask()
    real, inputs = real.flatten(), states(torch.bfloat16)
    upstream = torch.randn(3 * WIDTH, 6, 16).to(torch.bfloat16) * real[:, None, None]
    # scores up to 100: off by 0.5 in bfloat16
    found = attend(inputs, SharedRows(WIDTH, QUESTIONS, ANSWERS), 2, 4.0)
    (gradient,) = torch.autograd.grad((found[real] * upstream[real]).sum(), inputs)
    assert gradient.dtype == torch.bfloat16

    def computed(rounded: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Values and gradient in float64 by the formulas, `rounded` wherever a result may be bfloat16."""
        by_row = inputs.detach().double().unflatten(0, (3, WIDTH)).transpose(1, 2)
        queries, keys, values = by_row.split([6, 2, 2], 1)
        keys, values = (one.repeat_interleave(3, 1) for one in (keys, values))
        above = upstream.double().unflatten(0, (3, WIDTH)).transpose(1, 2)
        exact = (4.0 * queries @ keys.mT).masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num()
        weights, of_weights = rounded(exact), rounded(above @ values.mT)
        of_scores = rounded(4.0 * exact * (of_weights - (exact * of_weights).sum(-1, True)))
        of_keys, of_values = (one.unflatten(1, (2, 3)).sum(2) for one in (of_scores.mT @ queries, weights.mT @ above))
        gradients = torch.cat([of_scores @ keys, of_keys, of_values], 1)
        return tuple(rounded(one).transpose(1, 2).flatten(0, 1)[real] for one in (weights @ values, gradients))

    def off(result: torch.Tensor) -> torch.Tensor:
        """By a unit of its own size, up or down by chance: see rounding.py."""
        return result * (1 + torch.finfo(torch.bfloat16).eps / 2 * torch.randn(result.shape).sign())

    exact, again = computed(lambda result: result), [computed(off) for _ in range(4)]
    for index, result in enumerate((found[real], gradient[real])):
        errors = [float((one[index] - exact[index]).norm()) for one in again]
        allowed = 3 * math.sqrt(sum(error**2 for error in errors) / 4)
        assert float((result.detach().double() - exact[index]).norm()) < allowed < 0.05 * exact[index].norm()


def test_models_with_another_kind_of_attention_keep_it() -> None:
    model = MODELS["gemma2"](0)
    before = model.config._attn_implementation
    assert not use_own_attention(model)
    assert model.config._attn_implementation == before
    llama = MODELS["llama"](0)
    assert use_own_attention(llama)
    assert use_own_attention(llama)
    assert llama.config._attn_implementation == NAME
