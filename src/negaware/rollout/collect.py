"""The collector: samples, verifies and keeps until a step's batch of informative groups is full.

A group teaches something if its answers differ: 0 < pass rate < 1. Groups beyond the batch are carried to the next
step. The search is bounded, everything is counted, and nothing is dropped in silence. With `filter: none` it keeps all
that it samples. It doesn't know the objective, but for which other groups teach it something.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from negaware.rollout.ahead import Ahead, oldest_version
from negaware.rollout.ask import Asker, Progress
from negaware.rollout.engine import SamplingParams
from negaware.rollout.options import RolloutOptions
from negaware.seeds import order_seed, sampling_seed
from negaware.tasks.task import Task
from negaware.types import Group, Span


class NothingToLearnError(ValueError):
    """Every question of a step was answered all right or all wrong.

    It says what was found, why that may be, and how to go on. `pass_rate` is the step's.
    """

    def __init__(self, found: str, why: str, how: str, pass_rate: float) -> None:
        super().__init__(f"{found} {why}{how}")
        self.found, self.how, self.pass_rate = found, how, pass_rate

    def because(self, why: str | None) -> NothingToLearnError:
        """The same with another reason, if there is one."""
        return self if why is None else NothingToLearnError(self.found, why, self.how, self.pass_rate)


@dataclass(frozen=True, slots=True)
class Rollout:
    """A step's batch: the groups to train on, every group sampled on the way, and what was counted."""

    groups: list[Group]
    sampled: list[Group]
    metrics: dict[str, float]
    teaches: bool = True
    """Whether the objective learns something from any of the groups."""

    def shortcomings(self, wanted: int) -> list[str]:
        """A sentence for each thing that the user should know: fewer than `wanted` groups, answers that failed."""
        found = []
        if len(self.groups) < wanted:
            found.append(
                f"{len(self.groups)} of {wanted} informative questions found in {len(self.sampled)} asked "
                "(rollout.max_sampled_questions); training on those"
            )
        if not self.teaches:
            found.append(
                f"none of the {len(self.sampled)} questions of this step taught anything: the loss is 0, and only the "
                "optimizer's momentum and weight decay move the weights"
            )
        failures, num_answers = verifier_failures(self.sampled)
        if failures:
            found.append(
                f"the verifier failed on {len(failures)} of {num_answers} answers, which count as wrong; first with "
                f"{failures[0]!r}"
            )
        return found


@dataclass(slots=True)
class CollectorState:
    """Where the collector stands. A checkpoint holds it.

    Questions taken so far; groups carried over; with `filter: none`, how many questions in a row taught nothing.
    """

    position: int = 0
    surplus: list[Group] = field(default_factory=list)
    num_barren: int = 0


