"""The one place where questions are asked: sampled, decoded, judged. Of several ranks each asks a part of them.

The tokens stay with the rank that sampled them. The others hear how long its answers are, how they ended and what the
verdicts are; the first rank, which writes them, gets the texts too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from negaware.ranks import ALONE, Ranks
from negaware.rollout.engine import Engine, Request, SamplingParams
from negaware.rollout.marking import Marking, group_of
from negaware.tasks.task import Task
from negaware.types import Completion, Group, Message, Problem

Place = TypeVar("Place")
Progress = Callable[[int], None]
"""Is told the number of tokens sampled since it was last called."""


@dataclass(frozen=True, slots=True)
class Asker:
    """An engine, the codec's `encode` and `decode` around its tokens, and the ranks that share the questions.

    `ranks_per_engine` ranks in a row are one engine together (tensor parallel). They sample the same answers, and each
    keeps and judges a part.
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
        """One group for each problem and its prompt. Every rank has them all, with the tokens of its own part alone.

        `on_progress` is told the number of tokens sampled since it was last called. `indices` are the questions' places
        in a larger call of which these are a part: their answers are then the same as in that call.
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
        known = told_to_all(groups, self.ranks, lambda place: (problems[place], prompts[place]))
        others = [done for place in known.keys() - asked.keys() for done in known[place].completions]
        if on_progress and others:
            on_progress(sum(done.num_tokens for done in others))
        return [known[place] for place in range(len(prompts))]


def told_to_all(
    groups: Mapping[Place, Group], ranks: Ranks, question: Callable[[Place], tuple[Problem, tuple[int, ...]]]
) -> dict[Place, Group]:
    """These groups of this rank and those of all others, by place; `question` says what was asked there.

    Groups of other ranks are without their tokens, and on the first rank alone with their texts.
    """
    if ranks.size == 1:
        return dict(groups)
    facts = {
        place: (tuple((done.finish_reason, done.spans, done.seed) for done in group.completions), group.verdicts)
        for place, group in groups.items()
    }
    by_rank = ranks.to_first({place: group.texts for place, group in groups.items()})
    texts = {place: each for of_rank in by_rank for place, each in of_rank.items()}
    known = dict(groups)
    for others in ranks.gather(facts):
        for place in others.keys() - groups.keys():
            ends, verdicts = others[place]
            completions = tuple(Completion.elsewhere(*each) for each in ends)
            known[place] = Group(*question(place), completions, texts.get(place, ("",) * len(ends)), verdicts)
    return known
