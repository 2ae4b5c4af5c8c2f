"""What the fused decoder does between its matrix products: compiled where there is a C compiler, torch elsewhere.

Sampler and trainer take the same kernels, so that what they compute is rounded alike. All tensors are contiguous.

N tokens, hidden width D, H heads of width W, Hkv of them with keys and values; S = H + 2·Hkv; MLP width I.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

SOURCE = Path(__file__).with_name("kernels.c")
# Sums may be reordered, so that they run as vectors; -ffast-math itself would change the whole process's arithmetic.
FLAGS = (
    *("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math"),
    *("-fno-signed-zeros", "-fassociative-math", "-ffinite-math-only"),
)

Buffers = tuple[Tensor, Tensor]
"""Keys and values."""


class Kernels(Protocol):
    """Both kinds."""

    def add_normed(self, stream: Tensor, added: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
        """The RMS norm [N, D], in the weight's dtype, of the float32 stream [N, D], to which `added` is added first."""
        ...

    def gated(self, gates: Tensor) -> Tensor:
        """silu(gate)·up [N, I] of both side by side [N, 2·I]."""
        ...

    def rotate(self, states: Tensor, cosines: Tensor, sines: Tensor, num_rotated: int) -> Tensor:
        """Rotary positions for the first heads of [N, S, W], by cosines and sines [N, 1, W/2]."""
        ...


class TorchKernels:
    """As a handful of torch's operations each."""

    @staticmethod
    def add_normed(stream: Tensor, added: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
        """See `Kernels`."""
        if added is not None:
            stream.add_(added.float())  # adding bfloat16 to float32 takes torch's slow path
        return (stream * rms_scale(stream, epsilon)).mul_(weight.float()).to(weight.dtype)

    @staticmethod
    def gated(gates: Tensor) -> Tensor:
        """See `Kernels`."""
        gate, up = gates.chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def rotate(states: Tensor, cosines: Tensor, sines: Tensor, num_rotated: int) -> Tensor:
        """See `Kernels`."""
        wide = states.to(torch.promote_types(states.dtype, torch.float32), copy=True)
        first, second = wide[:, :num_rotated].chunk(2, dim=-1)
        turned = first * sines
        first.mul_(cosines).addcmul_(second, sines, value=-1)
        second.mul_(cosines).add_(turned)
        return wide.to(states.dtype)


def rms_scale(stream: Tensor, epsilon: float) -> Tensor:
    """What an RMS norm multiplies each token of [N, D] by, [N, 1]."""
    norms = torch.linalg.vector_norm(stream, dim=-1, keepdim=True)
    return torch.rsqrt(norms.square() / stream.shape[-1] + epsilon)


class CompiledKernels:
    """kernels.c as a library of this process."""

    def __init__(self, library: ctypes.CDLL, width: int) -> None:
        self.library, self.width = library, width

    def add_normed(self, stream: Tensor, added: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
        """See `Kernels`."""
        normed = torch.empty(stream.shape, dtype=weight.dtype)
        of_added = None if added is None else _address(added)
        self.library.add_normed(
            *stream.shape, ctypes.c_float(epsilon), _address(stream), of_added, _address(weight), _address(normed)
        )
        return normed

    def gated(self, gates: Tensor) -> Tensor:
        """See `Kernels`."""
        out = gates.new_empty(len(gates), gates.shape[1] // 2)
        self.library.gated(*out.shape, _address(gates), _address(out))
        return out

    def rotate(self, states: Tensor, cosines: Tensor, sines: Tensor, num_rotated: int) -> Tensor:
        """See `Kernels`. RuntimeError if positions turn only a part of each head."""
        if states.shape[2] != self.width or 2 * cosines.shape[2] != self.width:
            raise RuntimeError("rotary positions of a part of each head")
        cosine, sine = (ctypes.c_void_p(part.data_ptr()) for part in (cosines, sines))
        tokens, heads, _ = states.shape
        out = torch.empty_like(states)
        sizes = (tokens, heads, num_rotated, cosines.stride(0), sines.stride(0))
        self.library.rotate(*sizes, cosine, sine, _address(states), _address(out))
        return out

    def attend(
        self, states: Tensor, scale: float, rows: Tensor, of_prompts: Buffers, own: Sequence[Buffers], layer: int
    ) -> Tensor:
        """A decode step's attention [n, H, W] of states [n, S, W]; their keys and values are added to `own`.

        rows: int32 [3, n], each one's prompt, that prompt's length and its own. Keys and values have the dtype of
        states: the prompts' [L, P, Hkv, M, W], the answers' own in blocks [L, at least n, Hkv, columns, W] one after
        another. MemoryError if scores find no room.
        """
        num_rows, num_states, _ = states.shape
        num_key_heads, columns = own[0][0].shape[2:4]
        out = states.new_empty(num_rows, num_states - 2 * num_key_heads, self.width)
        blocks = [(ctypes.c_void_p * len(own))(*[block[part].data_ptr() for block in own]) for part in (0, 1)]
        of_layer = [_address(part[layer]) for part in of_prompts]
        if not self.library.attend(
            num_rows, num_key_heads, ctypes.c_float(scale), _address(rows), _address(states),
            *of_layer, of_prompts[0].shape[3],
            len(own), columns, ctypes.c_size_t(layer * own[0][0].stride(0)), *blocks, _address(out),
        ):  # fmt: skip
            raise MemoryError(f"no memory for the attention scores of {num_rows} completions")
        return out


def _address(tensor: Tensor) -> ctypes.c_void_p:
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


@lru_cache
def kernels_for(dtype: torch.dtype, width: int, queries: int) -> Kernels:
    """Those for a compute dtype, heads `width` wide, and `queries` of them to each one of keys and values."""
    shape = [f"-DWIDTH={width}", f"-DQUERIES={queries}", *(["-DBFLOAT16"] if dtype == torch.bfloat16 else [])]
    library = _compiled(shape)
    return TorchKernels() if library is None else CompiledKernels(library, width)


def _compiled(definitions: list[str]) -> ctypes.CDLL | None:
    """The library, compiled in a fifth of a second (`$CC`, or `cc`) for this very process; None if that fails."""
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    with tempfile.TemporaryDirectory(prefix="negaware-") as folder:
        objects, library = Path(folder, "kernels.o"), Path(folder, "kernels.so")
        compile_ = [*compiler, *FLAGS, "-fopenmp", "-fPIC", *definitions, "-c", str(SOURCE), "-o", str(objects)]
        link = [*compiler, "-shared", "-fopenmp", str(objects), "-o", str(library), "-lm"]
        try:
            for command in (compile_, link):
                subprocess.run(command, check=True, capture_output=True, timeout=60)
            return ctypes.CDLL(str(library))  # torch's own OpenMP threads serve it: they are there already
        except (OSError, subprocess.SubprocessError):
            return None
