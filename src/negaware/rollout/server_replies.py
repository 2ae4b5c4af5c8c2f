"""What a vLLM server says, declared: how each reply looks, and what an answer must hold to be trained on.

A log-probability that no sampler can have, a token outside the vocabulary or an answer of another length than it was
asked for would be trained on as if it were true. It knows no connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

IMPOSSIBLE = -9999.0
"""How vLLM writes a log-probability of −∞, or one that it doesn't know."""
ROUNDING = 1e-4
"""Above 0 by so much a log-probability may be by rounding alone."""
EVENT_BYTES, TOKEN_BYTES = 2**20, 2**10
"""An event has at most so many bytes, and so many more for each token: vLLM writes about 150."""


class _Reply(BaseModel):
    """Strict: a text or a bool is no number."""

    model_config = ConfigDict(strict=True, frozen=True)


class Status(_Reply):
    """Of `/pause` and `/resume`."""

    status: str


class Loaded(_Reply):
    """Of `/collective_rpc`: what each worker returned."""

    results: Annotated[list[Any], Field(min_length=1)]


class Version(_Reply):
    """Of `/version`."""

    version: str


class Success(_Reply):
    """Of `/reset_prefix_cache` and `/update_weight_version`."""

    success: bool


class _ModelSettings(_Reply):
    max_model_len: Annotated[int, Field(ge=1)]
    logprobs_mode: str


class _DeviceSettings(_Reply):
    device: str


class _SchedulerSettings(_Reply):
    enable_chunked_prefill: bool


class Settings(_Reply):
    """The part of the server's settings that sampling depends on."""

    model_config = ConfigDict(protected_namespaces=())

    model_settings: _ModelSettings = Field(alias="model_config")
    device_config: _DeviceSettings
    scheduler_config: _SchedulerSettings


class ServerInfo(_Reply):
    """Of `/server_info`."""

    vllm_config: Settings


class _Sampled(_Reply):
    token_id: int
    logprob: Annotated[float, Field(gt=IMPOSSIBLE, le=ROUNDING, allow_inf_nan=False)]


class _Logprobs(_Reply):
    content: list[_Sampled]


class _Span(_Reply):
    version: str
    start: int
    end: int


class _Choice(_Reply):
    index: Literal[0]
    token_ids: list[Annotated[int, Field(ge=0)]]
    logprobs: _Logprobs
    finish_reason: str | None = None
    weight_versions: list[_Span] | None = None


class _Error(_Reply):
    message: str


class Event(_Reply):
    """A part of an answer, as `/inference/v1/generate` streams it, or why there is none."""

    error: _Error | None = None
    choices: Annotated[list[_Choice], Field(max_length=1)] = []


@dataclass(slots=True)
class Answer:
    """A streamed answer, put together and checked as it comes; ValueError for what can't have been sampled."""

    max_tokens: int
    stop_token_ids: tuple[int, ...]
    vocabulary: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    weights: list[tuple[str, int]] = field(default_factory=list)
    """The server's names of those that sampled it, in turn, each with the number of tokens."""

    def add(self, event: Event) -> int:
        """Takes an event in and returns the number of tokens that came with it."""
        if not event.choices:
            raise ValueError("an event with no choice")
        (choice,) = event.choices
        if self.finish_reason is not None:
            raise ValueError("more tokens after the end of an answer")
        content = choice.logprobs.content
        if [at.token_id for at in content] != choice.token_ids:
            raise ValueError(f"log-probabilities of {len(content)} tokens for {len(choice.token_ids)}, or of others")
        if (largest := max(choice.token_ids, default=0)) >= self.vocabulary:
            raise ValueError(f"token {str(largest)[:20]}, of a vocabulary of {self.vocabulary}")
        self.token_ids += choice.token_ids
        self.logprobs += [min(at.logprob, 0.0) for at in content]
        if len(self.token_ids) > self.max_tokens:
            raise ValueError(f"{len(self.token_ids)} tokens or more, where {self.max_tokens} were asked for")
        if choice.finish_reason is not None:
            self._finish(choice.finish_reason, choice.weight_versions or [])
        return len(choice.token_ids)

    def _finish(self, reason: str, spans: Sequence[_Span]) -> None:
        self.finish_reason = reason
        if reason == "abort":
            return
        if reason not in ("stop", "length"):
            raise ValueError(f"finish_reason is {reason!r}")
        if not self.token_ids:
            raise ValueError("an answer without a token")
        num_tokens, stops = len(self.token_ids), self.stop_token_ids
        places = [place for place, token in enumerate(self.token_ids) if token in stops]
        if reason == "stop" and not places:
            raise ValueError("finish_reason is 'stop', of an answer without a stop token")
        if places and (places[0] < num_tokens - 1 or reason == "length"):
            raise ValueError(f"an answer that goes on after its stop token, token {places[0] + 1} of {num_tokens}")
        if reason == "length" and num_tokens < self.max_tokens:
            raise ValueError(f"finish_reason is 'length' after {num_tokens} tokens, of {self.max_tokens} asked for")
        if [0, *(span.end for span in spans)] != [*(span.start for span in spans), num_tokens]:
            raise ValueError(f"weight_versions that don't cover its {num_tokens} tokens, each once")
        self.weights = [(span.version, span.end - span.start) for span in spans]
