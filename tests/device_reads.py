"""What would make the host wait for a GPU, seen on the CPU: values asked for, and shapes that depend on them.

A GPU does its work later. The host must wait for it wherever a tensor becomes a number, and wherever how many elements
fulfil a condition decides a shape.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

OPERATIONS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "equal",
    "bincount",
}
"""`item`, `float`, `bool` and `if` are the first."""
METHODS = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu, torch.Tensor.__array__}


class _Operations(TorchDispatchMode):
    """Writes down the operations that need a value, in backward passes too."""

    supports_higher_order_operators = True  # FlexAttention, on a GPU one kernel

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func)).partition(".")[0]
        if name in OPERATIONS or (name == "repeat_interleave" and (kwargs or {}).get("output_size") is None):
            self.found.append(name)
        if name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"):
            self.found += [name for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    """Writes down what copies a tensor to the host: on the CPU that is no operation."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in METHODS:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def device_reads() -> Iterator[list[str]]:
    """The names of all that would wait for a GPU in the block, in order."""
    found: list[str] = []
    with _Operations(found), _Methods(found):
        yield found
