"""The only place where logits become log-probabilities for training: one part of the vocabulary after the other.

The logits are never held at once; the backward pass computes them again. Parts of the vocabulary rather than of the
tokens, so that the head's gradient is written part by part and never added up.
N answer tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from negaware.models.cpu.products import HAS_BFLOAT16_PRODUCTS, bfloat16_products
from negaware.models.cuda.compiled import compiled_on_cuda
from negaware.models.description import describe

with suppress(ImportError):
    from jaxtyping import Float, Int


LOGITS_AT_ONCE = {"cpu": 4 * 2**20, "cuda": 64 * 2**20}
"""Logits in a part, by device (others as CUDA): on the CPU what its cache holds (16 MiB)."""
LEAST_COLUMNS = 512
"""Of a part, however many the tokens: products of fewer would be slow."""


@dataclass(frozen=True, slots=True)
class Head:
    """A language-model head: logits = softcap(scale · (hidden Wᵀ + b)), then divided by the temperature.

    `packed_weight` is what `prepared` adds for the time that the weight stays as it is: float32, as the CPU reads it.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    packed_weight: Tensor | None = None

    def of(self, model: PreTrainedModel) -> Head:
        """The head with the model's weights as they are now: sharded ones are others each time they are whole."""
        linear = model.get_output_embeddings()
        return replace(self, weight=linear.weight, bias=getattr(linear, "bias", None))

    def prepared(self) -> Head:
        """The head, its weight laid out for several calls of `logits`; make it again when the weight has changed."""
        if not _is_fast_bfloat16(self.weight):
            return self
        return replace(self, packed_weight=torch.ops.mkldnn._reorder_linear_weight(self.weight.detach().float()))

    def logits(self, hidden: Tensor, temperature: float) -> Tensor:
        """float32 logits [n, V] of hidden states [n, D], tempered.

        bfloat16 factors are multiplied as such, but their sums not rounded to bfloat16: a logit of 10 would be off by
        up to 0.03, and the log-probabilities of sampler and trainer with it.
        """
        if self.packed_weight is None:
            return self.part(hidden, slice(None), temperature)
        with bfloat16_products():
            product: Tensor = torch.ops.mkldnn._linear_pointwise(
                hidden.float(), self.packed_weight, None, "none", [], ""
            )
        return self._tempered(product, self.bias, temperature)

    def part(self, hidden: Tensor, columns: slice, temperature: float, reference: Tensor | None = None) -> Tensor:
        """float32 logits [n, …] of some columns; a reference [n, 1] is subtracted before the products are rounded.

        What matters are the logits near the target's, and the difference to it is small where they are.
        """
        weight = self.weight[columns]
        if reference is not None:
            product = torch.addmm(-reference, hidden, weight.T).float()
        elif hidden.is_cuda and hidden.dtype == torch.bfloat16:
            product = torch.mm(hidden, weight.t(), out_dtype=torch.float32)
        elif weight.dtype == torch.bfloat16:  # its own product would round logits of 100 to the next half
            with bfloat16_products():
                product = nn.functional.linear(hidden.float(), weight.float())
        else:
            product = nn.functional.linear(hidden, weight).float()
        return self._tempered(product, None if self.bias is None else self.bias[columns], temperature)

    def reference(self, hidden: Tensor, targets: Tensor) -> Tensor | None:
        """The targets' products [n, 1], rounded as `part` takes them; None where sums are float32 anyway.

        A soft cap has to see the whole logit.
        """
        if self.softcap is not None or not _is_fast_bfloat16(self.weight):
            return None
        return torch.linalg.vecdot(hidden.float(), self.weight[targets].float())[:, None].to(hidden.dtype)

    def _tempered(self, product: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
        if bias is not None:
            product += bias
        if self.scale != 1.0:
            product *= self.scale
        if self.softcap is not None:
            product = self.softcap * torch.tanh(product / self.softcap)
        return product if temperature == 1.0 else product / temperature

    def logits_gradient(self, gradient: Tensor, logits: Tensor, temperature: float) -> Tensor:
        """The gradient of the matrix product, from the gradient of the tempered logits."""
        if temperature != 1.0:
            gradient = gradient / temperature
        if self.softcap is not None:
            gradient = gradient * (1 - (logits * temperature / self.softcap) ** 2)
        return gradient if self.scale == 1.0 else gradient * self.scale


def _is_fast_bfloat16(weight: Tensor) -> bool:
    return HAS_BFLOAT16_PRODUCTS and weight.dtype == torch.bfloat16 and weight.device.type == "cpu"


def head_of(model: PreTrainedModel) -> Head:
    """The model's head, checked once against its own forward. ValueError if the model does something else with it."""
    linear, known = model.get_output_embeddings(), describe(model)
    head = Head(linear.weight, getattr(linear, "bias", None), known.logit_scale, known.logit_softcap)
    tokens = torch.arange(4, device=model.device)[None]
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits.float()
        found = head.logits(hidden_states(model, tokens)[0], temperature=1.0)[None]
    if not torch.allclose(found, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
        raise ValueError(
            f"{type(model).__name__} computes its logits in a way that can't be split into parts "
            "(not scale, bias and softcap of one linear layer); it can't be trained here."
        )
    return head


def hidden_states(model: PreTrainedModel, tokens: Tensor, **inputs: Any) -> Tensor:
    """The decoder's last hidden states [R, T, D] of tokens [R, T]: everything but the head."""
    hidden = model.get_decoder()(input_ids=tokens, use_cache=False, **inputs).last_hidden_state
    assert isinstance(hidden, Tensor)
    return hidden


def token_logprobs(
    hidden: Float[Tensor, "N D"], head: Head, targets: Int[Tensor, " N"], temperature: float = 1.0
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """log π(target) and the entropy (nats, no gradient) of each token's distribution, both float32.

    Memory: `LOGITS_AT_ONCE` logits, whatever N and V are; beyond 8,192 tokens on the CPU, N · `LEAST_COLUMNS`.
    """
    logprobs, entropy = _Logprobs.apply(hidden, head.weight, head.bias, targets, head, temperature)
    return logprobs, entropy


class _Logprobs(torch.autograd.Function):
    """Keeps the normalisers only, and recomputes the logits in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: Head,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        reference = head.reference(hidden, targets)
        target_logits = torch.zeros(len(hidden), dtype=torch.float32, device=hidden.device)
        log_normaliser, mean = torch.full_like(target_logits, -torch.inf), torch.zeros_like(target_logits)
        for columns in _parts(hidden, weight):
            logits = head.part(hidden, columns, temperature, reference)
            part_normaliser, part_mean = _part_forward(logits)
            before, log_normaliser = log_normaliser, torch.logaddexp(log_normaliser, part_normaliser)
            mean = mean * (before - log_normaliser).exp() + part_mean * (part_normaliser - log_normaliser).exp()
            is_here, place = _targets_in(columns, targets, logits)
            target_logits = torch.where(is_here, logits.gather(1, place).squeeze(1), target_logits)
        ctx.save_for_backward(hidden, weight, bias, targets, reference, log_normaliser)
        ctx.head, ctx.temperature = head, temperature
        logprobs, entropy = target_logits - log_normaliser, log_normaliser - mean
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, reference, log_normaliser = ctx.saved_tensors
        grad_logprobs, head = gradients[0], ctx.head
        grad_hidden = torch.zeros_like(hidden, dtype=torch.promote_types(hidden.dtype, torch.float32))
        # A frozen head, as under LoRA, needs none: a third of the work.
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        grad_bias = torch.empty_like(bias) if ctx.needs_input_grad[2] else None
        for columns in _parts(hidden, weight):
            logits = head.part(hidden, columns, ctx.temperature, reference)
            grad_logits = _part_backward(logits, log_normaliser, grad_logprobs)
            is_here, place = _targets_in(columns, targets, logits)
            grad_targets = grad_logits.gather(1, place) + torch.where(is_here, grad_logprobs, 0)[:, None]
            grad_logits.scatter_(1, place, grad_targets)
            grad_logits = head.logits_gradient(grad_logits, logits, ctx.temperature).to(weight.dtype)
            grad_hidden += (grad_logits @ weight[columns]).to(grad_hidden.dtype)
            if grad_weight is not None:
                grad_weight[columns] = grad_logits.T @ hidden
            if grad_bias is not None:
                grad_bias[columns] = grad_logits.sum(0, dtype=torch.float32)
        return grad_hidden.to(hidden.dtype), grad_weight, grad_bias, None, None, None


@compiled_on_cuda
def _part_forward(logits: Tensor) -> tuple[Tensor, Tensor]:
    """log Σ exp of a part's logits [n, …], and their mean under its own softmax: [n] each."""
    # softmax is one pass over the logits, logsumexp three; the largest probability is 1/Z.
    probabilities = logits.softmax(-1)
    log_normaliser = logits.amax(-1) - probabilities.amax(-1).log()
    return log_normaliser, torch.linalg.vecdot(probabilities, logits)


@compiled_on_cuda
def _part_backward(logits: Tensor, log_normaliser: Tensor, grad_logprobs: Tensor) -> Tensor:
    """−softmax(logits) times the gradient of the log-probabilities; the target's +1 is added elsewhere."""
    return (logits - log_normaliser[:, None]).exp_().mul_(-grad_logprobs[:, None])


def _parts(hidden: Tensor, weight: Tensor) -> list[slice]:
    """The vocabulary in parts of at most `LOGITS_AT_ONCE` logits."""
    at_once = LOGITS_AT_ONCE.get(hidden.device.type, LOGITS_AT_ONCE["cuda"])
    size = max(at_once // max(len(hidden), 1), LEAST_COLUMNS)
    return [slice(first, first + size) for first in range(0, len(weight), size)]


def _targets_in(columns: slice, targets: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each token's target [n] is in these columns, and where in a part's logits [n, …] it is, [n, 1].

    Of a target elsewhere some place. (To pick out the tokens whose target is here, a GPU would have to be waited for:
    how many they are decides a shape.)
    """
    is_here = (targets >= columns.start) & (targets < columns.stop)
    return is_here, (targets - columns.start).clamp(0, logits.shape[1] - 1)[:, None]
