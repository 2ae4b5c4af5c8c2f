"""What an engine is: token ids in, sampled token ids out. It knows neither texts nor verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from negaware.types import Completion

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


class Engine(Protocol):
    """Samples completions; every engine passes tests/rollout/conformance.py."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        num_completions: int,
        params: SamplingParams,
        seed: int,
        on_progress: Callable[[int], None] | None = None,
        indices: Sequence[int] | None = None,
    ) -> list[tuple[Completion, ...]]:
        """`num_completions` completions for each prompt, in order; the same seed gives the same tokens.

        A completion to a prompt has at most `params.room(len(prompt))` tokens, which must be one or more.
        `on_progress` is told the number of tokens sampled since it was last called. `indices` are the prompts' places
        in a whole call of which these are a share: the share's completions are then those of the whole call.
        """
        ...

    def load_weights(self, named_weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Samples from these weights from now on and stamps completions with `version`."""
        ...

    def sleep(self) -> None:
        """Gives back what memory it can until `load_weights` is next called, which must be before `generate`."""
        ...
