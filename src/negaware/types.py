"""The frozen carriers that the packages exchange: facts about questions, answers and batches.

They hold data and know nothing of models, verifiers or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Reason = Literal["correct", "wrong", "no_answer", "timeout", "error"]
FinishReason = Literal["stop", "length"]
Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with its gold answer; `metadata` is what its own verifier may need besides."""

    id: str
    question: str
    answer: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the verifier says of one answer, why, and the value it found in the text (None: none), or its error."""

    correct: bool
    reason: Reason
    extracted: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer: its tokens (stop token included), their log-probabilities under the distribution
    they were sampled from, and where they came from (policy version and seed)."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    version: int
    seed: int


@dataclass(frozen=True, slots=True)
class Group:
    """One problem, its prompt's tokens, and its K completions with their texts and verdicts, in the same order."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    texts: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    rewards: tuple[float, ...] | None = None
    """What each completion earns, where that isn't its verdict alone: 1 or 0, less what its length costs."""

    @property
    def pass_rate(self) -> float:
        """Share of right answers, r̂ = (1/K) Σ r_i."""
        return sum(verdict.correct for verdict in self.verdicts) / len(self.verdicts)


class Verifier(Protocol):
    """Answer texts → verdicts. Total: it never raises for a text and never hangs."""

    def grade(self, texts: Sequence[str], problems: Sequence[Problem]) -> list[Verdict]:
        """One verdict a text, in order; `problems[i]` is the problem that `texts[i]` answers."""
        ...

    def close(self) -> None:
        """Ends its worker processes."""
        ...
