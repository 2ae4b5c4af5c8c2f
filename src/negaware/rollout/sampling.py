"""From logits to a sampled token and its log-probability. It knows neither models nor sequences.

Every completion has a seed of its own and its uniform numbers come from that seed alone, so what is sampled for it does
not depend on what else is in the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from negaware.rollout.engine import SamplingParams

BLOCK = 256  # columns summed before the cumulative sum: 49k columns become 192, then 256 of one block


def completion_uniforms(seed: int, num_tokens: int) -> Tensor:
    """The uniform numbers in (0, 1] that choose a completion's tokens, one a token, float64."""
    return 1 - torch.rand(num_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sample_tokens(logits: Tensor, params: SamplingParams, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B] drawn from logits [B, V] by uniforms [B] in (0, 1], and their log-probabilities [B] (float32).

    The log-probabilities are those of the distribution that was sampled: after temperature, top-k and top-p. Greedy
    decoding (temperature 0) keeps those of the untouched model.
    """
    logits = logits.float()
    if params.temperature == 0:
        probabilities = logits.softmax(-1)
        tokens = logits.argmax(-1)
    else:
        if params.temperature != 1:
            logits = logits / params.temperature
        probabilities = restrict(logits, params.top_k, params.top_p).softmax(-1)
        tokens = _invert_cumulative(probabilities, uniforms)
    return tokens, probabilities.gather(-1, tokens[:, None]).squeeze(-1).log()


def restrict(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """The logits [B, V] with everything outside the top k and outside the nucleus of mass top_p at −∞.

    The token that crosses top_p stays in, so that one token always does.
    """
    if 0 < top_k < logits.shape[-1]:
        smallest_kept = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest_kept, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        outside = probabilities.cumsum(-1) - probabilities >= top_p
        logits = logits.masked_fill(outside.scatter(-1, order, outside), -torch.inf)
    return logits


def _invert_cumulative(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The first column whose cumulative probability reaches u: exact inverse-transform sampling in two levels.

    No random number a column, where Gumbel or exponential races need one.
    """
    padding = -probabilities.shape[-1] % BLOCK
    blocks = torch.nn.functional.pad(probabilities, (0, padding)).view(len(probabilities), -1, BLOCK)
    ends = blocks.sum(-1).double().cumsum(-1)
    target = uniforms.to(ends)[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, target)
    rows = torch.arange(len(blocks), device=blocks.device)
    inside = blocks[rows, block.squeeze(1)].double().cumsum(-1)
    before = torch.where(block > 0, ends.gather(-1, (block - 1).clamp(min=0)), 0)
    # Rounding may leave the rest a hair above the block's own total; its last column with any mass is meant then.
    column = torch.searchsorted(inside, torch.minimum(target - before, inside[:, -1:]))
    return (block * BLOCK + column).squeeze(1)
