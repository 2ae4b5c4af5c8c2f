"""The only place where logits become log-probabilities for training: chunk by chunk, forward and backward.

The logits of N tokens are never held at once, only those of `chunk_tokens`; the backward pass computes them again.
N answer tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from negaware.models.cuda import compiled_on_cuda
from negaware.models.products import HAS_BFLOAT16_PRODUCTS, bfloat16_products

with suppress(ImportError):
    from jaxtyping import Float, Int


LOGITS_AT_ONCE = 24 * 2**20
"""Logits in a chunk unless it is said otherwise: 96 MiB in float32."""


@dataclass(frozen=True, slots=True)
class Head:
    """A language-model head: logits = softcap(scale · (hidden Wᵀ + b)), then divided by the temperature.

    `float32_weight` is what `prepared` adds for the time that the weight stays as it is.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    float32_weight: Tensor | None = None

    def prepared(self) -> Head:
        """The head with what several calls of `logits` share; to be made again when the weight has changed."""
        if self.weight.dtype != torch.bfloat16 or self.weight.device.type != "cpu" or not HAS_BFLOAT16_PRODUCTS:
            return self
        return replace(self, float32_weight=self.weight.detach().float())

    def logits(self, hidden: Tensor, temperature: float) -> Tensor:
        """float32 logits [n, V] of hidden states [n, D], tempered.

        bfloat16 factors are multiplied as such, but their sums not rounded to bfloat16: a logit of 10 would be off by
        up to 0.03, and the log-probabilities of sampler and trainer with it.
        """
        logits = self._product(hidden)
        if self.bias is not None:
            logits += self.bias
        if self.scale != 1.0:
            logits *= self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits if temperature == 1.0 else logits / temperature

    def _product(self, hidden: Tensor) -> Tensor:
        if self.float32_weight is not None:
            with bfloat16_products():
                return nn.functional.linear(hidden.float(), self.float32_weight)
        if hidden.is_cuda and hidden.dtype == torch.bfloat16:
            return torch.mm(hidden, self.weight.t(), out_dtype=torch.float32)
        return nn.functional.linear(hidden, self.weight).float()

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


def tokens_at_once(vocabulary: int) -> int:
    """Tokens in a chunk of `LOGITS_AT_ONCE`."""
    return max(1, LOGITS_AT_ONCE // vocabulary)


def token_logprobs(
    hidden: Float[Tensor, "N D"],
    head: Head,
    targets: Int[Tensor, "N"],
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """log π(target) and the entropy (nats, no gradient) of each token's distribution, both float32.

    Memory: one chunk's logits [chunk_tokens, V], whatever N is; by default `LOGITS_AT_ONCE` of them, whatever V is.
    """
    chunk_tokens = chunk_tokens or tokens_at_once(len(head.weight))
    logprobs, entropy = _ChunkedLogprobs.apply(hidden, head.weight, head.bias, targets, head, temperature, chunk_tokens)
    return logprobs, entropy


class _ChunkedLogprobs(torch.autograd.Function):
    """Recomputes the logits in the backward pass and adds up dW in float32."""

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
        entropy = torch.empty_like(logprobs)
        head = head.prepared()
        for chunk in _chunks(len(hidden), chunk_tokens):
            logits = head.logits(hidden[chunk], temperature)
            logprobs[chunk], entropy[chunk] = _chunk_forward(logits, targets[chunk])
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.head, ctx.temperature, ctx.chunk_tokens = head, temperature, chunk_tokens
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        of_logprobs = gradients[0]
        of_hidden = torch.empty_like(hidden)
        of_weight: Tensor | None = None
        of_bias = None if bias is None else torch.zeros(bias.shape, dtype=torch.float32, device=bias.device)
        head = ctx.head.prepared()
        for chunk in _chunks(len(hidden), ctx.chunk_tokens):
            logits = head.logits(hidden[chunk], ctx.temperature)
            of_logits = _chunk_backward(logits, targets[chunk], of_logprobs[chunk])
            of_logits = head.logits_gradient(of_logits, logits, ctx.temperature).to(weight.dtype)
            of_hidden[chunk] = of_logits @ weight
            product = of_logits.T @ hidden[chunk]
            of_weight = product.float() if of_weight is None else of_weight.add_(product)
            if of_bias is not None:
                of_bias += of_logits.sum(0, dtype=torch.float32)
        of_bias = None if of_bias is None else of_bias.to(bias.dtype)
        assert of_weight is not None
        return of_hidden, of_weight.to(weight.dtype), of_bias, None, None, None, None


@compiled_on_cuda
def _chunk_forward(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log π(target) and the entropy, [n] each, of a chunk's logits [n, V], which are used up."""
    logits -= logits.amax(-1, keepdim=True)
    # softmax is one pass over the logits, logsumexp three; the largest probability is 1/Z.
    probabilities = logits.softmax(-1)
    log_normaliser = -probabilities.amax(-1).log()
    logprobs = logits.gather(-1, targets[:, None]).squeeze(-1) - log_normaliser
    return logprobs, log_normaliser - logits.mul_(probabilities).sum(-1)


@compiled_on_cuda
def _chunk_backward(logits: Tensor, targets: Tensor, of_logprobs: Tensor) -> Tensor:
    """∂ logprob(target) / ∂ logits = onehot(target) − softmax(logits), times the former's gradient: [n, V]."""
    of_logits = logits.softmax(-1).mul_(-of_logprobs[:, None])
    return of_logits.scatter_add_(-1, targets[:, None], of_logprobs[:, None])


def _chunks(num_tokens: int, chunk_tokens: int) -> list[slice]:
    return [slice(first, first + chunk_tokens) for first in range(0, num_tokens, chunk_tokens)]
