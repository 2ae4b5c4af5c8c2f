"""The in-process engine: continuous batching over any transformers causal language model.

Each prompt is prefilled once for its K completions; finished ones leave the batch and waiting prompts enter it. A call
to `generate` is a loop of three steps: admit, decode, retire. It knows token ids only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from negaware.models.family import fused_decoder_of
from negaware.models.logprobs import head_of
from negaware.models.residual import keep_residual_float32
from negaware.rollout.cache import RowDecoder
from negaware.rollout.engine import SamplingParams
from negaware.rollout.graphs import GraphDecoder
from negaware.rollout.reference import copy_weights
from negaware.rollout.sampling import completion_seed, completion_uniforms, sample_tokens
from negaware.types import Completion


@dataclass(slots=True)
class _Sequence:
    """One completion in the making."""

    prompt_index: int
    completion_index: int
    seed: int
    uniforms: Tensor
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class LocalEngine:
    """Samples with a model of this process; it may be the very model that is trained (then weights are never copied).

    `max_sequences` completions are decoded at once; more wait. ValueError for a model whose layers keep a state that
    can't be split into rows of keys and values.
    """

    def __init__(self, model: PreTrainedModel, max_sequences: int = 256, version: int = 0) -> None:
        config = model.config.get_text_config(decoder=True)
        unsupported = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
        if model._is_stateful and not unsupported:
            unsupported = {"recurrent"}
        if getattr(config, "num_kv_shared_layers", 0):
            unsupported.add("shared")
        if unsupported:
            raise ValueError(
                f"The local engine can't sample from {type(model).__name__}: its layers of type "
                f"{', '.join(sorted(unsupported))} don't keep keys and values of their own; use a model whose layers "
                "are all full or sliding attention."
            )
        self.model = model
        self.head = head_of(model)
        self.fused = fused_decoder_of(model)
        if self.fused is None:
            keep_residual_float32(model)
        self.graphs = GraphDecoder(model) if model.device.type == "cuda" else None  # kept from call to call
        self.max_sequences = max_sequences
        self.version = version

    @torch.inference_mode()
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
        if not prompts:
            return []
        seeds = [
            [completion_seed(seed, index, k) for k in range(num_completions)]
            for index in indices or range(len(prompts))
        ]
        batch = _Batch(self, prompts, params, self._num_rows(len(prompts), num_completions))
        waiting = deque(range(len(prompts)))
        while waiting or batch.sequences:
            admitted: list[int] = []
            while waiting and len(batch.sequences) + (len(admitted) + 1) * num_completions <= batch.max_rows:
                admitted.append(waiting.popleft())
            num_sampled = batch.admit(admitted, [seeds[index] for index in admitted]) if admitted else batch.decode()
            batch.retire()
            if on_progress:
                on_progress(num_sampled)
        by_prompt = [batch.finished[index] for index in range(len(prompts))]
        return [tuple(group[k] for k in range(num_completions)) for group in by_prompt]

    def make_rows(self) -> RowDecoder | GraphDecoder:
        """What decodes a call's rows; its keys and values go with it."""
        if self.fused is not None:
            return RowDecoder(self.fused)
        return self.graphs or GraphDecoder(self.model)

    def _num_rows(self, num_prompts: int, num_completions: int) -> int:
        """Rows of the cache: no more than there are completions, and at least one prompt's."""
        return max(num_completions, min(self.max_sequences, num_prompts * num_completions))

    def load_weights(self, named_weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See `Engine.load_weights`."""
        copy_weights(self.model, named_weights)
        self.version = version

    def sleep(self) -> None:
        """See `Engine.sleep`. It keeps all: the model is the trainer's, or on several ranks a copy that stays."""


class _Batch:
    """The sequences being decoded, row i of the cache belonging to `sequences[i]`."""

    def __init__(
        self, engine: LocalEngine, prompts: Sequence[Sequence[int]], params: SamplingParams, max_rows: int
    ) -> None:
        self.version, self.head = engine.version, engine.head.prepared()
        self.prompts, self.params, self.max_rows = prompts, params, max_rows
        self.device = engine.model.device
        self.sequences: list[_Sequence] = []
        self.finished: dict[int, dict[int, Completion]] = {index: {} for index in range(len(prompts))}
        self.rows = engine.make_rows()
        longest = max(len(prompt) for prompt in prompts)
        self.rows.begin(max_rows, longest, params.max_new_tokens, params.max_tokens)

    def admit(self, indices: list[int], seeds: list[list[int]]) -> int:
        """Prefills these prompts once each and samples the first token of their completions, one a seed."""
        num_completions = len(seeds[0])
        hidden = self.rows.add_prompts([self.prompts[index] for index in indices], num_completions)
        added = []
        for index, own_seeds in zip(indices, seeds, strict=True):
            for k, own_seed in enumerate(own_seeds):
                uniforms = completion_uniforms(own_seed, self.params.max_new_tokens)
                added.append(_Sequence(index, k, own_seed, uniforms))
        self._sample(self.head.logits(hidden, 1.0).repeat_interleave(num_completions, dim=0), added)
        self.sequences += added
        return len(added)

    def decode(self) -> int:
        """Runs every sequence's last token through the model and samples its next."""
        tokens = torch.tensor([s.token_ids[-1] for s in self.sequences], device=self.device)
        hidden = self.rows.decode(tokens)
        self._sample(self.head.logits(hidden, 1.0), self.sequences)
        return len(self.sequences)

    def retire(self) -> None:
        """Takes finished sequences out; the last row takes a freed row's place."""
        params = self.params
        for row in reversed(range(len(self.sequences))):
            sequence = self.sequences[row]
            stopped = sequence.token_ids[-1] in params.stop_token_ids
            if not stopped and len(sequence.token_ids) < params.room(len(self.prompts[sequence.prompt_index])):
                continue
            self.finished[sequence.prompt_index][sequence.completion_index] = Completion.drawn(
                sequence.token_ids,
                sequence.logprobs,
                "stop" if stopped else "length",
                self.version,
                sequence.seed,
            )
            self.rows.remove_row(row)
            last = self.sequences.pop()
            if last is not sequence:
                self.sequences[row] = last

    def _sample(self, logits: Tensor, sequences: list[_Sequence]) -> None:
        uniforms = torch.stack([s.uniforms[len(s.token_ids)] for s in sequences]).to(self.device)
        tokens, logprobs = sample_tokens(logits, self.params, uniforms)
        for sequence, token, logprob in zip(sequences, tokens.tolist(), logprobs.tolist(), strict=True):
            sequence.token_ids.append(token)
            sequence.logprobs.append(logprob)
