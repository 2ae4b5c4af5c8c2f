"""Linear layers whose weights lie as the CPU's matrix products read them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from negaware.models.products import HAS_BFLOAT16_PRODUCTS


@contextmanager
def packed_linears(module: nn.Module) -> Iterator[None]:
    """A block in which a module's bfloat16 linear layers on the CPU run on copies of their weights in oneDNN's layout.

    Otherwise each product rearranges its weight first. The weights must stay as they are within the block; elsewhere
    than on a CPU with bfloat16 products it changes nothing.
    """
    layers = [layer for layer in module.modules() if type(layer) is nn.Linear and _gains(layer.weight)]
    for layer in layers:
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight)
        vars(layer)["forward"] = partial(_product, packed, layer.bias)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def _gains(weight: Tensor) -> bool:
    return HAS_BFLOAT16_PRODUCTS and weight.dtype == torch.bfloat16 and weight.device.type == "cpu"


def _product(packed: Tensor, bias: Tensor | None, inputs: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, packed, bias, "none", [], "")
    return product
