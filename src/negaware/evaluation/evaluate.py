"""Samples answers to a task's problems, verifies them, and sums up: the same for a finished model and in training.

It knows neither models nor tokenizers.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
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
class Answer:
    """One sampled answer and its verdict."""

    text: str
    correct: bool
    reason: Reason
    extracted: str | None
    finish_reason: FinishReason
    num_tokens: int

    def vote(self, judges_truncated: bool = False) -> Vote:
        """Its vote in maj@k: none if it was truncated (unless such answers are judged as well), couldn't be verified,
        or holds no value."""
        cut_off = self.finish_reason == "length" and not judges_truncated
        if self.extracted is None or cut_off or self.reason in UNVERIFIABLE:
            return Vote(None, self.correct)
        return Vote(normal_form(self.extracted), self.correct)


@dataclass(frozen=True, slots=True)
class ProblemResult:
    """One problem and the answers to it."""

    id: str
    question: str
    gold: str
    room: int
    """The longest answer that its prompt left room for, in tokens; with 0 it wasn't asked."""
    answers: tuple[Answer, ...]

    @property
    def num_correct(self) -> int:
        """How many answers are right."""
        return sum(answer.correct for answer in self.answers)


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """What an evaluation found, problem by problem."""

    task: str
    num_completions: int
    max_new_tokens: int
    results: tuple[ProblemResult, ...]
    judges_truncated: bool = False
    """Whether answers that were cut off were judged like others; they are wrong otherwise."""

    @property
    def num_correct(self) -> list[int]:
        """How many answers to each problem are right."""
        return [result.num_correct for result in self.results]

    @property
    def questions(self) -> list[str]:
        """Each problem's question; equal ones are one cluster."""
        return [result.question for result in self.results]

    @property
    def answers(self) -> list[Answer]:
        """All answers, problem after problem."""
        return [answer for result in self.results for answer in result.answers]

    @property
    def num_truncated(self) -> int:
        """Answers cut off by the length limit."""
        return sum(answer.finish_reason == "length" for answer in self.answers)

    @property
    def num_short_of_room(self) -> int:
        """Problems whose prompt left an answer less than `max_new_tokens` in the model."""
        return sum(result.room < self.max_new_tokens for result in self.results)

    @property
    def num_without_room(self) -> int:
        """Those of them that weren't asked, since their prompt left no room; all their answers are wrong."""
        return sum(result.room == 0 for result in self.results)

    @property
    def num_unverifiable(self) -> int:
        """Answers on which the verifier ran out of time or failed; they count as wrong."""
        return sum(answer.reason in UNVERIFIABLE for answer in self.answers)

    @property
    def unjudged(self) -> str | None:
        """How many answers couldn't be judged, and why not the first of them; None if all could."""
        failed = [answer for answer in self.answers if answer.reason in UNVERIFIABLE]
        if not failed:
            return None
        late = "out of time (a slow judge, or a busy machine)"
        why = " ".join(str(failed[0].extracted).split()) if failed[0].reason == "error" else late
        return f"{len(failed)} of {len(self.answers)} answers can't be judged and count as wrong; the first: {why}"

    @property
    def is_judged(self) -> bool:
        """Whether accuracy says something: not where the verifier failed on most answers, and judged none."""
        return 2 * self.num_unverifiable <= len(self.answers) or any(
            answer.reason in ("correct", "wrong") for answer in self.answers
        )

    def require_judged(self, remedy: str) -> None:
        """ValueError, with the remedy, unless it `is_judged`."""
        if not self.is_judged:
            raise ValueError(f"{self.task}: {self.unjudged}. {remedy}")

    @property
    def avg_at_k(self) -> Estimate:
        """Mean share of right answers; with one completion a problem it is accuracy."""
        return avg_at_k(self.num_correct, self.num_completions, self.questions)

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
        """Share of problems that the most frequent answer solves."""
        votes = [[answer.vote(self.judges_truncated) for answer in result.answers] for result in self.results]
        return maj_at_k(votes, self.questions)

    @property
    def all_truncated(self) -> str | None:
        """What to do where no answer ended by itself, else None."""
        if self.num_truncated < len(self.answers):
            return None
        return (
            f"all {self.num_truncated:,} answers were cut off at the length limit: raise max_new_tokens; or, if the "
            "model doesn't end its answers (a base model), put the token that ends a turn of its chat template into "
            "eos_token_id of its generation_config.json"
        )

    @property
    def estimates(self) -> dict[str, Estimate]:
        """By name: `avg_at_4`, `pass_at_1` …, `maj_at_4`. With one answer a problem all are one figure, `avg_at_1`."""
        k = self.num_completions
        average = {f"avg_at_{k}": self.avg_at_k}
        if k == 1:
            return average
        passes = {f"pass_at_{draws}": estimate for draws, estimate in self.pass_at.items()}
        return average | passes | {f"maj_at_{k}": self.maj_at_k}

    def summary(self) -> dict[str, Any]:
        """The figures and counts, ready for JSON; of each estimate its fields."""
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
    ValueError for a task without problems.
    """
    if not task.problems or num_completions < 1:
        raise ValueError(
            f"evaluating {task.name} needs at least one problem and one completion, "
            f"got {len(task.problems)} and {num_completions}"
        )
    prompts = [tuple(asker.encode(task.messages(problem))) for problem in task.problems]
    rooms = [params.room(len(prompt)) for prompt in prompts]
    asked = [index for index, room in enumerate(rooms) if room]  # each keeps the answers it has among all
    problems = [task.problems[index] for index in asked]
    groups = iter(
        asker.ask(task, problems, [prompts[i] for i in asked], num_completions, params, seed, on_progress, asked)
    )
    unasked = (Answer("", False, "no_answer", None, "length", 0),) * num_completions
    results = tuple(
        ProblemResult(problem.id, problem.question, problem.answer, room, _answers(next(groups)) if room else unasked)
        for problem, room in zip(task.problems, rooms, strict=True)
    )
    return EvaluationResult(task.name, num_completions, params.max_new_tokens, results, task.judges_truncated)


def write_results(result: EvaluationResult, path: Path) -> None:
    """One JSON line a problem. Written aside and swapped in: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside, aside.open("w", encoding="utf-8") as file:
        for problem in result.results:
            file.write(json.dumps(dataclasses.asdict(problem)) + "\n")


def _answers(group: Group) -> tuple[Answer, ...]:
    return tuple(
        Answer(text, verdict.correct, verdict.reason, verdict.extracted, done.finish_reason, done.num_tokens)
        for done, text, verdict in zip(group.completions, group.texts, group.verdicts, strict=True)
    )
