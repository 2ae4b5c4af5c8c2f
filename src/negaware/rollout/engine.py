"""What an engine is: questions in, as token ids, and sampled token ids out. It knows neither texts nor verdicts.

It works on requests: they are submitted, sampled a little further with every step, and completions are taken from them
as they finish, so that nobody waits for the longest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from negaware.seeds import completion_seed
from negaware.types import Completion, FinishReason, Span

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. `temperature` 0 is greedy; `top_p` 1 and `top_k` 0 leave the distribution whole.

    `stop_token_ids` end an answer and belong to it; `max_new_tokens` counts them too. `max_tokens` is the longest
    sequence that the model takes, prompt and answer together; None if every prompt is known to leave room enough.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_token_ids: tuple[int, ...] = ()
    max_tokens: int | None = None

    def room(self, prompt_tokens: int) -> int:
        """The longest answer to a prompt of so many tokens; 0 if the prompt leaves no room for one."""
        if self.max_tokens is None:
            return self.max_new_tokens
        return max(0, min(self.max_new_tokens, self.max_tokens - prompt_tokens))


@dataclass(slots=True, eq=False)
class Draft:
    """A completion in the making: its seed, the tokens drawn so far, and which versions of the policy drew them."""

    seed: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    def stamp(self, version: int) -> None:
        """Says that this version drew every token since the last stamp."""
        num_tokens = len(self.token_ids) - sum(span.num_tokens for span in self.spans)
        if num_tokens and self.spans and self.spans[-1].version == version:
            num_tokens += self.spans.pop().num_tokens
        if num_tokens:
            self.spans.append(Span(version, num_tokens))

    def finished(self, finish_reason: FinishReason) -> Completion:
        """The completion, once all its tokens are drawn and stamped."""
        token_ids, logprobs = np.array(self.token_ids, np.int32), np.array(self.logprobs, np.float32)
        return Completion(token_ids, logprobs, finish_reason, tuple(self.spans), self.seed)


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A question asked several times: a draft for each answer that is still to be finished, and what is finished.

    Drafts may have begun when they are submitted: an engine goes on with them, with keys and values of its present
    weights.
    """

    prompt: Sequence[int]
    params: SamplingParams
    drafts: list[Draft]
    finished: list[Completion] = field(default_factory=list)

    @classmethod
    def new(
        cls, prompt: Sequence[int], params: SamplingParams, num_completions: int, seed: int, index: int = 0
    ) -> Request:
        """The question with this index among all that are sampled from `seed`, with nothing drawn yet."""
        return cls(prompt, params, [Draft(completion_seed(seed, index, k)) for k in range(num_completions)])

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of its drafts, in order."""
        return tuple(draft.seed for draft in self.drafts)

    def finish(self, draft: Draft, finish_reason: FinishReason) -> None:
        """Moves a draft whose last token is drawn and stamped to what is finished."""
        self.drafts.remove(draft)
        self.finished.append(draft.finished(finish_reason))

    def take(self) -> list[Completion]:
        """What was finished since this was last called."""
        taken = list(self.finished)
        self.finished.clear()
        return taken


class Engine(ABC):
    """Samples completions; every engine passes tests/rollout/conformance.py.

    A completion has at most `params.room(len(prompt))` tokens, which must be one or more. It depends on its prompt, its
    seed and the weights, and on nothing that is sampled beside it.
    """

    samples_alone = False
    """Whether sampling goes on between the steps, while the caller does something else."""

    @abstractmethod
    def submit(self, request: Request) -> None:
        """Takes a request in, to be sampled in the steps to come."""

    @abstractmethod
    def step(self) -> int:
        """Samples what is under way a little further; the number of tokens drawn, 0 if nothing is under way."""

    @abstractmethod
    def withdraw(self, requests: Collection[Request] | None = None) -> list[Request]:
        """Stops these requests, or all. Returns those that were under way, in the order they came in."""

    @abstractmethod
    def load_weights(self, named_weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Samples from these weights from now on, and stamps tokens with `version`; what is under way goes on."""

    @abstractmethod
    def sleep(self) -> None:
        """Gives back what memory it can until `load_weights` is next called; nothing may be under way."""

    def run(
        self, requests: Sequence[Request], on_progress: Callable[[int], None] | None = None
    ) -> Iterator[list[Completion]]:
        """Samples these to their end; of each step the completions that were finished, if any.

        `on_progress` is told the number of tokens sampled since it was last called.
        """
        try:
            for request in requests:
                self.submit(request)
            while any(request.drafts for request in requests):
                num_tokens = self.step()
                if on_progress:
                    on_progress(num_tokens)
                if finished := [completion for request in requests for completion in request.take()]:
                    yield finished
        except BaseException:  # an interrupt, say: the next call finds an engine with nothing of this to do
            self.withdraw(requests)
            raise

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        num_completions: int,
        params: SamplingParams,
        seed: int,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[tuple[Completion, ...]]:
        """`num_completions` completions for each prompt, in order; the same seed gives the same tokens."""
        requests = [Request.new(prompt, params, num_completions, seed, index) for index, prompt in enumerate(prompts)]
        orders = [request.seeds for request in requests]
        done = {completion.seed: completion for step in self.run(requests, on_progress) for completion in step}
        return [tuple(done[each] for each in order) for order in orders]