class Collector:
    """Turns a task into batches of informative groups.

    `teaching_rates`: 0.0, 1.0 or both, if the objective learns something from groups that are all wrong or all right
    too. `num_steps` are the run's, if it ends. `num_left_out` questions are never asked, since their prompt is longer
    than `options.max_prompt_tokens` or leaves no room for an answer. ValueError if that is so of all.
    """

    def __init__(
        self,
        asker: Asker,
        task: Task,
        params: SamplingParams,
        options: RolloutOptions,
        seed: int,
        teaching_rates: Collection[float] = (),
        num_steps: int | None = None,
    ) -> None:
        self.teaching_rates = teaching_rates
        self.asker, self.task = asker, task
        self.params, self.options, self.seed = params, options, seed
        self.state = CollectorState()
        prompts = [tuple(asker.encode(task.messages(problem))) for problem in task.problems]
        limit, remedy = options.max_prompt_tokens, "raise it"
        self.too_long = f"more than {limit} tokens (rollout.max_prompt_tokens)"
        if params.max_tokens is not None and (limit is None or limit >= params.max_tokens):
            limit, remedy = params.max_tokens - 1, "take shorter questions, or a model that takes more"
            self.too_long = f"{params.max_tokens} tokens or more, all that the model takes"
        kept = [index for index, prompt in enumerate(prompts) if limit is None or len(prompt) <= limit]
        if not kept:
            raise ValueError(
                f"Every prompt of task {task.name!r} has {self.too_long}, the shortest {min(map(len, prompts))}; "
                f"{remedy}."
            )
        self.num_left_out = len(prompts) - len(kept)
        self.problems = [task.problems[index] for index in kept]
        self.prompts = [prompts[index] for index in kept]
        self._order: tuple[int, list[int]] = (-1, [])
        # Asked ahead, questions are taken by each rank by itself.
        self._stride = asker.ranks.size if options.max_staleness else 1
        self.go_to([0])
        self.ahead = Ahead(asker, task, self.problems, self.prompts, params, options, seed, num_steps)

    def left_out_or_short(self) -> list[str]:
        """A sentence each for questions that are never asked, and for those whose answers have less room."""
        found = []
        if self.num_left_out:
            num_problems = len(self.task.problems)
            found.append(
                f"{self.num_left_out} of {num_problems} problems are left out: their prompts have {self.too_long}."
            )
        return found + short_of_room(self.task.name, self.prompts, self.params)

    def next_rollout(self, step: int, on_progress: Progress | None = None) -> Rollout:
        """Fills a batch for this step. Raises NothingToLearnError if no question asked was informative (with
        `filter: none`, if the question budget is used up in steps without any), ValueError if the verifier failed on
        most."""
        start = time.perf_counter()
        options, state = self.options, self.state
        carried, too_old = self._carried(step)
        sampled: list[Group] = []
        found: list[Group] = []
        with self._asking(step, sampled, lambda: len(carried) + len(found), on_progress) as sample:
            num_questions = 0  # at first only what must be trained on in this step, if that is asked ahead
            while True:
                groups = self._rewarded(sample(num_questions))
                sampled += groups
                found += [group for group in map(self._trainable, groups) if self._is_kept(group)]
                num_missing = options.questions - len(carried) - len(found)
                num_questions = self._questions_to_ask(num_missing, len(found), len(sampled))
                if not num_questions:
                    break
        # What would be too old in the next step comes first.
        kept = sorted(carried + found, key=oldest_of) if options.max_staleness else carried + found
        state.num_barren = 0 if any(map(self._teaches, kept)) else state.num_barren + len(sampled)
        if not kept or state.num_barren >= options.question_budget:
            self.asker.ranks.meet()  # a rank may have waited for its judge: all leave together, with a checkpoint
            raise self._nothing_to_learn(sampled)
        batch, state.surplus = kept[: options.questions], kept[options.questions :]
        metrics = rollout_metrics(sampled, time.perf_counter() - start) | {
            "rollout/informative_share": sum(map(self._is_informative, found)) / max(len(sampled), 1),
            "rollout/num_groups": float(len(batch)),
            "rollout/num_uninformative_groups": float(sum(not self._is_informative(group) for group in batch)),
            "rollout/num_carried_groups": float(len(carried)),
            "rollout/num_surplus_groups": float(len(state.surplus)),
        }
        metrics |= staleness_metrics(batch, step - 1)
        if options.max_staleness:
            counted = self.ahead.counted()
            counted["num_dropped_tokens"] += sum(span.num_tokens for span in spans_of(too_old))
            counted["num_dropped_questions"] += len(too_old)
            metrics["rollout/tokens_per_second"] = counted.pop("num_drawn_tokens") / (time.perf_counter() - start)
            metrics |= {f"rollout/{name}": count for name, count in counted.items()}
        return Rollout(batch, sampled, metrics, teaches=state.num_barren == 0)

    def _questions_to_ask(self, num_missing: int, num_informative: int, num_sampled: int) -> int:
        """As many as should fill the batch at the fraction of informative questions seen so far in this step.

        Never more than a batch at once, and 0 when the step's budget is used up.
        """
        if num_missing <= 0:
            return 0
        fraction = num_informative / num_sampled if num_sampled else 1.0
        wanted = round(num_missing / max(fraction, num_missing / self.options.questions))
        return max(0, min(wanted, self.options.questions, self.options.question_budget - num_sampled))

    def _trainable(self, group: Group) -> Group:
        """The group as it is trained on: without its truncated answers, where those are excluded."""
        if self.options.truncated_answers == "wrong":
            return group
        kept = [index for index, done in enumerate(group.completions) if done.finish_reason != "length"]
        return replace(
            group,
            completions=tuple(group.completions[index] for index in kept),
            texts=tuple(group.texts[index] for index in kept),
            verdicts=tuple(group.verdicts[index] for index in kept),
            rewards=None if group.rewards is None else tuple(group.rewards[index] for index in kept),
        )

    def _is_kept(self, group: Group) -> bool:
        return self.options.filter == "none" or self._is_informative(group)

    def _is_informative(self, group: Group) -> bool:
        """Whether the group's answers differ; where one answer is all that is asked (RFT), whether it is right."""
        num_right = sum(verdict.correct for verdict in group.verdicts)
        return 0 < num_right < len(group.verdicts) or (self.options.completions == 1 and num_right == 1)

    def _teaches(self, group: Group) -> bool:
        """Whether the objective learns something from the group."""
        if self._is_informative(group) or group.pass_rate in self.teaching_rates:
            return True
        return group.rewards is not None and min(group.rewards) < max(group.rewards)

    @contextmanager
    def _asking(
        self, step: int, sampled: Sequence[Group], num_kept: Callable[[], int], on_progress: Progress | None
    ) -> Iterator[Callable[[int], list[Group]]]:
        """A block in which questions are asked: a function that gives the groups of so many, after those `sampled`."""
        if self.options.max_staleness:
            with self.ahead.asking(step, self._next_problem, num_kept, on_progress) as sample:
                yield sample
        else:
            yield lambda number: self._sample(number, sampling_seed(self.seed, step, len(sampled)), on_progress)

    def _carried(self, step: int) -> tuple[list[Group], list[Group]]:
        """The groups left by earlier steps; and those that are too old by now, where there is a bound."""
        groups, self.state.surplus = self.state.surplus, []
        if not self.options.max_staleness:
            return groups, []
        oldest = oldest_version(step, self.options)
        ages: dict[bool, list[Group]] = {False: [], True: []}
        for group in groups:
            ages[oldest_of(group) < oldest].append(group)
        return ages[False], ages[True]

    def _sample(self, num_questions: int, seed: int, on_progress: Progress | None) -> list[Group]:
        if not num_questions:
            return []
        indices = [self._next_problem() for _ in range(num_questions)]
        return self.asker.ask(
            self.task,
            [self.problems[index] for index in indices],
            [self.prompts[index] for index in indices],
            self.options.completions,
            self.params,
            seed,
            on_progress,
        )

    def _rewarded(self, groups: list[Group]) -> list[Group]:
        buffer = self.options.overlong_buffer
        return [replace(group, rewards=self._rewards(group, buffer)) for group in groups] if buffer else groups

    def _rewards(self, group: Group, buffer: int) -> tuple[float, ...]:
        """DAPO's over-long shaping (arXiv 2503.14476, eq. 13), by half: it is its 2r − 1 + penalty on the scale of r.

        The penalty falls linearly from 0 to −1 over the last `buffer` of the tokens that an answer may have.
        """
        start = self.options.max_new_tokens - buffer
        over = ((done.num_tokens - start) / buffer for done in group.completions)
        return tuple(
            verdict.correct - min(max(part, 0.0), 1.0) / 2 for verdict, part in zip(group.verdicts, over, strict=True)
        )

    def _next_problem(self) -> int:
        """The next question: every epoch asks each question once, in an order of its own."""
        epoch, place = divmod(self.state.position, len(self.prompts))
        if self._order[0] != epoch:
            order = list(range(len(self.prompts)))
            random.Random(order_seed(self.seed, epoch)).shuffle(order)
            self._order = (epoch, order)
        self.state.position += self._stride
        return self._order[1][place]

    def go_to(self, positions: Sequence[int]) -> None:
        """Goes on from the positions of a checkpoint's ranks. Of other ranks than these some questions are left out, or
        asked twice, in that epoch."""
        rank = self.asker.ranks.rank % self._stride
        same = len(positions) == self.asker.ranks.size
        self.state.position = (
            positions[self.asker.ranks.rank] if same else max(positions) // self._stride * self._stride + rank
        )

    def _nothing_to_learn(self, sampled: Sequence[Group]) -> ValueError:
        all_right = sum(group.pass_rate == 1 for group in sampled)
        truncated = sum(c.finish_reason == "length" for group in sampled for c in group.completions)
        failures, num_answers = verifier_failures(sampled)
        if len(failures) > num_answers / 2:
            return ValueError(
                f"The verifier failed on {len(failures)} of this step's {num_answers} answers, first with "
                f"{failures[0]!r}, so there is nothing to learn from; correct it, then go on with --resume."
            )
        why = (
            "The questions are too easy for this model: in a new run, choose a harder task"
            if all_right > len(sampled) / 2
            else "The questions are too hard for this model or their answers aren't recognised: in a new run, choose "
            "an easier task or another extraction, or raise rollout.max_new_tokens if many are cut off"
        )
        before = self.state.num_barren - len(sampled)
        others = f" nor of the {before} asked before them" if before > 0 else ""
        return NothingToLearnError(
            f"None of the {len(sampled)} questions of this step{others} had both right and wrong answers ({all_right} "
            f"all right, {len(sampled) - all_right} all wrong, {truncated} answers cut at the length limit).",
            why,
            f"; more answers a question (rollout.completions is {self.options.completions}) help too. To go on with "
            f"this run, --resume it with a higher rollout.max_sampled_questions than {self.options.question_budget}.",
            sum(group.pass_rate for group in sampled) / len(sampled),
        )


