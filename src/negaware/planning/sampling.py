"""How fast engines sample answers of different lengths: a batch alone, or one after the other across updates.

A closed form of averages, in which every answer's length is independent of the others'. It knows nothing of single
answers, nor of what training takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from negaware.planning.cost import decode_seconds, prefill_seconds
from negaware.planning.lengths import Lengths
from negaware.planning.memory import rows_at_once
from negaware.planning.setting import Machine, Setting

AGES = 512
"""Parts in which the age of an answer is counted, from its first token to the longest answer's last."""
WAVES = 16
"""Answers a row after which a batch that is still full no longer changes."""
TINY = 1e-9
"""Answers that are none."""
MOMENTS = 32
"""At which questions begin that wait for a row."""
MOST_UPDATES = 256
"""That an answer is followed through."""


@dataclass(frozen=True)
class Sampling:
    """The engines' part of a step: what each decodes, how fast, and how long answers are."""

    setting: Setting
    machine: Machine
    lengths: Lengths
    batches: int
    """Of questions that may be under way."""

    @cached_property
    def rows(self) -> int:
        """Answers that an engine decodes at most."""
        setting = replace(self.setting, questions=self.batches * self.setting.questions)
        return min(rows_at_once(setting, self.machine), setting.sequences_an_engine)

    @property
    def answers(self) -> float:
        """That an engine samples for a batch."""
        return self.setting.questions * self.setting.completions / self.setting.engines

    @cached_property
    def context(self) -> float:
        """Tokens behind a row's next one, on average over all decode steps: E[L²] / 2 E[L], with the question."""
        return self.setting.prompt_tokens + self.lengths.mean_square / (2 * self.lengths.mean)

    @cached_property
    def questions_seconds(self) -> float:
        """Prefill of a batch's questions."""
        tokens = self.answers / self.setting.completions * self.setting.prompt_tokens
        return float(prefill_seconds(self.setting, self.machine, tokens))

    def step_seconds(self, rows: float) -> float:
        """A decode step of so many rows, of every age."""
        return float(decode_seconds(self.setting, self.machine, rows, rows * self.context))

    def alone(self) -> tuple[float, float]:
        """Seconds until all engines have sampled a batch, of which each finishes its part; and the mean of its rows.

        Answers are followed by their age, as averages: so many begin as rows are free, and P(L > age) of them go on.
        """
        answers: float = self.setting.sequences_an_engine
        rows = min(self.rows, answers)
        followed = min(answers, WAVES * rows)
        width = self.lengths.longest / AGES
        ages = np.arange(AGES) * width
        alive = np.diff(self.lengths.drawn(np.append(ages, self.lengths.longest))) / width
        waiting, begun = followed, np.zeros(0)
        while waiting > TINY:
            recent = begun[:-AGES:-1]
            free = rows - recent @ alive[1 : len(recent) + 1]
            begun = np.append(begun, min(waiting, free / alive[0]))
            waiting -= begun[-1]
        running = np.convolve(begun, alive)
        context = np.convolve(begun, alive * (self.setting.prompt_tokens + ages + width / 2))
        none_left = np.exp(self.setting.engines * np.convolve(begun, np.log1p(-np.minimum(alive, 1 - TINY))))
        steps = width * (1 - none_left)
        unfollowed = (answers - followed) * self.lengths.mean / rows
        decoding = float(steps @ decode_seconds(self.setting, self.machine, running, context))
        total = decoding + unfollowed * self.step_seconds(rows)
        return total + self.questions_seconds, answers * self.lengths.mean / float(steps.sum() + unfollowed)


