"""LoRA (arXiv 2106.09685): peft's adapters on a transformers model, merged into its weights where others need them.

An adapted layer is linear with the weight W + s · B A: W [O, D] frozen, A [r, D] and B [O, r] trained, s = alpha / r. B
starts as 0, so the adapted model starts as the model. It knows neither training nor sampling; peft is imported only
where adapters are made, read or written.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from transformers import Conv1D, PreTrainedModel
from transformers.utils import find_adapter_config_file

from negaware.libraries import require_installed
from negaware.models.files import require_all_adapters
from negaware.models.options import ALL_LINEAR, LoraOptions

ADAPTER = "default"
"""peft can keep several adapters in a layer and calls the first one this."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """What is trained of an adapted layer."""

    down: nn.Parameter
    """A [r, D]."""
    up: nn.Parameter
    """B [O, r]."""
    scale: float
    """s."""


def require_peft() -> None:
    """ValueError if peft isn't installed, or is of a version that this wasn't tested with."""
    require_installed("peft>=0.21,<0.22", "model.lora")


def add_adapters(model: PreTrainedModel, options: LoraOptions, base: str) -> None:
    """Puts adapters on the model's layers, in its dtype, and freezes all else.

    `base` is where the model came from, for whoever puts saved adapters on it again. ValueError for a target that the
    model doesn't have, or that is its embeddings or head.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules=ALL_LINEAR if options.targets == (ALL_LINEAR,) else list(options.targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )
    ends = {id(part) for part in (model.get_input_embeddings(), model.get_output_embeddings())}
    last_names = {name.rpartition(".")[2] for name, part in model.named_modules() if _is_linear(part, ends)}
    for target in options.targets:
        if target != ALL_LINEAR and target.rpartition(".")[2] not in last_names:
            raise ValueError(
                f"model.lora.targets names {target}, but what can be adapted in {type(model).__name__} are "
                f"{', '.join(sorted(last_names))}; take some of these, or {ALL_LINEAR}."
            )
    inject_adapter_in_model(config, model, ADAPTER)
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and not isinstance(plain(module), nn.Linear | Conv1D):
            raise ValueError(
                f"adapters on {name} of {type(model).__name__} could not be merged into it, for it is no linear layer; "
                f"name others in model.lora.targets, of {', '.join(sorted(last_names))}."
            )


def _is_linear(module: nn.Module, ends: set[int]) -> bool:
    return isinstance(module, nn.Linear | Conv1D) and id(module) not in ends


def plain(layer: Any) -> Any:
    """The layer itself, without its adapter if it has one."""
    return layer.base_layer if hasattr(layer, "lora_A") else layer


def adapter_of(layer: Any) -> Adapter | None:
    """The adapter that `add_adapters` gave the layer, None if it gave it none."""
    if not hasattr(layer, "lora_A"):
        return None
    return Adapter(layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, float(layer.scaling[ADAPTER]))


@torch.no_grad()
def merged_weight(layer: Any) -> Tensor:
    """The layer's weight, its adapter added: computed in float32 and rounded once. A plain layer's is its own.

    Of a layer in shards each rank gets its shard; all must ask.
    """
    adapter = adapter_of(layer)
    weight: Tensor = plain(layer).weight
    if adapter is None:
        return weight
    # What computes is in the weight's dtype. In shards, A and B are the float32 masters, which FSDP rounds so as well.
    up, down = (part.detach().to(weight.dtype).float() for part in (adapter.up, adapter.down))
    left: Any = up
    right: Any = down
    if isinstance(plain(layer), Conv1D):  # it keeps its weight as [D, O]
        left, right = down.T, up.T
    if isinstance(weight, DTensor):  # sharded by rows, like its product with a whole right side
        device = weight.device_mesh.device_type
        left = left.to(device).redistribute(placements=weight.placements)
        right = right.to(device).redistribute(placements=[Replicate()])
        weight = weight.to(device)
    merged: Tensor = (adapter.scale * (left @ right)).add_(weight).to(weight.dtype)
    return merged


def frozen_checksum(model: nn.Module) -> int:
    """A sum over the bits of this rank's weights that aren't trained; those of all ranks add up to it, modulo 2**64."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    total = 0
    for parameter in model.parameters():
        if not parameter.requires_grad:
            weight: Any = parameter.detach()
            local: Tensor = weight.to_local() if isinstance(weight, DTensor) else weight
            total += int(local.view(integers[local.element_size()]).sum(dtype=torch.int64))
    return total % 2**64


def has_adapters(model: nn.Module) -> bool:
    """Whether `add_adapters` was here."""
    return any(hasattr(module, "lora_A") for module in model.modules())


def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All that the model's files hold, by the names that it has without adapters, each merged when its turn comes.

    A model without adapters gives its very parameters.
    """
    for name, parameter, adapted in own_parameters(model):
        yield name, parameter if adapted is None else merged_weight(adapted)
    yield from saved_buffers(model)


def saved_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What the model's files hold beside its parameters: constants, such as the scale of a layer in Gemma 4."""
    in_files = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in in_files:
            yield name.replace(".base_layer.", "."), buffer


def own_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Any]]:
    """The parameters of the model that the adapters are on: its name there, itself, and its layer if that is adapted
    (a bias never is)."""
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    for name, parameter in model.named_parameters():
        owner, _, kind = name.rpartition(".")
        layer = owner.removesuffix(".base_layer")
        if layer in adapted:
            yield f"{layer}.{kind}", parameter, adapted[layer] if kind == "weight" else None
        elif owner.rpartition(".lora_")[0] not in adapted:
            yield name, parameter, None


def adapter_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The adapters' weights, by the names that peft gives them in a file."""
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    return {f"base_model.model.{name}": tensor.detach() for name, tensor in tensors.items()}


def save_adapters(model: PreTrainedModel, folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes the adapters as a folder that `peft.PeftModel.from_pretrained(base, folder)` loads."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config: Any = model.peft_config
    config[ADAPTER].save_pretrained(str(folder))
    whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    model.generation_config.save_pretrained(folder)


def base_of_adapters(source: str | Path) -> str | None:
    """The name of the model that saved adapters are for; None if `source` is a whole model.

    ValueError if it holds adapters and peft is missing, or they name no model.
    """
    if find_adapter_config_file(str(source)) is None:
        return None
    require_peft()
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(str(source)).base_model_name_or_path
    if not base:
        raise ValueError(f"{source} holds adapters but doesn't say of which model; merge them into it with peft.")
    return str(base)


def put_on(model: PreTrainedModel, source: str | Path) -> PreTrainedModel:
    """The model with saved adapters, of any kind that peft can merge, merged into it: an ordinary model again.

    ValueError if their files lack a weight, or have one that the model has no place for.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    dtype = model.dtype
    with warnings.catch_warnings():  # peft asks transformers by a name of yesterday
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Found missing adapter keys", category=UserWarning)
        adapted: Any = PeftModel.from_pretrained(model, str(source))
        found = adapted.load_adapter(str(source), ADAPTER)  # again: what it found the first time it doesn't say
    require_all_adapters(str(source), found.missing_keys, found.unexpected_keys)
    layers: list[Any] = [module for module in adapted.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.float()  # the sum is rounded once, as `merged_weight` does
        layer.merge()
        layer.to(dtype)
    whole: Any = adapted.unload()
    merged: PreTrainedModel = whole.to(dtype).requires_grad_(True)  # peft froze it
    return merged
