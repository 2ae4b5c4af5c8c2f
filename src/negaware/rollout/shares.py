"""Each rank samples and grades its share, and every rank has the whole: what it calls sees one engine, one verifier.

So the collector and the evaluation are the same code on one rank and on many, and come to the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from torch import Tensor

from negaware.ranks import Ranks
from negaware.rollout.engine import Engine, SamplingParams
from negaware.types import Completion, Problem, Verdict, Verifier

Item = TypeVar("Item")


class SharedEngine:
    """The engines of all ranks as one. `ranks_per_engine` ranks in a row are one engine together (tensor parallel)."""

    def __init__(self, engine: Engine, ranks: Ranks, ranks_per_engine: int = 1) -> None:
        self.engine, self.ranks, self.ranks_per_engine = engine, ranks, ranks_per_engine

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        num_completions: int,
        params: SamplingParams,
        seed: int,
        on_progress: Callable[[int], None] | None = None,
        indices: Sequence[int] | None = None,
    ) -> list[tuple[Completion, ...]]:
        """See `Engine.generate`. Every num_engines-th prompt is this rank's."""
        indices = indices or range(len(prompts))
        num_engines = self.ranks.size // self.ranks_per_engine
        place = self.ranks.rank // self.ranks_per_engine
        own = self.engine.generate(
            prompts[place::num_engines], num_completions, params, seed, on_progress, indices[place::num_engines]
        )
        speaks = self.ranks.rank % self.ranks_per_engine == 0  # the ranks of an engine have the same answers
        gathered = self.ranks.gather(own if speaks else [])[:: self.ranks_per_engine]
        if on_progress:
            others = (done for share in gathered[:place] + gathered[place + 1 :] for group in share for done in group)
            on_progress(sum(len(done.token_ids) for done in others))
        return _woven(gathered, len(prompts))

    def load_weights(self, named_weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See `Engine.load_weights`; every rank must have the same weights to give."""
        self.engine.load_weights(named_weights, version)

    def sleep(self) -> None:
        """See `Engine.sleep`."""
        self.engine.sleep()


class SharedVerifier:
    """The verifiers of all ranks as one: each grades every num_ranks-th answer."""

    def __init__(self, verifier: Verifier, ranks: Ranks) -> None:
        self.verifier, self.ranks = verifier, ranks

    def grade(self, texts: Sequence[str], problems: Sequence[Problem]) -> list[Verdict]:
        """See `Verifier.grade`."""
        mine = slice(self.ranks.rank, None, self.ranks.size)
        return _woven(self.ranks.gather(self.verifier.grade(texts[mine], problems[mine])), len(texts))

    def close(self) -> None:
        """See `Verifier.close`."""
        self.verifier.close()


def _woven(shares: Sequence[Sequence[Item]], total: int) -> list[Item]:
    """The items in their order, where share i holds items i, i + n, i + 2n … of n shares."""
    return [shares[index % len(shares)][index // len(shares)] for index in range(total)]
