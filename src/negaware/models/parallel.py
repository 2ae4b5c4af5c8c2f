"""FSDP2: the weights, gradients and optimizer state of one model in shards over the ranks.

Beside `lora.merged_weight` it is the only place that knows how a weight is cut; everyone else meets whole weights, one
at a time, or calls a function of the model through `ShardedModel`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from negaware.models.lora import merged_weights, own_parameters, saved_buffers

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)
"""Computing together they wait for a micro-batch at most; and NCCL doesn't notice by itself that another has gone."""


class ShardedModel(nn.Module):
    """FSDP2's root: calls functions of a model while its weights can be had.

    Each layer's weights are whole while the layer runs, the others (embeddings, last norm, head) while the function
    does. Gradients are summed over the ranks, not averaged: the loss is divided by a global count already.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        device: torch.device,
        compute_dtype: torch.dtype,
        offloads: bool,
    ) -> None:
        super().__init__()
        self.model, self.device = model, device
        mesh = DeviceMesh.from_group(dist.new_group(timeout=PATIENCE), device.type)
        # What enters a layer keeps its dtype: the residual stream may be float32 while weights are bfloat16.
        precision = MixedPrecisionPolicy(compute_dtype, torch.float32, cast_forward_inputs=False)
        to_cpu = CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
        policies: Any = {"mp_policy": precision, "offload_policy": to_cpu if offloads else OffloadPolicy()}
        for layer in layers_of(model):
            fully_shard(layer, mesh=mesh, **policies)
        fully_shard(self, mesh=mesh, **policies)
        self._parts = [module for module in self.modules() if isinstance(module, FSDPModule)]
        for module in self._parts:
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        """The function's value."""
        return function(*arguments)

    def within(self, function: Callable[..., T], *arguments: Any) -> T:
        """The function's value; every rank must call it. Without gradients, the weights are in shards again after."""
        found: T = self(function, *arguments)
        if not torch.is_grad_enabled():
            for module in self._parts:  # a layer that raised an error has whole weights still
                module.reshard()
        return found


def require_own_names(model: PreTrainedModel) -> None:
    """ValueError for a model whose files hold other tensors than it does: its shards couldn't be written as such."""
    if different := other_name_in_files(model):
        raise ValueError(
            f"{type(model).__name__} keeps its weights otherwise than its files do ({different}), so it can't be "
            "shared out over ranks; train it in one process."
        )


def other_name_in_files(model: PreTrainedModel) -> str | None:
    """What is otherwise in the model's files than in itself, adapters apart; None if nothing is."""
    own = {name: torch.empty(parameter.shape, device="meta") for name, parameter, _ in own_parameters(model)}
    own |= {name: torch.empty(buffer.shape, device="meta") for name, buffer in saved_buffers(model)}
    in_files = revert_weight_conversion(model, dict(own))
    if {name: weight.shape for name, weight in in_files.items()} == {name: own[name].shape for name in own}:
        return None
    return next(iter(own.keys() ^ in_files.keys()), "a weight's shape")


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder's layers. ValueError for a model that keeps them elsewhere."""
    layers = getattr(model.get_decoder(), "layers", None) or getattr(model.get_decoder(), "h", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(f"{type(model).__name__} has no list of layers, by which its weights could be shared out.")
    return list(layers)


def recompute_activations(model: PreTrainedModel) -> None:
    """Keeps each layer's input only; the backward pass computes the rest again."""
    for layer in layers_of(model):
        layer.forward = partial(_recomputed, layer.forward)


def _recomputed(forward: Callable[..., T], *arguments: Any, **options: Any) -> T:
    if not torch.is_grad_enabled():
        return forward(*arguments, **options)
    found: T = checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False, **options)  # no dropout
    return found


def named_weights(model: nn.Module, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The model's weights by name, each whole on every rank in its turn; all ranks must take all of them."""
    for name, weight in merged_weights(model):
        yield name, whole(weight, dtype)
        del weight  # before the next one is made


def whole(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight of which this rank may have but a shard; then in this dtype, and all ranks must ask for it."""
    if not isinstance(weight, DTensor):
        return weight
    # A shard that is kept on the host meets the others on the GPUs.
    return cast(DTensor, weight.detach().to(weight.device_mesh.device_type, dtype)).full_tensor()
