"""The in-process engine: continuous batching over any transformers causal language model.

Each prompt is prefilled once for its K completions; finished ones leave the batch and waiting prompts enter it. A step
admits or decodes, and retires what is finished then. It knows token ids only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from negaware.models.network import Network
from negaware.rollout.engine import Draft, Engine, Request, SamplingParams
from negaware.rollout.reference import copy_weights
from negaware.rollout.sampling import completion_uniforms, sample_tokens


@dataclass(slots=True, eq=False)
class _Sequence:
    """A row of the batch: a draft of a request, and the uniform numbers that choose its tokens."""

    request: Request
    draft: Draft
    uniforms: Tensor


class LocalEngine(Engine):
    """Samples with a model of this process; it may be the very model that is trained (then weights are never copied).

    `max_sequences` completions are decoded at once; more wait. ValueError for a model whose layers keep a state that
    can't be split into rows of keys and values.
    """

    def __init__(self, network: Network, max_sequences: int = 256, version: int = 0) -> None:
        if unsupported := network.description.other_states:
            raise ValueError(
                f"The local engine can't sample from {type(network.model).__name__}: its layers of type "
                f"{', '.join(unsupported)} don't keep keys and values of their own; use a model whose layers "
                "are all full or sliding attention."
            )
        self.network = network
        self.max_sequences = max_sequences
        self.version = version
        self.waiting: deque[Request] = deque()
        self.batch: _Batch | None = None

    def submit(self, request: Request) -> None:
        """See `Engine.submit`."""
        self.waiting.append(request)

    @torch.inference_mode()
    def step(self) -> int:
        """See `Engine.step`. Requests with other parameters than those under way wait until these are done."""
        if self.batch is None:
            if not self.waiting:
                return 0
            self.batch = _Batch(self, self.waiting[0].params)
        batch, admitted = self.batch, list[Request]()
        num_rows = len(batch.sequences)
        while self.waiting and self.waiting[0].params == batch.params:
            num_rows += len(self.waiting[0].drafts)
            if num_rows > self.max_sequences and (batch.sequences or admitted):
                break
            admitted.append(self.waiting.popleft())
        if admitted:
            batch.make_room([*admitted, *self.waiting], self.max_sequences)
        num_tokens = batch.admit(admitted) if admitted else 0
        if not num_tokens:  # nor if all that was admitted had begun
            num_tokens = batch.decode()
        batch.retire()
        if not batch.sequences and not (self.waiting and self.waiting[0].params == batch.params):
            self.batch = None  # its keys and values go with it
        return num_tokens

    @torch.inference_mode()
    def withdraw(self, requests: Collection[Request] | None = None) -> list[Request]:
        """See `Engine.withdraw`."""
        running = [] if self.batch is None else self.batch.requests
        found = [each for each in [*running, *self.waiting] if requests is None or each in requests]
        self.waiting = deque(request for request in self.waiting if request not in found)
        if self.batch is not None and len(running) > sum(request in found for request in running):
            self.batch.remove(found)
        else:
            self.batch = None
        for request in found:
            for draft in request.drafts:
                draft.stamp(self.version)
        return found

    def load_weights(self, named_weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See `Engine.load_weights`."""
        begun = self.withdraw()
        copy_weights(self.network.model, named_weights)
        self.version = version
        self.waiting.extend(begun)

    def sleep(self) -> None:
        """See `Engine.sleep`. It keeps all: the model is the trainer's, or on several ranks a copy that stays."""


