"""Questions that are asked before their step: their answers go on across updates of the policy, up to a bound.

So decode batches stay full while the last answers of a step are still sampled. Each token says which version drew it;
the likelihood ratio of the loss does the rest. It doesn't know which groups teach something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, count
from math import inf

from negaware.rollout.ask import Asker, Progress, told_to_all
from negaware.rollout.engine import Draft, Request, SamplingParams
from negaware.rollout.marking import Marked, Marking, group_of
from negaware.rollout.options import RolloutOptions
from negaware.seeds import sampling_seed
from negaware.tasks.task import Task
from negaware.types import Completion, Group, Problem, Span


@dataclass(slots=True, eq=False)
class Begun:
    """A question under way: which of the collector's it is, its answers' seeds in order, and those that are finished.

    `submitted` is the version with which the engine got it; None while it isn't there.
    """

    index: int
    request: Request
    seeds: tuple[int, ...]
    marked: list[Marked] = field(default_factory=list)
    unmarked: list[Completion] = field(default_factory=list)
    submitted: int | None = None

    @property
    def spans(self) -> list[Span]:
        """Of all its tokens, as far as they are known: which version drew how many."""
        finished = [*(each.completion for each in self.marked), *self.unmarked, *self.request.finished]
        return list(chain(*(done.spans for done in finished), *(draft.spans for draft in self.request.drafts)))

    @property
    def oldest(self) -> float:
        """The oldest version that drew a token of it, as far as they are known."""
        return min((span.version for span in self.spans), default=inf)

    def copied(self) -> Begun:
        """As it is now: an engine goes on with the drafts of this one."""
        drafts = [
            Draft(draft.seed, list(draft.token_ids), list(draft.logprobs), list(draft.spans))
            for draft in self.request.drafts
        ]
        return replace(self, request=replace(self.request, drafts=drafts, finished=[]), marked=list(self.marked))


class Ahead:
    """Asks questions ahead of their step, at most `options.max_staleness` batches of them.

    `begun` is where it stands; a checkpoint holds it. `num_steps` are the run's, if it ends: nothing is asked that no
    step will train on. Of several ranks each has its engine and asks its part; they tell one another of what is
    finished, once a call for groups.
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
        num_steps: int | None = None,
    ) -> None:
        self.engine, self.decode, self.ranks = asker.engine, asker.decode, asker.ranks
        self.task, self.num_steps = task, num_steps
        self.problems, self.prompts, self.params = problems, prompts, params
        self.options, self.seed = options, seed
        self.begun: list[Begun] = []
        self.num_dropped_tokens = self.num_dropped_questions = 0
        """On this rank in the present step: with a token that is too old to be trained on."""
        self.num_drawn_tokens = 0
        """On this rank in the present step."""

    def counted(self) -> dict[str, float]:
        """What the step came to on all ranks: tokens drawn; tokens of questions under way; what was dropped."""
        return self.ranks.sums(
            {
                "num_drawn_tokens": float(self.num_drawn_tokens),
                "num_tokens_ahead": float(sum(span.num_tokens for begun in self.begun for span in begun.spans)),
                "num_dropped_tokens": float(self.num_dropped_tokens),
                "num_dropped_questions": float(self.num_dropped_questions),
            }
        )

    @contextmanager
    def asking(
        self,
        step: int,
        next_question: Callable[[], int],
        num_kept: Callable[[], int],
        on_progress: Progress | None,
    ) -> Iterator[Callable[[int], list[Group]]]:
        """A block in which a step's questions are asked: a function that gives so many groups or more, of all ranks.

        `num_kept` says how many groups are there by now that will be trained on, in this step or a later one. They come
        as they are finished, and none has a token older than the bound. At the block's end what is under way
        stops, unless the engine samples by itself; it goes on in the next one.
        """
        self.step, self.next_question, self.num_kept = step, next_question, num_kept
        self.on_progress, self.numbers = on_progress, count()
        self.num_dropped_tokens = self.num_dropped_questions = self.num_drawn_tokens = 0
        with Marking(self.task, self.decode) as self.marking:
            self.begun = self._asked_again_if_stale(self.begun)
            try:
                yield self._groups
                if self.engine.samples_alone:  # while the trainer works
                    self._ask(0, 0)
            finally:
                self._stop()
            self._have_finished_marked()
            for each in self.begun:
                each.marked += self.marking.take(done.seed for done in each.unmarked)
                each.unmarked.clear()

    def _groups(self, number: int) -> list[Group]:
        """So many groups, and besides all that are finished by then or would be too old in the next step."""
        number = self._part(number)
        sampled: list[Begun] = []
        while True:
            self._have_finished_marked()
            done = self._asked_again_if_stale([each for each in self.begun if not each.request.drafts])
            sampled += [each for each in done if not each.request.drafts]
            self.begun = [each for each in [*done, *self.begun] if each.request.drafts]
            if len(sampled) >= number and not any(map(self._is_due, self.begun)):
                here = {(self.ranks.rank, place, each.index): self._group(each) for place, each in enumerate(sampled)}
                known = told_to_all(here, self.ranks, lambda at: (self.problems[at[2]], self.prompts[at[2]]))
                return [known[place] for place in sorted(known)]
            self._ask(number, len(sampled))
            num_tokens = self.engine.step()
            self.num_drawn_tokens += num_tokens
            if self.on_progress and num_tokens:
                self.on_progress(num_tokens)

    def _is_due(self, begun: Begun) -> bool:
        """Whether it has a token, or may have one, that is trained on in this step or never.

        It is waited for: dropped, long answers would be asked again until they are short.
        """
        oldest = begun.oldest
        if self.engine.samples_alone and begun.submitted is not None:
            oldest = min(oldest, begun.submitted)
        return oldest <= oldest_version(self.step, self.options)

    def _asked_again_if_stale(self, begun: Sequence[Begun]) -> list[Begun]:
        """These, those with too old a token anew."""
        stale = [each for each in begun if each.oldest < oldest_version(self.step, self.options)]
        if not stale:  # as after nearly every step of the engine
            return list(begun)
        self.engine.withdraw([each.request for each in stale])
        self.marking.forget(seed for each in stale for seed in each.seeds)
        self.num_dropped_questions += len(stale)
        self.num_dropped_tokens += sum(span.num_tokens for each in stale for span in each.spans)
        return [self._question(each.index) if each in stale else each for each in begun]

    def _question(self, index: int) -> Begun:
        seed = sampling_seed(self.seed, self.step, next(self.numbers) * self.ranks.size + self.ranks.rank)
        request = Request.new(self.prompts[index], self.params, self.options.completions, seed)
        return Begun(index, request, request.seeds)

    def _ask(self, number: int, num_sampled: int) -> None:
        """What is wanted, and as many as the bound allows; not more than the engine decodes, unless it queues them.

        A group that is kept, or sampled just now, waits for its step as one under way does.
        """
        steps_left = self.options.max_staleness if self.num_steps is None else self.num_steps - self.step
        limit = (1 + min(self.options.max_staleness, steps_left)) * self.options.questions
        limit = max(self._part(limit - self.num_kept()), number) - num_sampled
        num_drafts = sum(len(each.request.drafts) for each in self.begun)
        while len(self.begun) < limit and (self.engine.samples_alone or num_drafts < self.options.max_sequences):
            self.begun.append(self._question(self.next_question()))
            num_drafts += self.options.completions
        for each in self.begun:
            if each.submitted is None:
                self.engine.submit(each.request)
                each.submitted = self.step - 1

    def _part(self, number: int) -> int:
        """This rank's part of so many questions; what is left over goes to other ranks in every step."""
        place = (self.ranks.rank - self.step) % self.ranks.size
        return (number + self.ranks.size - 1 - place) // self.ranks.size

    def _stop(self) -> None:
        if not self.engine.samples_alone or self.step == self.num_steps:
            self.engine.withdraw([each.request for each in self.begun])
            for each in self.begun:
                each.submitted = None

    def _have_finished_marked(self) -> None:
        finished = [(each, done) for each in self.begun for done in each.request.take()]
        for each, done in finished:
            each.unmarked.append(done)
        self.marking.add((self.problems[each.index], done) for each, done in finished)

    def _group(self, begun: Begun) -> Group:
        marked = [*begun.marked, *self.marking.take(done.seed for done in begun.unmarked)]
        by_seed = {each.completion.seed: each for each in marked}
        return group_of(self.problems[begun.index], self.prompts[begun.index], [by_seed[seed] for seed in begun.seeds])


def oldest_version(step: int, options: RolloutOptions) -> int:
    """The oldest version of the policy that a token may come from which is trained on in this step."""
    return step - 1 - options.max_staleness
