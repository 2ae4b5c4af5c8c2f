"""A finished model as a folder that transformers, peft and vLLM load with no code of ours.

Weights in shards, and weights merged with adapters, are made one at a time and written as they come: none is held
beside another, but where a model's files name its weights otherwise. It knows nothing of runs.
"""

from __future__ import annotations

import json
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from negaware.files import sync
from negaware.libraries import reason
from negaware.models.load import Policy
from negaware.models.lora import (
    adapter_tensors,
    has_adapters,
    merged_weights,
    own_parameters,
    save_adapters,
    saved_buffers,
)
from negaware.models.parallel import named_weights, other_name_in_files, whole
from negaware.ranks import ALONE, Ranks

_SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save_model(policy: Policy, folder: Path, dtype: torch.dtype, ranks: Ranks = ALONE) -> None:
    """Writes the model in its compute dtype, adapters merged into it or alone, as their options say.

    Every rank must call it, and the first one writes. OSError where it can't be written, on a full disk say.
    """
    model = policy.model
    with _explained(folder):
        if policy.lora is not None and policy.lora.save == "adapter":
            adapters = {name: whole(weight, dtype) for name, weight in adapter_tensors(model).items()}
            if ranks.is_first:
                save_adapters(model, folder, adapters)
        elif ranks.size == 1 and (not has_adapters(model) or other_name_in_files(model)):
            merged = {name: weight.cpu() for name, weight in merged_weights(model)} if has_adapters(model) else None
            model.save_pretrained(folder, state_dict=merged)
        elif ranks.is_first:
            _save_one_by_one(model, folder, dtype)
        else:
            deque(named_weights(model, dtype), maxlen=0)
        if ranks.is_first:
            _save_tokenizer(policy, folder)
            for written in [*folder.iterdir(), folder, folder.parent]:  # before the summary says that it is there
                sync(written)


def _save_tokenizer(policy: Policy, folder: Path) -> None:
    try:
        policy.codec.tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # what tokenizers' own writer raises is a bare Exception
        raise OSError(reason(error)) from error


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Whatever goes wrong becomes an OSError of one sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"The model {folder} can't be written ({reason(error)}); make room, then go on with --resume."
        ) from error


def _save_one_by_one(model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    """One file, however large: transformers and vLLM read it without holding it twice."""
    model.config.dtype = dtype
    model.config.architectures = [type(model).__name__]
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    _write_safetensors(folder / "model.safetensors", _in_file(model, dtype), named_weights(model, dtype))


def _in_file(model: nn.Module, dtype: torch.dtype) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """What `named_weights` will give, in its order."""
    parameters = {
        name: (dtype if isinstance(parameter, DTensor) else parameter.dtype, parameter.shape)
        for name, parameter, _ in own_parameters(model)
    }
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
        for name, weight in weights:
            assert weight.dtype == sizes[name][0]
            weight.detach().cpu().flatten().view(torch.uint8).numpy().tofile(file)
            del weight  # before the next one is made