class _Batch:
    """The sequences being decoded with the same parameters, row i of the cache belonging to `sequences[i]`."""

    def __init__(self, engine: LocalEngine, params: SamplingParams) -> None:
        network = engine.network
        self.version, self.head = engine.version, network.head.of(network.model).prepared()
        self.params, self.device = params, network.device
        self.rows = network.decoder.make_rows()
        self.max_rows = self.longest_prompt = 0
        self.sequences: list[_Sequence] = []
        self.requests: list[Request] = []
        """Those with a row, in the order they came in."""

    def make_room(self, requests: Sequence[Request], max_sequences: int) -> None:
        """Makes room for the first of these, and for the others as far as they may run beside it."""
        fitting = [request for request in requests if request.params == self.params]
        num_rows = len(self.sequences) + sum(len(request.drafts) for request in fitting)
        max_rows = max(min(num_rows, max_sequences), len(fitting[0].drafts), self.max_rows)
        longest = max(self.longest_prompt, *(len(request.prompt) for request in fitting))
        if not self.max_rows:
            self.rows.begin(max_rows, longest, self.params.max_new_tokens, self.params.max_tokens)
        elif max_rows > self.max_rows or longest > self.longest_prompt:
            self.rows.make_room(max_rows, longest)
        self.max_rows, self.longest_prompt = max_rows, longest

    def admit(self, requests: Sequence[Request]) -> int:
        """Prefills these requests' prompts once each; samples the first token of drafts that have none."""
        begun = [request for request in requests if any(draft.token_ids for draft in request.drafts)]
        new = [request for request in requests if request not in begun]
        num_tokens = 0
        for num_drafts in {len(request.drafts): None for request in new}:
            num_tokens += self._begin([request for request in new if len(request.drafts) == num_drafts], num_drafts)
        for request in begun:
            self.rows.add_begun(request.prompt, [draft.token_ids[:-1] for draft in request.drafts])
            self._add([request])
        return num_tokens

    def _begin(self, requests: Sequence[Request], num_drafts: int) -> int:
        """Requests of so many drafts each."""
        hidden = self.rows.add_prompts([request.prompt for request in requests], num_drafts)
        added = self._add(requests)
        self._sample(self.head.logits(hidden, 1.0).repeat_interleave(num_drafts, dim=0), added)
        return len(added)

    def _add(self, requests: Sequence[Request]) -> list[_Sequence]:
        """The new rows' sequences."""
        self.requests += requests
        added = [
            _Sequence(request, draft, completion_uniforms(draft.seed, self.params.max_new_tokens))
            for request in requests
            for draft in request.drafts
        ]
        self.sequences += added
        return added

    def decode(self) -> int:
        """Runs every sequence's last token through the model and samples its next."""
        tokens = torch.tensor([s.draft.token_ids[-1] for s in self.sequences], device=self.device)
        hidden = self.rows.decode(tokens)
        self._sample(self.head.logits(hidden, 1.0), self.sequences)
        return len(self.sequences)

    def retire(self) -> None:
        """Takes finished sequences out."""
        for row in reversed(range(len(self.sequences))):
            draft, request = self.sequences[row].draft, self.sequences[row].request
            stopped = draft.token_ids[-1] in self.params.stop_token_ids
            if stopped or len(draft.token_ids) == self.params.room(len(request.prompt)):
                draft.stamp(self.version)
                request.finish(draft, "stop" if stopped else "length")
                if not request.drafts:
                    self.requests.remove(request)
                self._remove_row(row)

    def remove(self, requests: Collection[Request]) -> None:
        """Takes the rows of these requests out."""
        for row in reversed(range(len(self.sequences))):
            if self.sequences[row].request in requests:
                self._remove_row(row)
        self.requests = [request for request in self.requests if request not in requests]

    def _remove_row(self, row: int) -> None:
        """The last row takes its place."""
        self.rows.remove_row(row)
        last = self.sequences.pop()
        if row < len(self.sequences):
            self.sequences[row] = last

    def _sample(self, logits: Tensor, sequences: list[_Sequence]) -> None:
        uniforms = torch.stack([s.uniforms[len(s.draft.token_ids)] for s in sequences]).to(self.device)
        tokens, logprobs = sample_tokens(logits, self.params, uniforms)
        for sequence, token, logprob in zip(sequences, tokens.tolist(), logprobs.tolist(), strict=True):
            sequence.draft.token_ids.append(token)
            sequence.draft.logprobs.append(logprob)