@dataclass(frozen=True)
class GoingOn:
    """Sampling that goes on across updates: `rows` of an engine on average, while ranks train for `pause` seconds.

    With `overlaps` engines sample in these seconds too; without, they wait.
    """

    sampling: Sampling
    rows: float
    pause: float
    overlaps: bool

    @cached_property
    def decode_step(self) -> float:
        """Seconds."""
        return self.sampling.step_seconds(self.rows)

    @cached_property
    def prefills(self) -> float:
        """Seconds: a batch's questions, and after the update everything that is under way."""
        sampling = self.sampling
        again = float(prefill_seconds(sampling.setting, sampling.machine, self.rows * sampling.context))
        return sampling.questions_seconds + again

    @cached_property
    def busy(self) -> float:
        """Seconds in which an engine samples a batch's tokens."""
        sampling = self.sampling
        return sampling.answers * sampling.lengths.mean / self.rows * self.decode_step + self.prefills

    @cached_property
    def period(self) -> float:
        """Seconds from one update to the next."""
        return max(self.busy, self.pause) if self.overlaps else self.busy + self.pause

    @cached_property
    def steps(self) -> float:
        """Decode steps from one update to the next."""
        return ((self.period if self.overlaps else self.busy) - self.prefills) / self.decode_step

    def ages(self, first: float) -> np.ndarray:
        """Decode steps [U, 1 + B] since questions began, those of the last update `first` steps after it, those of
        each update before it a period more: of questions that begin at once, and of those that wait for a row."""
        since = first + self.steps * np.arange(min(self.sampling.lengths.longest / self.steps + 2, MOST_UPDATES))
        return since[:, None] - self.begin_late * np.append(0, (np.arange(MOMENTS) + 0.5) / MOMENTS)

    @property
    def is_full(self) -> bool:
        """Whether every row is always taken, so that answers begin at any time."""
        return self.rows == self.sampling.rows < self.sampling.batches * self.sampling.answers

    @cached_property
    def at_once(self) -> float:
        """The part of a batch's answers that find a free row when they are asked."""
        sampling = self.sampling
        if self.is_full:
            return 0.0
        later = self.steps * np.arange(1, min(sampling.lengths.longest / self.steps + 1, MOST_UPDATES))
        before = sampling.answers * float(sampling.lengths.survival(later).sum())
        return min(1.0, max(0.0, sampling.rows - before) / sampling.answers)

    @cached_property
    def begin_late(self) -> float:
        """Decode steps until the last of a batch's answers begins."""
        sampling = self.sampling
        if self.is_full:
            return self.steps
        return (1 - self.at_once) * sampling.answers * sampling.lengths.mean / sampling.rows

    def mean(self, of_ages: np.ndarray) -> float:
        """Of a batch: summed over updates, of what is asked at once and of what begins later."""
        return float((self.at_once * of_ages[:, 0] + (1 - self.at_once) * of_ages[:, 1:].mean(1)).sum())

    def unfinished(self, ages: np.ndarray) -> float:
        """Batches of questions with an answer that goes on or hasn't begun: P(the longest of K > age)."""
        finished = 1 - self.sampling.lengths.survival(ages)
        return self.mean(1 - finished**self.sampling.setting.completions)

    def is_possible(self, staleness: int) -> bool:
        """Whether a batch is finished when the ranks want it, though `staleness` more are under way."""
        waited = self.period - self.pause if self.overlaps else self.period
        return self.unfinished(self.ages(self.steps * waited / self.period)) <= staleness

    def held(self, ages: np.ndarray) -> float:
        """Tokens of unfinished questions, over those of a batch: E[min(L, age); longest of K > age] / E[L]."""
        lengths = self.sampling.lengths
        ages = np.maximum(ages, 0)
        drawn, finished = lengths.drawn(ages), 1 - lengths.survival(ages)
        of_finished = finished ** (self.sampling.setting.completions - 1) * (drawn - ages * (1 - finished))
        return self.mean(drawn - of_finished) / lengths.mean

    def staleness(self, limit: int) -> float:
        """Mean updates that a token waits: tokens that are held at an update, over those that are trained in one."""
        ages = self.ages(self.steps)
        finished = 0.0
        if self.overlaps:  # batches that wait to be trained
            finished = self.pause / self.period if self.is_full else limit - self.unfinished(ages)
        return min(limit, self.held(ages) + finished)


def going_on(sampling: Sampling, staleness: int, pause: float, overlaps: bool) -> GoingOn:
    """The fullest that engines can be: as many rows as they have, unless questions are too few or ranks too slow."""

    def with_rows(rows: float) -> GoingOn:
        return GoingOn(sampling, rows, pause, overlaps)

    def largest(most: float, is_too_many: Callable[[GoingOn], bool]) -> float:
        if not is_too_many(with_rows(most)):
            return most
        low = 0.0
        for _ in range(50):
            middle = (low + most) / 2
            low, most = (low, middle) if is_too_many(with_rows(middle)) else (middle, most)
        return low

    rows = largest(sampling.rows, lambda found: overlaps and found.busy < pause)
    return with_rows(largest(rows, lambda found: not found.is_possible(staleness)))
