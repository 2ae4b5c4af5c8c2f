"""Samples answers to a task's problems, verifies them and computes the figures, also during training."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from negaware.estimates import Estimate
from negaware.evaluation.metrics import Vote, avg_at_k, maj_at_k, pass_at_k
from negaware.files import written_aside
from negaware.rollout.ask import Asker, Progress
from negaware.rollout.engine import SamplingParams
from negaware.tasks.task import Task
from negaware.types import FinishReason, Group, Reason
from negaware.verifiers.equivalence import normal_form

UNVERIFIABLE: tuple[Reason, ...] = ("timeout", "error")


@dataclass(frozen=True, slots=True)
class GradedAnswer:
    """One sampled answer and its verdict."""

    text: str
    correct: bool
    reason: Reason
    extracted: str | None
    finish_reason: FinishReason
    num_tokens: int

    def vote(self, judges_truncated: bool = False) -> Vote:
        """The answer's vote in maj@k: none if it holds no value, couldn't be verified, or was truncated, unless
        truncated answers are judged too."""
        cut_off = self.finish_reason == "length" and not judges_truncated
        if self.extracted is None or cut_off or self.reason in UNVERIFIABLE:
            return Vote(None, self.correct)
        return Vote(normal_form(self.extracted), self.correct)


@dataclass(frozen=True, slots=True)
class ProblemResult:
    """A problem and the answers to it."""

    id: str
    question: str
    gold: str
    room: int
    """Tokens that the prompt left for an answer; with 0 the problem wasn't asked."""
    answers: tuple[GradedAnswer, ...]


