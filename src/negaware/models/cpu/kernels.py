"""What the fused decoder does between its matrix products: compiled where there is a C compiler, torch elsewhere.

Sampler and trainer take the same kernels, so that what they compute is rounded alike. Nothing here knows a model.

N tokens, hidden width D, H heads of width W, Hkv of them with keys and values; S = H + 2·Hkv; MLP width I.
"""

from __future__ import annotations

import ctypes
import logging
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

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.c")
# Sums may be reordered, so that they run as vectors; -ffast-math itself would change the whole process's arithmetic.
FUNCTIONS = ("add_normed", "attend", "gated", "gated_gradients", "norm_gradients", "rotate")
FLAGS = (
    *("-O3", "-fno-math-errno", "-fno-trapping-math"),
    *("-fno-signed-zeros", "-fassociative-math", "-ffinite-math-only"),
)

Buffers = tuple[Tensor, Tensor]
"""Keys and values."""


class Kernels(Protocol):
    """What both kinds can do. `CompiledKernels` alone attend: torch's way is decode_attention.py's."""

    def add_normed(self, stream: Tensor, added: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
        """The RMS norm [N, D], in the weight's dtype, of the float32 stream [N, D], to which `added` is added first."""
        ...

    def gated(self, gates: Tensor) -> Tensor:
        """silu(gate)·up [N, I] of both side by side [N, 2·I]."""
        ...

    def norm_gradients(
        self, grad_normed: Tensor, stream: Tensor, weight: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the stream [N, D], float32, and of the norm's weight [D], from that of the normed stream."""
        ...

    def gated_gradients(self, grad_gated: Tensor, gates: Tensor) -> Tensor:
        """The gradient of the gates [N, 2·I], from that of `gated`'s result [N, I], whose memory may be overwritten."""
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
    def norm_gradients(grad_normed: Tensor, stream: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        """See `Kernels`."""
        upstream = grad_normed.to(torch.float32, copy=True)
        scale = rms_scale(stream, epsilon)
        scaled = stream * scale
        by_width = upstream * scaled
        grad_weight = by_width.sum(0).to(weight.dtype)
        along = (by_width @ weight.float()[:, None]).div_(-stream.shape[-1])
        return upstream.mul_(weight.float()).addcmul_(scaled, along).mul_(scale), grad_weight

    @staticmethod
    def gated_gradients(grad_gated: Tensor, gates: Tensor) -> Tensor:
        """See `Kernels`."""
        gate, up = gates.chunk(2, dim=-1)
        grad_gates = torch.empty_like(gates)
        grad_gate, grad_up = grad_gates.chunk(2, dim=-1)
        torch.mul(grad_gated, functional.silu(gate), out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad_gated.mul_(up), gate, grad_input=grad_gate)
        return grad_gates

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
    """kernels.c as a library of this process. RuntimeError for tensors that it would misread."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype, width: int, queries: int) -> None:
        self.library, self.dtype, self.width, self.queries = library, dtype, width, queries

    def add_normed(self, stream: Tensor, added: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
        """See `Kernels`."""
        normed = torch.empty(stream.shape, dtype=self.dtype)
        added_address = None if added is None else self._address(added)
        weight_address, stream_address = self._address(weight), _address(stream, torch.float32)
        self.library.add_normed(
            *stream.shape, ctypes.c_float(epsilon), stream_address, added_address, weight_address, self._address(normed)
        )
        return normed

    def gated(self, gates: Tensor) -> Tensor:
        """See `Kernels`."""
        out = gates.new_empty(len(gates), gates.shape[1] // 2)
        self.library.gated(*out.shape, self._address(gates), self._address(out))
        return out

    def norm_gradients(
        self, grad_normed: Tensor, stream: Tensor, weight: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        """See `Kernels`. The weight's is added up thread by thread, in their order."""
        threads = torch.get_num_threads()
        grad_stream, grad_weight = torch.empty_like(stream), stream.new_empty(threads, stream.shape[1])
        inputs = _address(stream, torch.float32), self._address(weight), self._address(grad_normed)
        outputs = _address(grad_stream, torch.float32), _address(grad_weight, torch.float32)
        self.library.norm_gradients(*stream.shape, threads, ctypes.c_float(epsilon), *inputs, *outputs)
        return grad_stream, grad_weight.sum(0).to(weight.dtype)

    def gated_gradients(self, grad_gated: Tensor, gates: Tensor) -> Tensor:
        """See `Kernels`."""
        grad_gates = torch.empty_like(gates)
        addresses = map(self._address, (gates, grad_gated, grad_gates))
        self.library.gated_gradients(*grad_gated.shape, *addresses)
        return grad_gates

    def rotate(self, states: Tensor, cosines: Tensor, sines: Tensor, num_rotated: int) -> Tensor:
        """See `Kernels`. Cosines and sines may be a part of a larger tensor."""
        if states.shape[2] != self.width or 2 * cosines.shape[2] != self.width:
            raise RuntimeError("rotary positions of a part of each head")
        tokens, heads, _ = states.shape
        out = torch.empty_like(states)
        sizes = (tokens, heads, num_rotated, cosines.stride(0), sines.stride(0))
        angles = (_address(part[:1], torch.float32) for part in (cosines, sines))
        self.library.rotate(*sizes, *angles, self._address(states), self._address(out))
        return out

    def attend(
        self,
        states: Tensor,
        scale: float,
        rows: Tensor,
        prompt_states: Buffers,
        answer_states: Sequence[Buffers],
        layer: int,
    ) -> Tensor:
        """A decode step's attention [n, H, W] of states [n, S, W]; their keys and values are added to `answer_states`.

        rows: int32 [3, n], each row's prompt, that prompt's length, its answer's. Keys and values have the dtype of
        states: the prompts' [L, P, Hkv, M, W], the answers' in blocks [L, at least n, Hkv, columns, W] one after
        another. MemoryError if scores find no room.
        """
        num_rows, num_states, _ = states.shape
        num_key_heads, columns = answer_states[0][0].shape[2:4]
        if states.shape[1:] != ((self.queries + 2) * num_key_heads, self.width):
            raise RuntimeError(f"states {tuple(states.shape)} for {num_key_heads} heads of keys")
        out = states.new_empty(num_rows, num_states - 2 * num_key_heads, self.width)
        blocks = [
            (ctypes.c_void_p * len(answer_states))(*[self._address(block[part]) for block in answer_states])
            for part in (0, 1)
        ]
        prompt_addresses = [self._address(part[layer]) for part in prompt_states]
        if not self.library.attend(
            num_rows, num_key_heads, ctypes.c_float(scale), _address(rows, torch.int32), self._address(states),
            *prompt_addresses, prompt_states[0].shape[3],
            len(answer_states), columns, ctypes.c_size_t(layer * answer_states[0][0].stride(0)), *blocks,
            self._address(out),
        ):  # fmt: skip
            raise MemoryError(f"no memory for the attention scores of {num_rows} completions")
        return out

    def _address(self, tensor: Tensor) -> ctypes.c_void_p:
        return _address(tensor, self.dtype)


def _address(tensor: Tensor, dtype: torch.dtype) -> ctypes.c_void_p:
    if tensor.dtype != dtype or not tensor.is_contiguous():
        raise RuntimeError(f"a kernel for dense {dtype} was given {tensor.dtype} with strides {tensor.stride()}")
    return ctypes.c_void_p(tensor.data_ptr())


@lru_cache
def kernels_for(dtype: torch.dtype, width: int, queries: int) -> Kernels:
    """Those for a compute dtype, heads `width` wide, and `queries` of them to each one of keys and values."""
    if dtype not in (torch.float32, torch.bfloat16):
        return TorchKernels()
    shape = [f"-DWIDTH={width}", f"-DQUERIES={queries}", *(["-DBFLOAT16"] if dtype == torch.bfloat16 else [])]
    library = _compiled(shape)
    return TorchKernels() if library is None else CompiledKernels(library, dtype, width, queries)


def _compiled(definitions: list[str]) -> ctypes.CDLL | None:
    """The library, compiled in a fifth of a second (`$CC`, or `cc`) for this very process; None if that fails.

    For this machine's processor, unless `$CC` names another, as `CC="cc -march=x86-64-v3"` does: bits depend on it.
    """
    try:
        compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
        if not any(part.startswith("-march=") for part in compiler):
            compiler.append("-march=native")
        with tempfile.TemporaryDirectory(prefix="negaware-", ignore_cleanup_errors=True) as folder:
            library = Path(folder, "kernels.so")
            command = [*compiler, *FLAGS, *definitions, "-shared", "-fPIC", "-fopenmp", str(SOURCE), "-o", str(library)]
            # A session of its answer_states: the terminal's Ctrl-C is not the compiler's.
            subprocess.run(
                [*command, "-lm"],
                check=True,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=60,
                start_new_session=True,
            )
            loaded = ctypes.CDLL(str(library))  # gcc's asks for the OpenMP library that torch has loaded: its threads
            if lacking := [name for name in FUNCTIONS if not hasattr(loaded, name)]:
                raise ValueError(f"the compiled library lacks {', '.join(lacking)}")
            return loaded
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error).encode()
        last_line = said.decode(errors="replace").strip().rpartition("\n")[2]
        logger.warning("No C compiler for the faster kernels, torch's operations take their place: %s", last_line)
        return None
