"""The only place where logits become log-probabilities for training: chunk by chunk, forward and backward.

The logits of N tokens are never held at once, only those of `chunk_tokens`; the backward pass computes them again.
N answer tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

with suppress(ImportError):
    from jaxtyping import Float, Int


@dataclass(frozen=True, slots=True)
class Head:
    """A language-model head: logits = softcap(scale · (hidden Wᵀ + b)), then divided by the temperature."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor, temperature: float) -> Tensor:
        """float32 logits [n, V] of hidden states [n, D], tempered."""
        logits = nn.functional.linear(hidden, self.weight, self.bias).float()
        if self.scale != 1.0:
            logits *= self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits if temperature == 1.0 else logits / temperature

    def logits_gradient(self, gradient: Tensor, logits: Tensor, temperature: float) -> Tensor:
        """From the gradient of the tempered logits to that of the matrix product."""
        if temperature != 1.0:
            gradient = gradient / temperature
        if self.softcap is not None:
            gradient = gradient * (1 - (logits * temperature / self.softcap) ** 2)
        return gradient if self.scale == 1.0 else gradient * self.scale


def head_of(model: PreTrainedModel) -> Head:
    """The model's head, checked once against its own forward. ValueError if the model does something else with it."""
    config = model.config.get_text_config(decoder=True)
    linear = model.get_output_embeddings()
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    head = Head(linear.weight, getattr(linear, "bias", None), float(scale), softcap)
    tokens = torch.arange(4, device=model.device)[None]
    with torch.inference_mode():
        expected = model(tokens, use_cache=False).logits.float()
        found = head.logits(hidden_states(model, tokens)[0], temperature=1.0)[None]
    if not torch.allclose(found, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
        raise ValueError(
            f"{type(model).__name__} computes its logits in a way that can't be split into chunks "
            "(not scale, bias and softcap of one linear layer); it can't be trained here."
        )
    return head


def hidden_states(model: PreTrainedModel, tokens: Tensor, **inputs: Any) -> Tensor:
    """The decoder's last hidden states [R, T, D] of tokens [R, T]: everything but the head."""
    hidden = model.get_decoder()(input_ids=tokens, use_cache=False, **inputs).last_hidden_state
    assert isinstance(hidden, Tensor)
    return hidden


def token_logprobs(
    hidden: Float[Tensor, "N D"],
    head: Head,
    targets: Int[Tensor, "N"],
    temperature: float = 1.0,
    chunk_tokens: int = 512,
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """log π(target) and the entropy (nats, no gradient) of each token's distribution, both float32.

    Memory: one chunk's logits [chunk_tokens, V], whatever N is.
    """
    logprobs, entropy = _ChunkedLogprobs.apply(hidden, head.weight, head.bias, targets, head, temperature, chunk_tokens)
    return logprobs, entropy


class _ChunkedLogprobs(torch.autograd.Function):
    """Keeps each token's log-normaliser, recomputes the logits in the backward pass, and adds up dW in float32."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: Head,
        temperature: float,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        entropy, normaliser = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for chunk in _chunks(len(hidden), chunk_tokens):
            logits = head.logits(hidden[chunk], temperature)
            normaliser[chunk] = logits.logsumexp(-1)
            logprobs[chunk] = logits.gather(-1, targets[chunk, None]).squeeze(-1) - normaliser[chunk]
            # H = −Σ p·log p, not log Z − Σ p·logit: large logits would cancel.
            of_all = logits.sub_(normaliser[chunk, None])
            entropy[chunk] = -torch.linalg.vecdot(of_all.exp(), of_all)
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser)
        ctx.head, ctx.temperature, ctx.chunk_tokens = head, temperature, chunk_tokens
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors
        of_logprobs = gradients[0]
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        of_bias = None if bias is None else torch.zeros(bias.shape, dtype=torch.float32, device=bias.device)
        for chunk in _chunks(len(hidden), ctx.chunk_tokens):
            logits = ctx.head.logits(hidden[chunk], ctx.temperature)
            # ∂ logprob(target) / ∂ logits = onehot(target) − softmax(logits)
            of_logits = (logits - normaliser[chunk, None]).exp_().mul_(-of_logprobs[chunk, None])
            of_logits.scatter_add_(-1, targets[chunk, None], of_logprobs[chunk, None])
            of_logits = ctx.head.logits_gradient(of_logits, logits, ctx.temperature).to(weight.dtype)
            of_hidden[chunk] = of_logits @ weight
            of_weight += of_logits.T @ hidden[chunk]
            if of_bias is not None:
                of_bias += of_logits.sum(0, dtype=torch.float32)
        of_bias = None if of_bias is None else of_bias.to(bias.dtype)
        return of_hidden, of_weight.to(weight.dtype), of_bias, None, None, None, None


def _chunks(num_tokens: int, chunk_tokens: int) -> list[slice]:
    return [slice(first, first + chunk_tokens) for first in range(0, num_tokens, chunk_tokens)]
