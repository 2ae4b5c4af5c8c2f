"""A slow engine that is obviously right: one sequence at a time, the whole sequence again for every token, no cache.

The local engine is tested against it. Nothing but tests should sample with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from negaware.rollout.engine import Draft, Engine, Request
from negaware.rollout.sampling import completion_uniforms, sample_tokens


class ReferenceEngine(Engine):
    """Samples with any causal language model whose forward returns `.logits`."""

    def __init__(self, model: nn.Module, version: int = 0) -> None:
        self.model = model
        self.version = version
        self.requests: list[Request] = []

    def submit(self, request: Request) -> None:
        """See `Engine.submit`."""
        self.requests.append(request)

    @torch.inference_mode()
    def step(self) -> int:
        """See `Engine.step`. A token of every draft."""
        num_tokens = 0
        for request in list(self.requests):
            for draft in list(request.drafts):
                self._draw(request, draft)
                num_tokens += 1
            if not request.drafts:
                self.requests.remove(request)
        return num_tokens

    def _draw(self, request: Request, draft: Draft) -> None:
        params, place = request.params, len(draft.token_ids)
        sequence = torch.tensor([[*request.prompt, *draft.token_ids]], device=next(self.model.parameters()).device)
        logits = self.model(sequence, use_cache=False).logits[:, -1]
        uniform = completion_uniforms(draft.seed, params.max_new_tokens)[place]
        token, logprob = sample_tokens(logits, params, uniform[None])
        draft.token_ids.append(int(token))
        draft.logprobs.append(float(logprob))
        draft.stamp(self.version)
        stopped = draft.token_ids[-1] in params.stop_token_ids
        if stopped or place + 1 == params.room(len(request.prompt)):
            request.finish(draft, "stop" if stopped else "length")

    def withdraw(self, requests: Collection[Request] | None = None) -> list[Request]:
        """See `Engine.withdraw`."""
        found = [request for request in self.requests if requests is None or request in requests]
        self.requests = [request for request in self.requests if request not in found]
        return found

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
