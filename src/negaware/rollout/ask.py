"""The one place where questions are asked: sampled, decoded, judged. Of several ranks each asks its share of them.

The tokens stay with the rank that sampled them. The others hear how long its answers are, how they ended and what the
verdicts are; the first rank, which writes them, gets the texts too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from negaware.ranks import ALONE, Ranks
from negaware.rollout.engine import Engine, Request, SamplingParams
from negaware.rollout.marking import Marking, group_of
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

        `on_progress` is told the number of tokens sampled since it was last called. `indices` are the questions' places
        in a whole call of which these are a part: their answers are then those of the whole call.
        """
        num_engines = self.ranks.size // self.ranks_per_engine
        engine, member = divmod(self.ranks.rank, self.ranks_per_engine)
        indices = indices or range(len(prompts))
        asked = {
            place: Request.new(prompts[place], params, num_completions, seed, indices[place])
            for place in range(len(prompts))[engine::num_engines]
        }
        kept = list(asked)[member :: self.ranks_per_engine]
        seeds = {place: asked[place].seeds for place in kept}
        problem_of = {own: problems[place] for place in kept for own in seeds[place]}
        with Marking(task, self.decode) as marking:
            for done in self.engine.run(list(asked.values()), on_progress):
                marking.add((problem_of[each.seed], each) for each in done if each.seed in problem_of)
            groups = {place: group_of(problems[place], prompts[place], marking.take(seeds[place])) for place in kept}
        if self.ranks.size > 1:
            self._hear_of_others(groups, problems, prompts)
            if on_progress:
                others = (done for place in groups.keys() - asked.keys() for done in groups[place].completions)
                on_progress(sum(done.num_tokens for done in others))
        return [groups[place] for place in range(len(prompts))]

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
