"""A slow engine that is obviously right: one sequence at a time, the whole sequence again for every token, no cache.

The local engine is tested against it. Nothing but tests should sample with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from negaware.rollout.engine import SamplingParams
from negaware.rollout.sampling import completion_seed, completion_uniforms, sample_tokens
from negaware.types import Completion


class ReferenceEngine:
    """Samples with any causal language model whose forward returns `.logits`."""

    def __init__(self, model: nn.Module, version: int = 0) -> None:
        self.model = model
        self.version = version

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        num_completions: int,
        params: SamplingParams,
        seed: int,
        on_progress: Callable[[int], None] | None = None,
        indices: Sequence[int] | None = None,
    ) -> list[tuple[Completion, ...]]:
        """See `Engine.generate`."""
        groups = []
        for index, prompt in zip(indices or range(len(prompts)), prompts, strict=True):
            seeds = [completion_seed(seed, index, k) for k in range(num_completions)]
            groups.append(tuple(self._complete(list(prompt), params, s) for s in seeds))
            if on_progress:
                on_progress(sum(len(completion.token_ids) for completion in groups[-1]))
        return groups

    @torch.inference_mode()
    def _complete(self, prompt: list[int], params: SamplingParams, seed: int) -> Completion:
        token_ids: list[int] = []
        logprobs: list[float] = []
        for uniform in completion_uniforms(seed, params.max_new_tokens)[: params.room(len(prompt))]:
            sequence = torch.tensor([prompt + token_ids], device=next(self.model.parameters()).device)
            logits = self.model(sequence, use_cache=False).logits[:, -1]
            token, logprob = sample_tokens(logits, params, uniform[None])
            token_ids.append(int(token))
            logprobs.append(float(logprob))
            if token_ids[-1] in params.stop_token_ids:
                return Completion.drawn(token_ids, logprobs, "stop", self.version, seed)
        return Completion.drawn(token_ids, logprobs, "length", self.version, seed)

    def load_weights(self, named_weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See `Engine.load_weights`."""
        copy_weights(self.model, named_weights)
        self.version = version

    def sleep(self) -> None:
        """See `Engine.sleep`. It keeps nothing but the model."""


@torch.no_grad()
def copy_weights(model: nn.Module, named_weights: Iterable[tuple[str, Tensor]]) -> None:
    """Copies the weights into the model's; those that are the model's own are left as they are."""
    own = model.state_dict(keep_vars=True)
    for name, weight in named_weights:
        if own[name] is not weight:
            own[name].copy_(weight)
        del weight  # before the next one is made