@dataclass(frozen=True)
class EvaluationResult:
    """The results of an evaluation, problem by problem, with what follows from them."""

    task: str
    num_completions: int
    max_new_tokens: int
    results: tuple[ProblemResult, ...]
    judges_truncated: bool = False
    """Whether truncated answers are judged like others; otherwise they are wrong."""

    @cached_property
    def answers(self) -> list[GradedAnswer]:
        """All answers, problem after problem."""
        return [answer for result in self.results for answer in result.answers]

    @cached_property
    def num_correct(self) -> list[int]:
        """The number of right answers to each problem."""
        return [sum(answer.correct for answer in result.answers) for result in self.results]

    @cached_property
    def questions(self) -> list[str]:
        """Each problem's question; equal questions are one cluster."""
        return [result.question for result in self.results]

    @property
    def num_truncated(self) -> int:
        """The number of answers cut off by the length limit."""
        return sum(answer.finish_reason == "length" for answer in self.answers)

    @property
    def num_unverifiable(self) -> int:
        """The number of answers on which the verifier failed or ran out of time; they count as wrong."""
        return sum(answer.reason in UNVERIFIABLE for answer in self.answers)

    @property
    def num_short_of_room(self) -> int:
        """The number of problems whose prompt left less than `max_new_tokens` for an answer."""
        return sum(result.room < self.max_new_tokens for result in self.results)

    @property
    def num_without_room(self) -> int:
        """The number of problems not asked, since their prompt left no room; their answers are wrong."""
        return sum(result.room == 0 for result in self.results)

    @cached_property
    def avg_at_k(self) -> Estimate:
        """Mean fraction of right answers; with one completion a problem it is accuracy."""
        return avg_at_k(self.num_correct, self.num_completions, self.questions)

    @property
    def unjudged(self) -> str | None:
        """A sentence on how many answers couldn't be judged, and why; None if all could."""
        failed = [answer for answer in self.answers if answer.reason in UNVERIFIABLE]
        if not failed:
            return None
        late = "out of time (a slow judge, or a busy machine)"
        why = " ".join(str(failed[0].extracted).split()) if failed[0].reason == "error" else late
        return f"{len(failed)} of {len(self.answers)} answers can't be judged and count as wrong; the first: {why}"

    @property
    def is_judged(self) -> bool:
        """Whether accuracy means something: not if the verifier failed on most answers and judged none."""
        return 2 * self.num_unverifiable <= len(self.answers) or any(
            answer.reason in ("correct", "wrong") for answer in self.answers
        )

    def require_judged(self, remedy: str) -> None:
        """ValueError with this remedy unless `is_judged`."""
        if not self.is_judged:
            raise ValueError(f"{self.task}: {self.unjudged}. {remedy}")

    @property
    def pass_at(self) -> dict[int, Estimate]:
        """pass@k for k = 1, 2, 4 … below K, and K itself."""
        powers = [2**exponent for exponent in range(self.num_completions.bit_length())]
        return {
            k: pass_at_k(self.num_correct, self.num_completions, k, self.questions)
            for k in sorted({*powers, self.num_completions})
        }

    @property
    def maj_at_k(self) -> Estimate:
        """Fraction of problems whose most frequent answer is right."""
        votes = [[answer.vote(self.judges_truncated) for answer in result.answers] for result in self.results]
        return maj_at_k(votes, self.questions)

    @property
    def all_truncated(self) -> str | None:
        """A sentence on what to do if every answer was truncated, else None."""
        if self.num_truncated < len(self.answers):
            return None
        return (
            f"all {self.num_truncated:,} answers were cut off at the length limit: raise max_new_tokens; or, if the "
            "model doesn't end its answers (a base model), put the token that ends a turn of its chat template into "
            "eos_token_id of its generation_config.json"
        )

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Name → estimate: `avg_at_4`, `pass_at_1` …, `maj_at_4`. With one answer a problem only `avg_at_1`."""
        k = self.num_completions
        average = {f"avg_at_{k}": self.avg_at_k}
        if k == 1:
            return average
        passes = {f"pass_at_{draws}": estimate for draws, estimate in self.pass_at.items()}
        return average | passes | {f"maj_at_{k}": self.maj_at_k}

    def summary(self) -> dict[str, Any]:
        """The estimates and counts, ready for JSON."""
        return {
            "task": self.task,
            "num_problems": len(self.results),
            "num_completions": self.num_completions,
            **{name: dataclasses.asdict(estimate) for name, estimate in self.estimates.items()},
            "caution": self.avg_at_k.caution,
            "num_truncated": self.num_truncated,
            "num_unverifiable": self.num_unverifiable,
            "num_short_of_room": self.num_short_of_room,
            "num_without_room": self.num_without_room,
            "reasons": dict(Counter(answer.reason for answer in self.answers)),
        }


def evaluate(
    asker: Asker,
    task: Task,
    params: SamplingParams,
    num_completions: int,
    seed: int,
    on_progress: Progress | None = None,
) -> EvaluationResult:
    """Samples `num_completions` answers to each of the task's problems and grades them.

    A problem whose prompt leaves no room for an answer isn't asked; its answers are empty, truncated and wrong.
    ValueError for a task without problems, or less than one completion.
    """
    if not task.problems or num_completions < 1:
        raise ValueError(
            f"evaluating {task.name} needs at least one problem and one completion, "
            f"got {len(task.problems)} and {num_completions}"
        )
    prompts = [tuple(asker.encode(task.messages(problem))) for problem in task.problems]
    rooms = [params.room(len(prompt)) for prompt in prompts]
    asked = [index for index, room in enumerate(rooms) if room]  # seeds depend on the index among all problems
    problems = [task.problems[index] for index in asked]
    groups = iter(
        asker.ask(task, problems, [prompts[i] for i in asked], num_completions, params, seed, on_progress, asked)
    )
    unasked = (GradedAnswer("", False, "no_answer", None, "length", 0),) * num_completions
    results = tuple(
        ProblemResult(problem.id, problem.question, problem.answer, room, _answers(next(groups)) if room else unasked)
        for problem, room in zip(task.problems, rooms, strict=True)
    )
    return EvaluationResult(task.name, num_completions, params.max_new_tokens, results, task.judges_truncated)


def write_results(result: EvaluationResult, path: Path) -> None:
    """Writes one JSON line a problem, aside and swapped in: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside, aside.open("w", encoding="utf-8") as file:
        for problem in result.results:
            file.write(json.dumps(dataclasses.asdict(problem)) + "\n")


def _answers(group: Group) -> tuple[GradedAnswer, ...]:
    return tuple(
        GradedAnswer(text, verdict.correct, verdict.reason, verdict.extracted, done.finish_reason, done.num_tokens)
        for done, text, verdict in zip(group.completions, group.texts, group.verdicts, strict=True)
    )
