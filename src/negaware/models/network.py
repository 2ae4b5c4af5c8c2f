"""A model made ready: weights in the dtype that computes, float32 masters of what is trained, decoder and head chosen.

It is made so once, where the policy is loaded. Whoever samples with it or trains it finds it so and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from negaware.models.decoder import Decoder, transformers_decoder_of
from negaware.models.description import Description, describe
from negaware.models.family import fused_decoder_of
from negaware.models.logprobs import Head, head_of

if TYPE_CHECKING:
    from negaware.models.parallel import ShardedModel


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """The policy without its tokenizer."""

    model: PreTrainedModel
    description: Description
    head: Head
    """What it does with the head's weight; of weights in shards, take `head.of(model)` within."""
    decoder: Decoder
    masters: Mapping[str, Tensor]
    """By name, the float32 weights of all that is trained; none where it only samples."""
    sharded: ShardedModel | None = None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.sharded.device if self.sharded else self.model.device

    def within(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's value, whole weights at hand."""
        return self.sharded.within(function, *arguments) if self.sharded else function(*arguments)


@torch.no_grad()
def make_ready(model: PreTrainedModel, dtype: torch.dtype | None, sharded: ShardedModel | None = None) -> Network:
    """The model, ready to be trained and sampled with weights of this dtype; None: to be sampled, as it was loaded.

    Load in float32 what is to be trained. The decoder is the fused one if it can stand in, which float32 weights tell
    best. Else it is transformers' own, with a float32 residual stream and the attention of shared rows where the model
    allows them. ValueError for a model whose logits aren't those of one linear layer.
    """
    fused = None if sharded else fused_decoder_of(model)
    head = sharded.within(head_of, model) if sharded else head_of(model)
    masters = keep_masters(model, dtype) if dtype else {}
    if fused is not None:
        decoder: Decoder = fused
    elif sharded:
        decoder = sharded.within(transformers_decoder_of, model, sharded.device)
    else:
        decoder = transformers_decoder_of(model, model.device)
    return Network(model, describe(model), head.of(model), decoder, masters, sharded)


def keep_masters(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Gives the model weights of this dtype; returns the float32 masters, by name, of what is trained.

    In float32 master and weight are the same memory. Of weights in shards FSDP makes the copy that computes.
    """
    masters = {}
    for name, parameter in model.named_parameters():
        in_shards = isinstance(parameter, DTensor)
        if parameter.requires_grad:
            masters[name] = parameter if in_shards else parameter.detach().float()
        if not in_shards:
            parameter.data = parameter.data.to(dtype)
    return masters
