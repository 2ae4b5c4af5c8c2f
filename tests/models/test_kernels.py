"""The kernels, compiled and torch's, against float64; and what happens where nothing compiles.

Each bound counts the operations on the longest way from an input to the result: see rounding.py.
"""

import math
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from negaware.models.cpu.kernels import CompiledKernels, Kernels, TorchKernels, kernels_for
from rounding import EXPONENTIAL, UNIT, assert_within, gamma

DTYPES = [torch.float32, torch.bfloat16]
LAST_EXPONENTIAL = math.exp(-87)
"""Below it a sigmoid may be anything: kernels.c's exponential ends there."""


def compiled(dtype: torch.dtype, width: int = 8, queries: int = 3) -> CompiledKernels:
    found = kernels_for(dtype, width, queries)
    if not isinstance(found, CompiledKernels):
        pytest.skip("needs a C compiler with OpenMP")
    return found


def both(dtype: torch.dtype) -> tuple[Kernels, Kernels]:
    return compiled(dtype), TorchKernels()


def unit_of(dtype: torch.dtype) -> float:
    """What rounding to the compute dtype between two operations adds; in float32 it is one operation."""
    return torch.finfo(dtype).eps / 2


def exact_scale(stream: torch.Tensor) -> torch.Tensor:
    """What an RMS norm multiplies by, float64; float32 gets it up to γ(width/2 + 6): the root halves a sum's error."""
    return torch.rsqrt(stream.double().square().mean(-1, keepdim=True) + 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 5])
def test_add_normed(dtype: torch.dtype, tokens: int) -> None:
    stream, added, weight = torch.randn(tokens, 37) * 100, torch.randn(tokens, 37).to(dtype), torch.randn(37).to(dtype)
    for addition in (None, added):
        total = stream if addition is None else stream + addition.float()  # one addition: the same everywhere
        exact = total.double() * exact_scale(total) * weight.double()
        for kernels in both(dtype):
            found_stream = stream.clone()
            found = kernels.add_normed(found_stream, addition, weight, 1e-5)
            assert found.dtype == dtype
            assert_within(found, exact, gamma(37 / 2 + 6 + 2) * exact.abs())
            assert torch.equal(found_stream, total)
    assert not torch.equal(found_stream, stream)


