"""FSDP2: the weights, gradients and optimizer state of one model in shards over the ranks.

It is the only place that knows how a weight is cut; everyone else meets whole weights, one at a time, or calls a
function of the model through `ShardedModel`.
"""

from __future__ import annotations

import json
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from negaware.models.load import Policy, explained_writing, load_policy, load_skeleton
from negaware.models.lora import adapter_tensors, merged_weights, own_parameters, save_adapters, saved_buffers
from negaware.models.options import LoraOptions
from negaware.ranks import Ranks

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)
"""Computing together they wait for a micro-batch at most; and NCCL doesn't notice by itself that another has gone."""

_SAFETENSORS_DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.bool: "BOOL",
}


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
        for module in self.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        """The function's value."""
        return function(*arguments)

    def within(self, function: Callable[..., T], *arguments: Any) -> T:
        """The function's value; every rank must call it. Without gradients, the weights are in shards again after."""
        found: T = self(function, *arguments)
        if not torch.is_grad_enabled():
            cast(FSDPModule, self).reshard()
        return found


def load_sharded_policy(
    name: str,
    ranks: Ranks,
    device: torch.device | str,
    compute_dtype: torch.dtype,
    offloads: bool,
    lora: LoraOptions | None = None,
) -> tuple[Policy, ShardedModel]:
    """The model `name` in shards, what is trained in float32: the first rank reads it and sends each weight in turn.

    Beyond its shards a rank other than the first never holds more than a weight (on a GPU: a layer). ValueError as
    `load_policy`, or if the model's files don't name its weights as it does itself.
    """
    dtype = torch.float32 if lora is None else compute_dtype
    policy = load_policy(name, dtype, lora=lora) if ranks.is_first else None
    dist.barrier()  # the first rank may have had to download it
    if policy is None:
        policy = load_skeleton(name, dtype, lora)
    model = policy.model
    for parameter in model.parameters():
        if parameter.requires_grad:  # adapters too
            parameter.data = parameter.data.float()
    require_own_names(model)
    whole = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for _, buffer in model.named_buffers():
        dist.broadcast(buffer, src=0)
    sharded = ShardedModel(model, torch.device(device), compute_dtype, offloads)
    for name, parameter in model.named_parameters():
        shard = cast(DTensor, parameter.detach())
        sent = distribute_tensor(whole.pop(name).to(device), shard.device_mesh, shard.placements)
        shard.to_local().copy_(sent.to_local())
    return policy, sharded


def require_own_names(model: PreTrainedModel) -> None:
    """ValueError for a model whose files hold other tensors than it does: its shards couldn't be written as such."""
    own = {name: torch.empty(shape, device="meta") for name, (_, shape) in _in_file(model, torch.float32).items()}
    in_files = revert_weight_conversion(model, dict(own))
    if {name: weight.shape for name, weight in in_files.items()} != {name: own[name].shape for name in own}:
        different = next(iter(own.keys() ^ in_files.keys()), "a weight's shape")
        raise ValueError(
            f"{type(model).__name__} keeps its weights otherwise than its files do ({different}), so it can't be "
            "shared out over ranks; train it in one process."
        )


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
        if not isinstance(weight, DTensor):
            yield name, weight
        else:  # a shard that is kept on the host meets the others on the GPUs
            yield name, cast(DTensor, weight.detach().to(weight.device_mesh.device_type, dtype)).full_tensor()


def save_sharded_model(policy: Policy, folder: Path, dtype: torch.dtype, ranks: Ranks) -> None:
    """What `save_model` writes, by the first rank, weight after weight: none holds more than one of them.

    Every rank must call it. OSError where it can't be written.
    """
    model = policy.model
    if policy.lora is not None and policy.lora.save == "adapter":
        adapters = {name: cast(DTensor, shard).full_tensor() for name, shard in adapter_tensors(model).items()}
        if ranks.is_first:
            with explained_writing(folder):
                save_adapters(model, folder, adapters)
                policy.codec.tokenizer.save_pretrained(folder)
        return
    weights = named_weights(model, dtype)
    if not ranks.is_first:
        deque(weights, maxlen=0)
        return
    model.config.dtype = dtype
    with explained_writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        policy.codec.tokenizer.save_pretrained(folder)
        _write_safetensors(folder / "model.safetensors", _in_file(model, dtype), weights)


def _in_file(model: nn.Module, dtype: torch.dtype) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """What `named_weights` will give, in its order."""
    parameters = {name: (dtype, parameter.shape) for name, parameter, _ in own_parameters(model)}
    return parameters | {name: (buffer.dtype, buffer.shape) for name, buffer in saved_buffers(model)}


def _write_safetensors(
    path: Path, sizes: Mapping[str, tuple[torch.dtype, torch.Size]], weights: Iterable[tuple[str, Tensor]]
) -> None:
    """The file that safetensors would write if it had all the weights at once: a header, then their bytes in order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in sizes.items():
        begin, end = end, end + shape.numel() * dtype.itemsize
        header[name] = {"dtype": _SAFETENSORS_DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, weight in weights:
            weight.cpu().flatten().view(torch.uint8).numpy().tofile(file)
            del weight  # before the next one is made
