"""The compiled kernels against their torch twins, and what happens where nothing compiles."""

import math
import shutil
from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from negaware.models import kernels
from negaware.models.kernels import CompiledKernels, TorchKernels, kernels_for

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
DTYPES = [torch.float32, torch.bfloat16]


def compiled(dtype: torch.dtype, width: int = 8, queries: int = 3) -> CompiledKernels:
    found = kernels_for(dtype, width, queries)
    assert isinstance(found, CompiledKernels)
    return found


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Up to the last digit: sums and exponentials may round the other way."""
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=2e-6 if found.dtype == torch.float32 else 2**-8, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 5])
def test_add_normed(dtype: torch.dtype, tokens: int) -> None:
    stream, added, weight = torch.randn(tokens, 37) * 100, torch.randn(tokens, 37).to(dtype), torch.randn(37).to(dtype)
    for addition in (None, added):
        expected_stream, found_stream = stream.clone(), stream.clone()
        expected = TorchKernels.add_normed(expected_stream, addition, weight, 1e-5)
        assert_close(compiled(dtype).add_normed(found_stream, addition, weight, 1e-5), expected)
        assert torch.equal(found_stream, expected_stream)
    assert not torch.equal(found_stream, stream)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gated(dtype: torch.dtype) -> None:
    """Also where the exponential leaves its range."""
    gate = torch.cat([torch.linspace(-200, 200, 401), torch.linspace(-3, 3, 601), torch.tensor([1e30, -1e30, 0.0])])
    gates = torch.cat([gate.expand(3, -1), torch.randn(3, len(gate))], dim=1).to(dtype)
    found = compiled(dtype).gated(gates)
    assert_close(found, TorchKernels.gated(gates))
    assert found.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotate(dtype: torch.dtype) -> None:
    states, angles = torch.randn(5, 7, 8).to(dtype), torch.randn(5, 1, 8)
    cosines, sines = angles.cos()[..., :4], angles.sin()[..., :4]  # a part of a larger tensor, as a model gives them
    for sine in (sines, -sines):  # laid out as the cosines are, and densely, as a backward pass has it
        expected = TorchKernels.rotate(states, cosines, sine, 6)
        assert_close(compiled(dtype).rotate(states, cosines, sine, 6), expected)
        assert torch.equal(expected[:, 6], states[:, 6])


def test_positions_of_a_part_of_each_head_are_refused() -> None:
    with pytest.raises(RuntimeError, match="part of each head"):
        compiled(torch.float32).rotate(torch.randn(5, 7, 8), torch.ones(5, 1, 2), torch.ones(5, 1, 2), 6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("columns", [4, 64])
def test_attend(dtype: torch.dtype, queries: int, columns: int) -> None:
    """Answers of 0 to 12 tokens over blocks of four, prompts that share and that don't; no stale column is seen."""
    layers, key_heads, width, longest = 2, 2, 8, 9
    lengths, prompts, prompt_lengths = [0, 3, 4, 7, 12], [0, 0, 1, 2, 2], [9, 1, 4]
    stale = torch.full((layers, 8, key_heads, columns, width), 1e4, dtype=dtype)
    blocks = [(stale.clone(), stale.clone()) for _ in range(13 // columns + 1)]
    of_prompts = tuple(torch.randn(layers, 3, key_heads, longest, width).to(dtype) for _ in range(2))
    own = [torch.randn(2, length + 1, key_heads, width).to(dtype) for length in lengths]
    for row, states in enumerate(own):
        for index in range(len(states[0]) - 1):
            for part in (0, 1):
                blocks[index // columns][part][1, row, :, index % columns] = states[part, index]
    asked = torch.randn(5, queries * key_heads, width).to(dtype)
    newest = torch.stack([states[:, -1] for states in own])  # [5, 2, key_heads, width]
    states = torch.cat([asked, newest.flatten(1, 2)], dim=1)
    rows = torch.tensor([prompts, [prompt_lengths[p] for p in prompts], lengths], dtype=torch.int32)

    found = compiled(dtype, width, queries).attend(states, 0.3, rows, (of_prompts[0], of_prompts[1]), blocks, 1)
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        before = [part[1, prompt, :, : prompt_lengths[prompt]].float() for part in of_prompts]
        keys, values = (torch.cat([b, o.float().transpose(0, 1)], dim=1) for b, o in zip(before, own[row], strict=True))
        query = asked[row].float().unflatten(0, (key_heads, queries))
        expected = ((query @ keys.mT * 0.3).softmax(-1) @ values).flatten(0, 1).to(dtype)
        assert_close(found[row], expected)
        for part in (0, 1):
            block = blocks[length // columns][part]
            assert torch.equal(block[1, row, :, length % columns], own[row][part, -1])
    assert all((part[0] == 1e4).all() for block in blocks for part in block)


def test_rounding_is_to_the_nearest_even() -> None:
    """A gate so large that silu is the identity: what remains is the product's own rounding."""
    values = torch.randn(4096) * torch.logspace(-30, 30, 4096)
    up = values.bfloat16()
    gates = torch.cat([torch.full_like(up, 100.0), up])[None]
    assert torch.equal(compiled(torch.bfloat16).gated(gates)[0], (up.float() * 100).bfloat16())


def test_not_a_number_stays_none() -> None:
    """A model that has diverged must not look well."""
    stream = torch.tensor([[1.0, math.nan, 2.0], [1.0, 2.0, 3.0]])
    for dtype in DTYPES:
        normed = compiled(dtype).add_normed(stream.clone(), None, torch.ones(3).to(dtype), 1e-5)
        assert normed[0].isnan().all()
        assert normed[1].isfinite().all()


def test_subnormal_numbers_survive_its_loading() -> None:
    """Some compilers' fast arithmetic flushes them in the whole process."""
    compiled(torch.float32)
    assert torch.tensor(1e-40).mul(1.0).item() > 0


def test_the_exponential_is_exact_to_the_last_digits() -> None:
    """Seen through a softmax over two keys: e^x / (1 + e^x)."""
    for x, y in pairwise(torch.linspace(-80, 0, 50).tolist()):
        states = torch.tensor([[[1.0], [x], [0.0]], [[1.0], [y], [0.0]]])
        prompts = (torch.zeros(1, 1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1))
        own = (torch.zeros(1, 2, 1, 1, 1), torch.zeros(1, 2, 1, 1, 1))
        rows = torch.tensor([[0, 0], [1, 1], [0, 0]], dtype=torch.int32)
        found = compiled(torch.float32, 1, 1).attend(states, 1.0, rows, prompts, [own], 0)
        expected = functional.sigmoid(-torch.tensor([x, y]))
        assert torch.allclose(found.flatten(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("command", ["no-such-compiler", "false", "true"])
def test_without_a_compiler_torch_does_it(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", command)
    assert kernels._compiled(["-DWIDTH=8", "-DQUERIES=1"]) is None
