"""Questions that are asked before their step: their answers go on across updates of the policy, up to a bound.

So decode batches stay full while the last answers of a step are still sampled. Each token says which version drew it;
the likelihood ratio of the loss does the rest. It doesn't know which groups teach something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, count
from math import inf

from negaware.rollout.ask import Asker, Progress
from negaware.rollout.engine import Draft, Request, SamplingParams
from negaware.rollout.marking import Marked, Marking, group_of
from negaware.rollout.options import RolloutOptions
from negaware.seeds import completion_seed, sampling_seed
from negaware.tasks.task import Task
from negaware.types import Group, Problem, Span


@dataclass(slots=True, eq=False)
class Begun:
    """A question under way: which of the collector's it is, its answers' seeds in order, and those that are judged."""

    index: int
    request: Request
    seeds: tuple[int, ...]
    marked: list[Marked] = field(default_factory=list)
    is_submitted: bool = False

    @property
    def spans(self) -> list[Span]:
        """Of all its tokens, as far as they are known: which version drew how many."""
        answers = [*(each.completion for each in self.marked), *self.request.finished]
        of_drafts = [draft.spans for draft in self.request.drafts]
        return list(chain(*(done.spans for done in answers), *of_drafts))


class Ahead:
    """Asks questions ahead of their step, at most `options.max_staleness` batches of them.

    `begun` is where it stands; a checkpoint holds it.
    """

    def __init__(
        self,
        asker: Asker,
        task: Task,
        problems: Sequence[Problem],
        prompts: Sequence[tuple[int, ...]],
        params: SamplingParams,
        options: RolloutOptions,
        seed: int,
    ) -> None:
        self.asker, self.task, self.problems, self.prompts = asker, task, problems, prompts
        self.params, self.options, self.seed = params, options, seed
        self.begun: list[Begun] = []
        self.num_dropped_tokens = 0
        """In the present step: of answers with a token that is too old to be trained on."""

    @contextmanager
    def going(
        self, step: int, next_question: Callable[[], int], on_progress: Progress | None
    ) -> Iterator[Callable[[int], list[Group]]]:
        """A block in which questions are asked for this step: a function that gives so many groups, or a few more.

        They come as they are finished, and none has a token older than the bound. At the block's end what is under way
        stops, unless the engine samples by itself; it goes on in the next one.
        """
        self.num_dropped_tokens = 0
        oldest = oldest_version(step, self.options)
        number = count()

        def ask(index: int) -> Begun:
            seed = sampling_seed(self.seed, step, next(number))
            seeds = tuple(completion_seed(seed, 0, k) for k in range(self.options.completions))
            return Begun(index, Request(self.prompts[index], self.params, [Draft(each) for each in seeds]), seeds)

        def renew(begun: Sequence[Begun]) -> list[Begun]:
            """Those with too old a token are asked again."""
            stale = [each for each in begun if min((span.version for span in each.spans), default=inf) < oldest]
            self.asker.engine.withdraw([each.request for each in stale])
            marking.forget(seed for each in stale for seed in each.seeds)
            self.num_dropped_tokens += sum(span.num_tokens for each in stale for span in each.spans)
            return [ask(each.index) if each in stale else each for each in begun]

        def sample(num_groups: int) -> list[Group]:
            sampled: list[Begun] = []
            while len(sampled) < num_groups:
                if self._has_room(num_groups - len(sampled)):
                    self.begun.append(ask(next_question()))
                    continue
                self._submit()
                num_tokens = self.asker.engine.step()
                if on_progress:
                    on_progress(num_tokens)
                self._hear(marking)
                done = renew([each for each in self.begun if not each.request.drafts])
                running = [each for each in self.begun if each.request.drafts]
                sampled += [each for each in done if not each.request.drafts]
                self.begun = [each for each in done if each.request.drafts] + running
            return [self._group(each, marking) for each in sampled]

        with Marking(self.task, self.asker.decode) as marking:
            self.begun = renew(self.begun)
            try:
                yield sample
            finally:
                self._pause()
            self._hear(marking)
            for each in self.begun:
                each.marked += marking.take(seed for seed in each.seeds if marking.has(seed))

    def _has_room(self, num_missing: int) -> bool:
        """Whether the engine has room for another question, and the bound too."""
        limit = num_missing + self.options.max_staleness * self.options.questions
        num_drafts = sum(len(each.request.drafts) for each in self.begun)
        return len(self.begun) < limit and num_drafts < self.options.max_sequences

    def _submit(self) -> None:
        for each in self.begun:
            if not each.is_submitted:
                self.asker.engine.submit(each.request)
                each.is_submitted = True

    def _pause(self) -> None:
        if not self.asker.engine.samples_alone:
            self.asker.engine.withdraw([each.request for each in self.begun])
            for each in self.begun:
                each.is_submitted = False

    def _hear(self, marking: Marking) -> None:
        """Has judged what was finished since."""
        marking.add((self.problems[each.index], done) for each in self.begun for done in each.request.take())

    def _group(self, begun: Begun, marking: Marking) -> Group:
        marked = {each.completion.seed: each for each in begun.marked}
        marked |= {
            each.completion.seed: each for each in marking.take(seed for seed in begun.seeds if seed not in marked)
        }
        return group_of(self.problems[begun.index], self.prompts[begun.index], [marked[seed] for seed in begun.seeds])


def oldest_version(step: int, options: RolloutOptions) -> int:
    """The oldest version of the policy that a token may come from which is trained on in this step."""
    return step - 1 - options.max_staleness
