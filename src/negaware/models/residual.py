"""A residual stream that stays float32 while all that is multiplied is bfloat16, where transformers' own decoder runs.

Each of thirty layers rounds the sum of what came before, and sampler and trainer, who add in another order, round it to
different sides: a third of the difference between their log-probabilities (docs/performance.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

MARK = "_residual_is_float32"


def keep_residual_float32(model: PreTrainedModel) -> bool:
    """Widens a bfloat16 model's embeddings to float32 and narrows what its RMS norms give, once; False if it can't be.

    The layers between add to the stream whatever they are given, so no code of theirs changes. A model that does
    something else with it is left as it was.
    """
    decoder, embeddings = model.get_decoder(), model.get_input_embeddings()
    if hasattr(model, MARK) or embeddings.weight.dtype != torch.bfloat16:
        return hasattr(model, MARK)
    narrowed = [
        module for module in decoder.modules() if type(module).__name__.endswith(("RMSNorm", "RotaryEmbedding"))
    ]
    tokens = torch.arange(4, device=model.device)[None]
    with torch.no_grad():
        expected = decoder(tokens, use_cache=False).last_hidden_state
        hooks = [embeddings.register_forward_hook(_widen)]
        hooks += (module.register_forward_hook(_narrow) for module in narrowed)
        try:
            found = decoder(tokens, use_cache=False).last_hidden_state
            kept = found.dtype == torch.bfloat16 and bool((found - expected).norm() < 0.1 * expected.norm())
        except RuntimeError:  # a layer multiplies the stream itself
            kept = False
    if kept:
        setattr(model, MARK, True)
    else:
        for hook in hooks:
            hook.remove()
    return kept


def _widen(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.float()


def _narrow(module: nn.Module, inputs: Any, output: Any) -> Any:
    if isinstance(output, tuple):  # cosines and sines
        return tuple(part.to(torch.bfloat16) for part in output)
    return output.to(torch.bfloat16)
