"""The one place where questions are asked: sampled, decoded, judged. Of several ranks each asks its share of them.

The tokens stay with the rank that sampled them. The others hear how long its answers are, how they ended and what the
verdicts are; the first rank, which writes them, gets the texts too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from negaware.ranks import ALONE, Ranks
from negaware.rollout.engine import Engine, SamplingParams
from negaware.tasks.task import Task
from negaware.types import Completion, Group, Message, Problem

Progress = Callable[[int], None]
"""Is told the number of tokens sampled since it was last called."""


@dataclass(frozen=True, slots=True)
class Asker:
    """An engine, the codec's `encode` and `decode` around its tokens, and the ranks that share the questions.

    `ranks_per_engine` ranks in a row are one engine together (tensor parallel). They sample the same answers, and each
    keeps and judges its share.
    """

    engine: Engine
    encode: Callable[[Sequence[Message]], list[int]]
    decode: Callable[[Sequence[int]], str]
    ranks: Ranks = ALONE
    ranks_per_engine: int = 1

    def ask(
        self,
        task: Task,
        problems: Sequence[Problem],
        prompts: Sequence[tuple[int, ...]],
        num_completions: int,
        params: SamplingParams,
        seed: int,
        on_progress: Progress | None = None,
        indices: Sequence[int] | None = None,
    ) -> list[Group]:
        """One group for each problem and its prompt. Every rank has them all, with the tokens of its share alone.

        `on_progress` and `indices` are `Engine.generate`'s.
        """
        num_engines = self.ranks.size // self.ranks_per_engine
        engine, member = divmod(self.ranks.rank, self.ranks_per_engine)
        asked, kept = slice(engine, None, num_engines), slice(member, None, self.ranks_per_engine)
        places = range(len(prompts))[asked]
        indices = indices or range(len(prompts))
        sampled = self.engine.generate(prompts[asked], num_completions, params, seed, on_progress, indices[asked])
        groups = self._judged(task, problems, prompts, dict(zip(places[kept], sampled[kept], strict=True)))
        if self.ranks.size > 1:
            self._hear_of_others(groups, problems, prompts)
            if on_progress:
                others = (done for place in groups.keys() - set(places) for done in groups[place].completions)
                on_progress(sum(done.num_tokens for done in others))
        return [groups[place] for place in range(len(prompts))]

    def _judged(
        self,
        task: Task,
        problems: Sequence[Problem],
        prompts: Sequence[tuple[int, ...]],
        sampled: Mapping[int, tuple[Completion, ...]],
    ) -> dict[int, Group]:
        """The groups of these completions, by place."""
        completions = [done for group in sampled.values() for done in group]
        texts = [self.decode(done.token_ids.tolist()) for done in completions]
        owners = [problems[place] for place, group in sampled.items() for _ in group]
        judged = iter(zip(texts, task.grade(texts, owners, [done.finish_reason for done in completions]), strict=True))
        groups = {}
        for place, group in sampled.items():
            own_texts, verdicts = zip(*(next(judged) for _ in group), strict=True)
            groups[place] = Group(problems[place], prompts[place], group, own_texts, verdicts)
        return groups

    def _hear_of_others(
        self, groups: dict[int, Group], problems: Sequence[Problem], prompts: Sequence[tuple[int, ...]]
    ) -> None:
        """Adds the groups that other ranks have sampled, without their tokens; on the first rank with their texts."""
        facts = {
            place: (
                tuple((done.finish_reason, done.spans, done.seed) for done in group.completions),
                group.verdicts,
            )
            for place, group in groups.items()
        }
        texts = self.ranks.to_first({place: group.texts for place, group in groups.items()})
        for others in self.ranks.gather(facts):
            for place in others.keys() - groups.keys():
                ends, verdicts = others[place]
                completions = tuple(Completion.elsewhere(*each) for each in ends)
                groups[place] = Group(problems[place], prompts[place], completions, ("",) * len(ends), verdicts)
        for place, own in ((place, own) for of_rank in texts for place, own in of_rank.items()):
            groups[place] = replace(groups[place], texts=own)
