"""The frozen data that the packages exchange: problems, answers, verdicts and groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Reason = Literal["correct", "wrong", "no_answer", "timeout", "error"]
FinishReason = Literal["stop", "length"]
Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with its gold answer; `metadata` is what else its verifier needs."""

    id: str
    question: str
    answer: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an answer is correct, the reason, and the value that was found in the text, if any, or the error."""

    correct: bool
    reason: Reason
    extracted: str | None = None


_NO_TOKENS, _NO_LOGPROBS = np.zeros(0, np.int32), np.zeros(0, np.float32)


class Span(NamedTuple):
    """Successive tokens of an answer that one version of the policy drew."""

    version: int
    num_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """One sampled answer of T tokens (stop token included), as the engine made it.

    token_ids int32 [T]; logprobs float32 [T], under the distribution that each token was drawn from; spans: which
    versions of the policy drew them; seed: different for each answer of a run. Only the rank that sampled the answer
    and the rank that trains on it have the two arrays; on other ranks they are empty.
    """

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    finish_reason: FinishReason
    spans: tuple[Span, ...]
    seed: int

    @classmethod
    def drawn(
        cls, token_ids: ArrayLike, logprobs: ArrayLike, finish_reason: FinishReason, version: int, seed: int
    ) -> Completion:
        """A whole answer that one version of the policy drew."""
        tokens = np.asarray(token_ids, np.int32)
        return cls(tokens, np.asarray(logprobs, np.float32), finish_reason, (Span(version, len(tokens)),), seed)

    @classmethod
    def elsewhere(cls, finish_reason: FinishReason, spans: tuple[Span, ...], seed: int) -> Completion:
        """An answer whose tokens are on another rank."""
        return cls(_NO_TOKENS, _NO_LOGPROBS, finish_reason, spans, seed)

    @property
    def num_tokens(self) -> int:
        """T."""
        return sum(span.num_tokens for span in self.spans)

    @property
    def is_here(self) -> bool:
        """Whether this process has its tokens."""
        return len(self.token_ids) == self.num_tokens

    @property
    def versions(self) -> NDArray[np.int64]:
        """The policy version that drew each token, [T]."""
        return np.repeat([span.version for span in self.spans], [span.num_tokens for span in self.spans])

    def __eq__(self, other: object) -> bool:
        """Whether all fields are equal, arrays bit for bit."""
        if not isinstance(other, Completion):
            return NotImplemented
        return (self.finish_reason, self.spans, self.seed) == (other.finish_reason, other.spans, other.seed) and (
            np.array_equal(self.token_ids, other.token_ids) and np.array_equal(self.logprobs, other.logprobs)
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class Group:
    """One problem, its prompt's tokens, and its K completions with their texts and verdicts, in the same order.

    Only the rank that sampled the group, and the first rank, which writes the texts, have them; on others they are
    empty.
    """

    problem: Problem
    prompt_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    texts: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    rewards: tuple[float, ...] | None = None
    """The reward of each completion if it isn't just the verdict: 1 or 0, minus a penalty for its length."""

    @property
    def pass_rate(self) -> float:
        """The fraction of right answers, r̂ = (1/K) Σ r_i."""
        return sum(verdict.correct for verdict in self.verdicts) / len(self.verdicts)


class Verifier(Protocol):
    """Answer texts → verdicts. It never raises for a text and never hangs."""

    def grade(self, texts: Sequence[str], problems: Sequence[Problem]) -> list[Verdict]:
        """One verdict for each text, in order; `problems[i]` is the problem that `texts[i]` answers."""
        ...

    def close(self) -> None:
        """Ends its worker processes."""
        ...