def sigmoid_and_error(kernels: Kernels, gate: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact, and what 1 / (1 + e^−x) errs by at most: an error of e^−x counts 1 − σ times.

    Where no operation multiplies and adds at once, torch rounds x, the multiple of ln 2 and their difference.
    """
    of_torch = 3 * UNIT * (gate.abs().clamp(max=88) + 2)
    exponential = EXPONENTIAL if isinstance(kernels, CompiledKernels) else of_torch
    sigmoid = gate.sigmoid()
    return sigmoid, sigmoid * ((1 - sigmoid) * exponential + gamma(2)) + LAST_EXPONENTIAL


def gates_and_all_ranges(dtype: torch.dtype, *beyond: float) -> torch.Tensor:
    """Three tokens' gate and up side by side, also where the exponential leaves its range."""
    gate = torch.cat([torch.linspace(-200, 200, 401), torch.linspace(-3, 3, 601), torch.tensor(beyond)])
    return torch.cat([gate.expand(3, -1), torch.randn(3, len(gate))], dim=1).to(dtype)


@pytest.fixture(params=["", "-march=x86-64-v2"], ids=["this processor", "without fused operations"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the kernels are compiled for."""
    monkeypatch.setenv("CC", f"{os.environ.get('CC') or 'cc'} {request.param}")
    kernels_for.cache_clear()
    yield
    kernels_for.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES)
def test_gated(dtype: torch.dtype, processor: None) -> None:
    gates = gates_and_all_ranges(dtype, 1e30, -1e30, 0.0)
    gate, up = gates.double().chunk(2, dim=-1)
    for kernels in both(dtype):
        sigmoid, error = sigmoid_and_error(kernels, gate)
        silu, error = gate * sigmoid, gate.abs() * (error + 2 * (UNIT + unit_of(dtype)) * sigmoid)
        found = kernels.gated(gates.clone())
        assert found.dtype == dtype
        assert found.isfinite().all()
        assert_within(found, silu * up, error * up.abs() * (1 + UNIT))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_norm_gradients(dtype: torch.dtype, threads: int, two_threads: None) -> None:
    """Against autograd's in float64; an odd number of tokens for two threads."""
    torch.set_num_threads(threads)
    stream, weight, upstream = torch.randn(7, 37) * 10, torch.randn(37).to(dtype), torch.randn(7, 37).to(dtype)
    leaves = stream.double().requires_grad_(), weight.double().requires_grad_()
    normed = leaves[0] * torch.rsqrt(leaves[0].square().mean(-1, keepdim=True) + 1e-5) * leaves[1]
    wanted = torch.autograd.grad(normed, leaves, upstream.double())
    scale, x, up = exact_scale(stream), stream.double().abs(), upstream.double().abs()
    weighted = up * weight.double().abs()
    along = (weighted * x).sum(-1, keepdim=True) * scale**2 / 37  # the sum of 37 products, and three scales
    stream_error = gamma(37 + 3 * (37 / 2 + 6) + 8) * scale * (weighted + x * along)
    weight_error = gamma(7 + 37 / 2 + 6 + 3) * (up * x * scale).sum(0)
    for kernels in both(dtype):
        stream_gradient, weight_gradient = kernels.norm_gradients(upstream.clone(), stream, weight, 1e-5)
        assert (stream_gradient.dtype, weight_gradient.dtype) == (torch.float32, dtype)
        assert_within(stream_gradient, wanted[0], stream_error)
        assert_within(weight_gradient, wanted[1], weight_error)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_gradients(dtype: torch.dtype) -> None:
    gates = gates_and_all_ranges(dtype)
    gate, up = gates.double().chunk(2, dim=-1)
    upstream = torch.randn(gate.shape).to(dtype)
    of_gated = upstream.double()
    between = gamma(2) + 2 * unit_of(dtype)  # of the product that is rounded before the next one
    for kernels in both(dtype):
        sigmoid, error = sigmoid_and_error(kernels, gate)
        slope = sigmoid * (1 + gate * (1 - sigmoid))
        slope_error = error * (1 + gate.abs() * (1 - sigmoid)) + sigmoid * gate.abs() * (error + UNIT)
        slope_error += gamma(4) * sigmoid * (1 + gate.abs() * (1 - sigmoid))
        silu_error = gate.abs() * (error + between * sigmoid)
        of_gate, of_up = kernels.gated_gradients(upstream.clone(), gates).chunk(2, dim=-1)
        assert of_gate.dtype == of_up.dtype == dtype
        assert_within(of_up, of_gated * gate * sigmoid, of_gated.abs() * silu_error)
        assert_within(of_gate, of_gated * up * slope, (of_gated * up).abs() * (slope_error + between * slope.abs()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotate(dtype: torch.dtype) -> None:
    states, angles = torch.randn(5, 7, 8).to(dtype), torch.randn(5, 1, 8)
    cosines, sines = angles.cos()[..., :4], angles.sin()[..., :4]  # a part of a larger tensor, as a model gives them
    first, second = states[:, :6].double().chunk(2, dim=-1)
    for sine in (sines, -sines):  # laid out as the cosines are, and densely, as a backward pass has it
        turns = [(first * cosines, -second * sine), (second * cosines, first * sine)]
        exact = torch.cat([a + b for a, b in turns], dim=-1)
        for kernels in both(dtype):
            found = kernels.rotate(states, cosines, sine, 6)
            assert found.dtype == dtype
            assert_within(found[:, :6], exact, gamma(2) * torch.cat([a.abs() + b.abs() for a, b in turns], dim=-1))
            assert torch.equal(found[:, 6], states[:, 6])


def test_positions_of_a_part_of_each_head_are_refused() -> None:
    with pytest.raises(RuntimeError, match="part of each head"):
        compiled(torch.float32).rotate(torch.randn(5, 7, 8), torch.ones(5, 1, 2), torch.ones(5, 1, 2), 6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("columns", [4, 64])
@pytest.mark.parametrize("width", [8, 64])
def test_attend(dtype: torch.dtype, queries: int, columns: int, width: int) -> None:
    """Answers of 0 to 12 tokens over blocks of four, prompts that share and that don't; no stale column is seen."""
    layers, key_heads, longest = 2, 2, 9
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
        before = [part[1, prompt, :, : prompt_lengths[prompt]].double() for part in of_prompts]
        keys, values = (
            torch.cat([b, o.double().transpose(0, 1)], dim=1) for b, o in zip(before, own[row], strict=True)
        )
        exact, error = attention_and_error(asked[row].double().unflatten(0, (key_heads, queries)), keys, values, 0.3)
        assert found.dtype == dtype
        assert_within(found[row], exact.flatten(0, 1), error.flatten(0, 1))
        for part in (0, 1):
            block = blocks[length // columns][part]
            assert torch.equal(block[1, row, :, length % columns], own[row][part, -1])
    assert all((part[0] == 1e4).all() for block in blocks for part in block)


def attention_and_error(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact, and what float32 errs by at most; all float64.

    A score, of `width` products scaled, and its distance from the highest err by δ; a weight by e^δ, by its sum's
    greatest δ, and by the exponential's error twice; what it weighs is a sum again.
    """
    width, count = keys.shape[-1], keys.shape[-2]
    scores = queries @ keys.mT * scale
    delta = gamma(width + 2) * (queries.abs() @ keys.abs().mT * scale) + UNIT * (scores.amax(-1, True) - scores)
    weight_error = (delta + delta.amax(-1, True)).expm1() + 2 * EXPONENTIAL + gamma(2 * count + 2)
    weights = scores.softmax(-1)
    return weights @ values, (weights * weight_error) @ values.abs()


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
        gated = compiled(dtype).gated(torch.tensor([[1.0, math.nan, 1.0, 1.0], [math.nan, 1.0, 1.0, 1.0]]).to(dtype))
        assert gated.isnan().tolist() == [[False, True], [True, False]]
        states = torch.ones(2, 3, 8).to(dtype)
        states[0, 0] = math.nan  # the first row's query alone
        attended = attend_to_one_key(dtype, states)
        assert attended.isnan().all(dim=(1, 2)).tolist() == [True, False]


def attend_to_one_key(dtype: torch.dtype, states: torch.Tensor) -> torch.Tensor:
    """Of tokens [n, 3, W], to a prompt's one key of zeros, whose value is 0, and to their own."""
    width = states.shape[2]
    of_prompts = (torch.zeros(1, 1, 1, 1, width, dtype=dtype), torch.zeros(1, 1, 1, 1, width, dtype=dtype))
    own = (torch.zeros(1, len(states), 1, 1, width, dtype=dtype), torch.zeros(1, len(states), 1, 1, width, dtype=dtype))
    rows = torch.tensor([[0] * len(states), [1] * len(states), [0] * len(states)], dtype=torch.int32)
    return compiled(dtype, width, 1).attend(states, 1.0, rows, of_prompts, [own], 0)


def test_subnormal_numbers_survive_its_loading() -> None:
    """Some compilers' fast arithmetic flushes them in the whole process."""
    compiled(torch.float32)
    assert torch.tensor(1e-40).mul(1.0).item() > 0


def test_the_exponential_is_exact_to_a_millionth(processor: None) -> None:
    """Seen through a softmax over two keys, of scores 0 and x, and the value of the second: e^x / (1 + e^x)."""
    x = torch.linspace(-80, 0, 500)
    states = torch.stack([torch.ones_like(x), x, torch.ones_like(x)], dim=1)[:, :, None]
    found = attend_to_one_key(torch.float32, states).flatten()
    exact = x.double().sigmoid()
    assert_within(found, exact, exact * (EXPONENTIAL + gamma(3)))


def test_threads_share_the_work_and_nothing_else(two_threads: None) -> None:
    """Forty rows of different lengths: more than a thread takes at a time."""
    states = torch.randn(40, 5 * 2, 8)
    of_prompts = (torch.randn(1, 3, 2, 9, 8), torch.randn(1, 3, 2, 9, 8))
    own = (torch.randn(1, 40, 2, 64, 8), torch.randn(1, 40, 2, 64, 8))
    rows = torch.tensor([[n % 3 for n in range(40)], [9] * 40, [n % 50 for n in range(40)]], dtype=torch.int32)

    def attended() -> torch.Tensor:
        return compiled(torch.float32).attend(states, 0.3, rows, of_prompts, [own], 0)

    together = [attended() for _ in range(20)]
    torch.set_num_threads(1)
    alone = attended()
    assert all(torch.equal(found, alone) for found in together)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_what_a_kernel_would_misread_is_refused() -> None:
    found = compiled(torch.bfloat16)
    stream, weight = torch.randn(2, 4), torch.ones(4, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"was given torch\.float32"):
        found.add_normed(stream, None, weight.float(), 1e-5)
    with pytest.raises(RuntimeError, match=r"was given torch\.float16"):
        found.add_normed(stream, torch.zeros(2, 4, dtype=torch.float16), weight, 1e-5)
    with pytest.raises(RuntimeError, match="strides"):
        found.gated(torch.zeros(4, 2, dtype=torch.bfloat16).T)
    with pytest.raises(RuntimeError, match="for 1 heads of keys"):
        attend_to_one_key(torch.float32, torch.ones(2, 4, 8))
    assert isinstance(kernels_for(torch.float64, 8, 3), TorchKernels)


def no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")


def library_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: Any) -> None:
        Path(command[command.index("-o") + 1]).write_text("no library")

    monkeypatch.setattr(subprocess, "run", run)


def slow_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], timeout: float, **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.parametrize("trouble", [no_temporary_folder, library_that_does_not_load, slow_compiler])
def test_whatever_hinders_compiling_torch_does_it(trouble: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    trouble(monkeypatch)
    assert isinstance(kernels_for.__wrapped__(torch.float32, 8, 1), TorchKernels)
    assert "torch's operations take their place" in caplog.text


@pytest.mark.parametrize(("command", "wanted"), [("cc", "native"), ("cc -march=x86-64-v3", "x86-64-v3")])
def test_the_compilers_own_options_may_name_a_processor(command: str, wanted: str, monkeypatch: Any) -> None:
    commands: list[list[str]] = []
    monkeypatch.setenv("CC", command)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: commands.append(command))
    kernels_for.__wrapped__(torch.float32, 8, 1)  # the library that isn't there is not loaded
    assert [part for part in commands[0] if part.startswith("-march=")] == [f"-march={wanted}"]


@pytest.mark.parametrize("command", ["no-such-compiler", "false", "true", "gcc '"])
def test_without_a_compiler_torch_does_it(command: str, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setenv("CC", command)
    assert isinstance(kernels_for.__wrapped__(torch.float32, 8, 1), TorchKernels)
    assert "No C compiler for the faster kernels" in caplog.text