def oldest_of(group: Group) -> int:
    """The oldest version that drew a token of it."""
    return min((span.version for span in spans_of([group])), default=0)


def spans_of(groups: Sequence[Group]) -> list[Span]:
    """Which versions drew the answers' tokens, and how many each."""
    return [span for group in groups for done in group.completions for span in done.spans]


def staleness_metrics(groups: Sequence[Group], version: int) -> dict[str, float]:
    """How many updates the tokens that are trained on are behind this version of the policy: mean and maximum."""
    spans = spans_of(groups)
    total = sum((version - span.version) * span.num_tokens for span in spans)
    mean = total / max(sum(span.num_tokens for span in spans), 1)
    most = max((version - span.version for span in spans), default=0)
    return {"rollout/staleness_mean": float(mean), "rollout/staleness_max": float(most)}


def short_of_room(task: str, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[str]:
    """A sentence if some prompts leave an answer less than `max_new_tokens` in the model, or no room at all."""
    rooms = [params.room(len(prompt)) for prompt in prompts]
    num_short, num_without = sum(room < params.max_new_tokens for room in rooms), rooms.count(0)
    if not num_short:
        return []
    without = f"; {num_without} leave none: they are not asked, and count as wrong" if num_without else ""
    return [
        f"{task}: {num_short} of {len(rooms)} prompts leave an answer fewer tokens than max_new_tokens, "
        f"{params.max_new_tokens}, for the model takes {params.max_tokens} in all; the longest leaves {min(rooms)}"
        f"{without}."
    ]


def verifier_failures(sampled: Sequence[Group]) -> tuple[list[str | None], int]:
    """What the verifier failed with on each answer that it couldn't judge; and how many answers there are."""
    verdicts = [verdict for group in sampled for verdict in group.verdicts]
    return [verdict.extracted for verdict in verdicts if verdict.reason == "error"], len(verdicts)


def rollout_metrics(sampled: Sequence[Group], seconds: float) -> dict[str, float]:
    """What a step's sampling came to: pass rate, shares, lengths, verdicts by reason."""
    completions = [completion for group in sampled for completion in group.completions]
    reasons = Counter(verdict.reason for group in sampled for verdict in group.verdicts)
    shaped = [
        reward < verdict.correct
        for group in sampled
        for verdict, reward in zip(group.verdicts, group.rewards or (), strict=False)
    ]
    num_tokens = sum(completion.num_tokens for completion in completions)
    groups, answers = max(len(sampled), 1), max(len(completions), 1)
    rollout = {
        "num_groups_sampled": len(sampled),
        "pass_rate": sum(group.pass_rate for group in sampled) / groups,
        "all_right_share": sum(group.pass_rate == 1 for group in sampled) / groups,
        "all_wrong_share": sum(group.pass_rate == 0 for group in sampled) / groups,
        "truncated_share": sum(completion.finish_reason == "length" for completion in completions) / answers,
        "unverifiable_share": (reasons["timeout"] + reasons["error"]) / answers,
        "answer_tokens": num_tokens / answers,
        "tokens_per_second": num_tokens / max(seconds, 1e-9),
    }
    if shaped:
        rollout["overlong_share"] = sum(shaped) / len(shaped)
    verifier = {reason: reasons[reason] for reason in ("correct", "wrong", "no_answer", "timeout", "error")}
    return {f"rollout/{name}": float(value) for name, value in rollout.items()} | {
        f"verifier/{name}": float(value) for name, value in verifier.items()
    }
